"""scripts/check.py behind its flags: what is meant, the promises tried, one table, and the exit code."""

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from ..checking.judging import BROKEN, Finding, Judge
from ..checking.opening import CheckPlan, is_class_name, open_subject, plan_class, plan_preset, plan_saved, plan_type
from ..checking.promises import PROMISES
from ..checking.report import facts, text_table, verdict_line
from ..checking.rows import Rows, special_ids
from ..checking.trial import Trial
from ..common.checkpoints import check_device
from ..common.cli import EXIT_FAILED, UserError, check_new_file, check_seed
from ..common.files import write_json
from ..presets import parse_scalar

EXIT_BROKEN = EXIT_FAILED  # of a test, as of any other program that tests


def check(args: argparse.Namespace) -> None:
    """Try a model's promises as scripts/check.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any weights are read.
        SystemExit: with EXIT_BROKEN, where a promise is broken.
    """
    check_arguments(args)
    quiet_libraries()
    findings = check_model(args, plan_of(args))
    if any(each.verdict == BROKEN for each in findings):
        raise SystemExit(EXIT_BROKEN)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before anything is looked for, what cannot be meant."""
    check_seed("--seed", args.seed)
    check_device(args.device)
    if args.json is not None:
        check_new_file("--json", args.json)
    named = [name for name in ("model", "model_type", "preset") if getattr(args, name) is not None]
    if len(named) != 1:
        raise UserError("name one model: MODEL (a folder, a hub name or a class), --model_type TYPE or --preset NAME.")
    if args.tiny and (named != ["model"] or is_class_name(args.model)):
        raise UserError(
            "--tiny is for a folder or a hub name; what is made from a class, type or preset is tiny anyway."
        )
    if args.fields and named == ["model"] and not is_class_name(args.model) and not args.tiny:
        raise UserError(
            "--set is for tiny models: a saved one has its own configuration (--tiny takes a small one like it)."
        )


def plan_of(args: argparse.Namespace) -> CheckPlan:
    """Return what is to be tried, before any weights are read."""
    fields = dict(map(parse_field, args.fields))
    if args.preset is not None:
        return plan_preset(args.preset, fields)
    if args.model_type is not None:
        return plan_type(args.model_type, fields)
    if is_class_name(args.model) and not Path(args.model).is_dir():
        return plan_class(args.model, fields)
    return plan_saved(args.model, tiny=args.tiny, fields=fields, trust=args.trust_remote_code)


def parse_field(text: str) -> tuple[str, Any]:
    """Return a field of a configuration and its value from FIELD=VALUE; the value is read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"--set {text}: write FIELD=VALUE.")
    return name, parse_scalar(value)


def check_model(args: argparse.Namespace, plan: CheckPlan) -> list[Finding]:
    """Try all promises of one model, print the table, and write the JSON file if there is to be one."""
    subject = open_subject(plan, dtype=getattr(torch, args.dtype), device=args.device, seed=args.seed)
    judge = Judge(Trial(subject, Rows(subject.vocabulary, special_ids(subject.model.config), args.seed)))
    with tqdm(PROMISES.items(), desc=plan.name, leave=False, disable=None, unit="promise") as bar:
        findings = [judge.judge(name, promise) for name, promise in bar]
    kind = type(subject.model).__name__
    weights = plan.weights if plan.saved else f"{plan.weights} (seed {args.seed})"
    print(f"{plan.name}: {kind}, {weights}, {args.dtype} on {args.device}, transformers {transformers.__version__}")
    print(f"Rounding alone moves it by {judge.noise.calm:.0e}; more than {judge.tolerance:.0e} is looked into.\n")
    print(text_table(findings))
    print(f"\n{verdict_line(plan.name, findings)}")
    if args.json is not None:
        about = {"model": plan.name, "class": kind, "weights": plan.weights, "seed": args.seed, "dtype": args.dtype}
        write_json(
            args.json, facts(findings, **about, device=args.device, noise=vars(judge.noise), tolerance=judge.tolerance)
        )
    return findings


def quiet_libraries() -> None:
    """Bars and warnings of transformers are about loading and training; here a table is read."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
