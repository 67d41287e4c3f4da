"""The commands of scripts/degrade.py: parsing, the order of the checks, and what is printed.

What takes seconds to import is imported when a command needs it, so that --help and a mistake answer at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_output_dir,
    is_main_process,
    user_mistakes,
)

from .dry_run import dry_run_command, dry_run_flags
from .flags import (
    add_experiment_flags,
    add_log_flag,
    add_model_flags,
    add_store_flags,
    check_command,
    experiments_of,
    options_of,
    planned,
    with_underscores,
    words_of,
)
from .recovery.command import recover_command, recover_flags
from .several import LOGS, run_each, tell_failures
from .skills.command import skills_command, skills_flags

if TYPE_CHECKING:
    from .harness import Harness

logger = logging.getLogger("frankenlm.degradation")

MANY_BYTES = 30_000_000  # of results: about 10,000 rows, ten seconds of measuring


# --- run


def run_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--output_dir", default="results", help="folder of results and logs (default: results)")
    add_store_flags(parser)
    parser.add_argument(
        "--report",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="at the end, write one report of all experiments (default folder: report in --output_dir)",
    )
    parser.add_argument(
        "--lm_eval", nargs="+", metavar="TASK", help="tasks of lm-evaluation-harness, measured in every cell"
    )
    parser.add_argument("--lm_eval_path", metavar="FOLDER", help="with --lm_eval: folder of tasks of your own")
    parser.add_argument("--lm_eval_limit", type=int, metavar="N", help="with --lm_eval: the first N documents of each")
    add_log_flag(parser)
    add_experiment_flags(parser)


def run_command(args: argparse.Namespace) -> None:
    from .lab import Lab

    configs = experiments_of(args)
    with user_mistakes():
        check_output_dir(args.output_dir)
        check_output_dir(Path(args.output_dir) / LOGS)
        report = Path(args.output_dir) / "report" if args.report is True else args.report and Path(args.report)
        if report:
            check_output_dir(report)
        harness = harness_of(args)
        lab = Lab(args.model, replace(options_of(args), harness=harness))
        experiments = planned(lab, configs, windows=args.windows is not None)
        for experiment in experiments if harness else ():
            harness.check(experiment, lab.processes)
    with lab.one_bar(experiments):
        paths, failures = run_each(experiments, args, lab, lambda experiment: [lab.run(experiment)])
    if report and paths and is_main_process():
        from .report.write import write_report

        print(write_report(paths, report, workers=workers_for(paths)))
    tell_failures(failures, len(experiments))


def harness_of(args: argparse.Namespace) -> "Harness | None":
    """Return the tasks that --lm_eval names; None without."""
    if args.lm_eval is None:
        if args.lm_eval_path is not None or args.lm_eval_limit is not None:
            raise UserError("--lm_eval_path and --lm_eval_limit say how --lm_eval finds its tasks: give that too.")
        return None
    from .harness import Harness

    return Harness(words_of("lm_eval", args.lm_eval), args.lm_eval_path, args.lm_eval_limit)


# --- before a run: see dry_run.py too


def groups_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)


def groups_command(args: argparse.Namespace) -> None:
    from .weights.groups import describe_groups, refused_groups, ungrouped
    from .weights.model_checks import check_language_model, empty_model, read_config, resolve_device

    with user_mistakes():
        resolve_device(args.device)
        config = read_config(args.model, args.trust_remote_code)
        check_language_model(args.model, config)
        empty = empty_model(config, args.trust_remote_code)
        rows, refused, left = describe_groups(empty), refused_groups(empty), ungrouped(empty)
        if not rows:
            raise ValueError(f"model {args.model} ({config.model_type}): has no group of weights that is known.")
    print_table(rows)
    if refused:
        print("\nNot whole, and therefore refused:")
        print_table(refused)
    if left:
        print("\nIn no group:")
        print_table(left)


# --- after a run


def measure_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", help="outputs_*.json files")
    parser.add_argument("--output_dir", help="folder to write to (default: beside each file)")


def measure_command(args: argparse.Namespace) -> None:
    from .report.write import measure_file

    paths = existing(args.results)
    folders = [Path(args.output_dir) if args.output_dir else path.with_suffix(".measures") for path in paths]
    for folder in folders:
        check_output_dir(folder)
    refuse_equal_outputs(paths, folders)
    for path, folder in zip(paths, folders, strict=True):
        with user_mistakes():
            print(measure_file(path, folder, workers=workers_for([path])))


def refuse_equal_outputs(paths: Sequence[Path], folders: Sequence[Path]) -> None:
    """Raise UserError where the measures of one file would take the place of those of another."""
    places = [(folder.absolute(), path.stem) for path, folder in zip(paths, folders, strict=True)]
    for number, (folder, stem) in enumerate(places):
        if (folder, stem) in places[:number]:
            first = paths[places.index((folder, stem))]
            raise UserError(
                f"{first} and {paths[number]}: both would be written to {folder / stem}_measures.json: give one of "
                "them, or another --output_dir for each."
            )


def report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", help="outputs_*.json files; several are set beside each other")
    parser.add_argument("--output_dir", default="results/report", help="folder to write to (default: results/report)")


def report_command(args: argparse.Namespace) -> None:
    from .report.write import write_report

    paths = existing(args.results)
    check_output_dir(args.output_dir)
    with user_mistakes():
        print(write_report(paths, Path(args.output_dir), workers=workers_for(paths)))


def export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="+", help="journal folders, or the JSON files they belong to")


def export_command(args: argparse.Namespace) -> None:
    from .records.export_again import export_command as export

    for path in existing(args.experiments):
        with user_mistakes():
            print(export(path))


def import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a JSON file of the original program")
    parser.add_argument("--output_dir", default="results", help="folder of results (default: results)")
    add_model_flags(parser)
    add_experiment_flags(parser)


def import_command(args: argparse.Namespace) -> None:
    from .lab import Lab

    (path,) = existing([args.file])
    configs = experiments_of(args)
    with user_mistakes():
        check_output_dir(args.output_dir)
        lab = Lab(args.model, options_of(args))
        for experiment in planned(lab, configs, windows=args.windows is not None):
            count = lab.adopt(experiment, path)
            print(
                f"{experiment.config.method}, {experiment.config.group}: {count.adopted} rows adopted, {count.known} "
                f"there already, {count.unmatched} of other cells or prompts"
            )


def workers_for(paths: Sequence[Path]) -> int:
    """Return how many processes measure: starting them takes longer than measuring a small file in one."""
    if sum(path.stat().st_size for path in paths) <= MANY_BYTES:
        return 1
    from frankenlm.trainer_ext.common.shared_memory import why_nothing_is_shared

    reason = why_nothing_is_shared()
    if reason:
        logger.warning("one process measures, the slow way: processes cannot share memory here (%s).", reason)
    return 1 if reason else os.cpu_count() or 1


def existing(words: Sequence[str]) -> list[Path]:
    """Return the paths, all of which must exist."""
    paths = [Path(word) for word in words]
    for path in paths:
        if not os.path.lexists(path) or not path.exists():  # exists() alone raises where a name is too long
            raise UserError(f"{str(path)[:200]}: no such file or folder.")
    return paths


def print_table(rows: Sequence[dict]) -> None:
    """Print rows of equal keys as aligned columns, numbers to the right."""
    names = list(rows[0])
    cells = [
        [
            f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if isinstance(value, float) else str(value)
            for value in row.values()
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    for line in [names, *cells]:
        print(
            "  ".join(
                text.ljust(width) if i == 0 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            )
        )


COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "run": ("run experiments, from wherever they stand", run_flags, run_command),
    "recover": ("train damaged models, and measure them again on the way", recover_flags, recover_command),
    "skills": ("which skills break first, of those the undamaged model has", skills_flags, skills_command),
    "groups": ("show which weights of a model a group means", groups_flags, groups_command),
    "dry-run": ("estimate memory and rows without reading weights", dry_run_flags, dry_run_command),
    "measure": ("measure rows that exist; needs no model", measure_flags, measure_command),
    "report": ("write one page of curves, critical levels and figures", report_flags, report_command),
    "export": ("make the JSON file anew from a journal", export_flags, export_command),
    "import-legacy": ("take over rows of the original program", import_flags, import_command),
}


def main(argv: Sequence[str] | None = None, description: str = "") -> None:
    """Run one command; see `trainer_ext.common.cli.run_command` for the exit codes."""
    argv = with_underscores(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("--help", "-h"):
        print(overview(description))
        return
    check_command(argv[0], list(COMMANDS))
    help_text, add_flags, command = COMMANDS[argv[0]]
    parser = OneLineParser(prog=f"{os.path.basename(sys.argv[0])} {argv[0]}", description=help_text, allow_abbrev=False)
    add_flags(parser)
    args = parser.parse_strictly(argv[1:])
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()  # a bar for every weight file would stand before the answers
    command(args)


def overview(description: str) -> str:
    lines = [f"  {name:<14} {entry[0]}" for name, entry in COMMANDS.items()]
    return "\n".join([description.strip(), "", "commands (each has --help):", *lines])
