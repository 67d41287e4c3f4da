"""scripts/check.py behind its flags: what is meant, the promises tried, one table, and the exit code."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from ..checking.collators import Collated, collator_findings, find_collator, through_model
from ..checking.families import facts_of, family_names, markdown, try_families
from ..checking.judging import BROKEN, Finding, Judge
from ..checking.opening import CheckPlan, is_class_name, open_subject, plan_class, plan_preset, plan_saved, plan_type
from ..checking.promises.table import PROMISES
from ..checking.report import facts, text_table, verdict_line
from ..checking.rows import Rows, special_ids
from ..checking.snippets import snippet
from ..checking.subject import ModelUnderTest
from ..checking.trial import Trial
from ..common.checkpoints import check_device
from ..common.cli import EXIT_FAILED, UserError, check_new_file, check_seed
from ..common.files import write_json, write_text
from ..common.logs import RunLog
from ..common.opening import reading
from ..presets import parse_scalar

PAGE_MARKS = ("<!-- families -->", "<!-- end of families -->")
EXIT_BROKEN = EXIT_FAILED  # of a test, as of any other program that tests


def check(args: argparse.Namespace) -> None:
    """Try a model's promises, a collator's, or both, as scripts/check.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any weights are read.
        SystemExit: with EXIT_BROKEN, where a promise is broken.
    """
    check_arguments(args)
    quiet_libraries()
    with RunLog("warning"):
        check_what_is_named(args)


def check_what_is_named(args: argparse.Namespace) -> None:
    """Try what the flags name, print what became of it, and write what is to be written."""
    if args.families:
        check_families(args)
        return
    plan = plan_of(args)
    collator = None if args.collator is None else find_collator(args.collator, args.collator_args)
    findings, batch = ([], None) if collator is None else collator_findings(collator)
    about = {} if collator is None else {"collator": args.collator}
    subject = None
    if plan is not None:
        subject = open_subject(plan, dtype=getattr(torch, args.dtype), device=args.device, seed=args.seed)
        more, facts_of_model = check_model(args, plan, subject, batch)
        findings, about = [*more, *findings], {**about, **facts_of_model}
    print(text_table(findings))
    print(f"\n{verdict_line(args.collator if plan is None else plan.name, findings)}")
    if args.json is not None:
        write_json(args.json, facts(findings, **about))
    if args.reproduce and subject is not None:
        print_reproduction(plan, subject, findings)
    if any(each.verdict == BROKEN for each in findings):
        raise SystemExit(EXIT_BROKEN)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before anything is looked for, what cannot be meant."""
    check_seed("--seed", args.seed)
    check_device(args.device)
    if args.json is not None:
        check_new_file("--json", args.json)
    if args.page is not None:
        check_page(args.page)
    named = [name for name in ("model", "model_type", "preset") if getattr(args, name) is not None]
    if args.families:
        if named or args.collator is not None:
            raise UserError("--families tries all of transformers: leave the model and the collator away.")
        return
    if args.page is not None:
        raise UserError("--page is for the table of --families.")
    if len(named) > 1 or (not named and args.collator is None):
        raise UserError("name one model: MODEL (a folder, a hub name or a class), --model_type TYPE or --preset NAME.")
    if args.collator_args is not None and args.collator is None:
        raise UserError("--collator_args is for a --collator.")
    if args.tiny and (named != ["model"] or is_class_name(args.model)):
        raise UserError(
            "--tiny is for a folder or a hub name; what is made from a class, type or preset is tiny anyway."
        )
    if args.fields and named == ["model"] and not is_class_name(args.model) and not args.tiny:
        raise UserError(
            "--set is for tiny models: a saved one has its own configuration (--tiny takes a small one like it)."
        )


def plan_of(args: argparse.Namespace) -> CheckPlan | None:
    """Return what is to be tried, before any weights are read; None where no model is named."""
    fields = dict(map(parse_field, args.fields))
    if args.preset is not None:
        return plan_preset(args.preset, fields)
    if args.model_type is not None:
        return plan_type(args.model_type, fields)
    if args.model is not None and is_class_name(args.model) and not Path(args.model).is_dir():
        return plan_class(args.model, fields)
    if args.model is None:
        return None
    return plan_saved(args.model, tiny=args.tiny, fields=fields, trust=args.trust_remote_code)


def parse_field(text: str) -> tuple[str, Any]:
    """Return a field of a configuration and its value from FIELD=VALUE; the value is read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"--set {text}: write FIELD=VALUE.")
    try:
        return name, parse_scalar(value)
    except ValueError as error:
        raise UserError(f"--set {name}={value[:40]!r}: {error}") from error


def check_model(
    args: argparse.Namespace, plan: CheckPlan, subject: ModelUnderTest, batch: Collated | None
) -> tuple[list[Finding], dict[str, Any]]:
    """Try all promises of one model, and of a collator's batch with it; return what became of them, and what was tried.

    Raises:
        UserError: a model that cannot be run.
    """
    with reading(plan.name, "model"):
        judge = Judge(Trial(subject, Rows(subject.vocabulary, special_ids(subject.model.config), args.seed)))
    promises = dict(PROMISES)
    if batch is not None:
        promises["the collator's batch"] = partial(through_model, made=batch)
    with tqdm(promises.items(), desc=plan.name, leave=False, disable=None, unit="promise") as bar:
        findings = [judge.judge(name, promise) for name, promise in bar]
    kind = type(subject.model).__name__
    weights = plan.weights if plan.saved else f"{plan.weights} (seed {args.seed})"
    print(f"{plan.name}: {kind}, {weights}, {args.dtype} on {args.device}, transformers {transformers.__version__}")
    print(f"Rounding alone moves it by {judge.noise.calm:.0e}; more than {judge.tolerance:.0e} is looked into.\n")
    tried = {"model": plan.name, "class": kind, "weights": plan.weights, "seed": args.seed, "dtype": args.dtype}
    return findings, {**tried, "device": args.device, "noise": vars(judge.noise), "tolerance": judge.tolerance}


def print_reproduction(plan: CheckPlan, subject: ModelUnderTest, findings: Sequence[Finding]) -> None:
    """Print the smallest Python that shows a broken promise, if a few lines show one."""
    broken = [each.promise for each in findings if each.verdict == BROKEN]
    for promise in broken:
        text = snippet(plan, promise, subject)
        if text is not None:
            print(f"\n# {plan.name}: {promise}\n{text}", end="")
            return
    print("\nNothing that is broken here can be shown in a few lines." if broken else "\nThere is nothing to show.")


def check_page(page: Path) -> None:
    """Raises UserError for a page without the two marks that the table goes between."""
    check_new_file("--page", page)
    if not page.is_file() or not all(mark in page.read_text(encoding="utf-8") for mark in PAGE_MARKS):
        raise UserError(f"--page {page}: needs the lines {PAGE_MARKS[0]} and {PAGE_MARKS[1]}; the table goes between.")


def check_families(args: argparse.Namespace) -> None:
    """Try all families, print the table, and write it into the page and the JSON file if there are to be any."""
    with tqdm(family_names(), leave=False, disable=None, unit="family") as bar:
        families = list(try_families(bar, seed=args.seed, dtype=getattr(torch, args.dtype)))
    table = markdown(families)
    print(table, end="")
    if args.page is not None:
        before, _, rest = args.page.read_text(encoding="utf-8").partition(PAGE_MARKS[0])
        after = rest.partition(PAGE_MARKS[1])[2]
        write_text(args.page, f"{before}{PAGE_MARKS[0]}\n\n{table}\n{PAGE_MARKS[1]}{after}")
    if args.json is not None:
        write_json(args.json, {"families": facts_of(families), "transformers": transformers.__version__})


def quiet_libraries() -> None:
    """Bars and warnings of transformers are about loading and training; here a table is read."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
