"""The command recover: its flags, the order of the checks, and what is printed."""

import argparse
from dataclasses import fields
from pathlib import Path

from frankenlm.trainer_ext.common.cli import UserError, check_output_dir, user_mistakes

from ..flags import (
    add_experiment_flags,
    add_log_flag,
    add_model_flags,
    add_store_flags,
    experiments_of,
    options_of,
    planned,
)
from ..several import LOGS, run_each, tell_failures

FLAGS = {
    "text": "--train_text",
    "steps": "--steps",
    "every": "--every",
    "batch": "--train_batch",
    "length": "--train_length",
    "learning_rate": "--learning_rate",
}
HELP = {
    "text": "text to train on: a file, builtin or builtin-code (default: builtin)",
    "steps": "steps of training (default: 100)",
    "every": "measure every so many steps (default: 25)",
    "batch": "rows of a step (default: 8)",
    "length": "tokens of a row (default: 128)",
    "learning_rate": "learning rate, held constant (default: 1e-4)",
}


def recover_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--output_dir", default="results", help="folder of results (default: results)")
    for name, flag in FLAGS.items():
        kind = {"text": str, "learning_rate": float}.get(name, int)
        parser.add_argument(flag, dest=f"recovery_{name}", type=kind, metavar="VALUE", help=HELP[name])
    parser.add_argument("--train_damaged", action="store_true", help="train the damaged elements too (default: held)")
    add_store_flags(parser)
    add_log_flag(parser)
    add_experiment_flags(parser)


def recover_command(args: argparse.Namespace) -> None:
    """Recover every experiment that the flags ask for, and print the result files."""
    from ..lab import Lab
    from .recover import plan_recovery, recover
    from .settings import RecoverySettings, load_text

    configs = experiments_of(args)
    values = {field.name: vars(args).get(f"recovery_{field.name}") for field in fields(RecoverySettings)}
    given = {name: value for name, value in values.items() if value is not None}
    with user_mistakes():
        settings = RecoverySettings(**given, frozen=not args.train_damaged)
        check_output_dir(args.output_dir)
        check_output_dir(Path(args.output_dir) / LOGS)
        text = load_text(settings.text)  # a mistake there need not wait for a model
        lab = Lab(args.model, options_of(args))
        if lab.processes > 1:
            raise UserError(f"recover: {lab.processes} processes were started; start one.")
        configs = [config | {"perplexity_per_repeat": True} for config in configs]
        experiments = planned(lab, configs, windows=args.windows is not None)
        for experiment in experiments:
            plan_recovery(lab, experiment, settings, text)
    paths, failures = run_each(experiments, args, lab, lambda experiment: recover(lab, experiment, settings))
    for path in paths:
        print(path)
    tell_failures(failures, len(experiments))
