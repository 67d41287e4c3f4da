"""scripts/suite.py behind its flags: the plan, the runs that are missing, and the reports of those there are."""

import argparse
import dataclasses
import logging
import signal
from collections.abc import Callable
from contextlib import ExitStack

import torch
from tqdm import tqdm

from frankenlm.modeling.checks import check_choice

from ..cards import library_versions
from ..common.cli import (
    Interrupted,
    UserError,
    check_new_file,
    check_numbers,
    check_output_dir,
    check_seed,
    check_seeds,
    check_threads,
    user_mistakes,
)
from ..common.folder_lock import locked_folder
from ..common.logs import RunLog
from ..common.signals import CaughtSignals
from ..synthetic.models import MODELS
from ..synthetic.plan import REPORT, SELECTION, FinishedRuns, SuitePlan, best_rate
from ..synthetic.reports import PAGE, write_reports
from ..synthetic.tasks import MQAR, TASKS, chosen_tasks
from ..synthetic.training import SuiteRun, train_and_ask

logger = logging.getLogger("frankenlm.suite")

# What --quick gives in place of the defaults: every mixer once, on two tasks, for a minute.
QUICK = {
    "tasks": [MQAR, "memorization"],
    "hidden_sizes": [16],
    "mamba_states": [8],
    "learning_rates": [1e-2],
    "seeds": [0],
    "steps": [20],
    "test_rows": 32,
}
FULL = {
    "tasks": list(TASKS),
    "hidden_sizes": [32, 16, 64],
    "mamba_states": [32, 8],
    "learning_rates": [3e-3, 1e-2, 3e-2],
    "seeds": [0, 1, 2],
    "steps": [400, 1200],
    "test_rows": 256,
}
LISTS = ("hidden_sizes", "mamba_states", "learning_rates", "steps")


def suite(args: argparse.Namespace) -> None:
    """Run the suite as scripts/suite.py's flags say.

    Raises:
        UserError: a mistake in the flags, before anything is run.
        Interrupted: a signal came; the finished runs stand.
    """
    plan = plan_of(args)
    if args.dry_run:
        print(plan_lines(plan))
        return
    check_output_dir(args.output_dir)
    if args.card is not None:
        check_new_file("--card", args.card, ".md")
    with RunLog(args.log_level) as log, ExitStack() as held:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked_folder(args.output_dir))
        finished = FinishedRuns(args.output_dir / "suite.csv")
        log.write_to(args.output_dir / "suite.log", append=True)
        try:
            if not args.report_only:
                run_missing(plan, finished, args.threads)
        finally:
            write_reports(args.output_dir, plan, finished, library_versions(), args.card)
    print((args.output_dir / PAGE).read_text(encoding="utf-8"))
    print(f"report: {args.output_dir / PAGE}")


def plan_of(args: argparse.Namespace) -> SuitePlan:
    """Raises UserError for what nothing can be run with."""
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_threads(args.threads)
    check_seeds(args.seeds)
    check_seed("--selection_seed", args.selection_seed)
    check_numbers(args, least={"batch_size": 1, "test_rows": 1})
    for steps in args.steps:
        check_numbers(argparse.Namespace(steps=steps), least={"steps": 1})
    if args.selection_seed in args.seeds:
        raise UserError(f"--selection_seed {args.selection_seed}: is one of --seeds, which no choice may have seen.")
    mixers = list(MODELS) if args.mixers is None else args.mixers
    with user_mistakes():
        for mixer in mixers:
            check_choice("--mixers", mixer, MODELS)
    for name in ("tasks", "mixers", *LISTS):
        given = getattr(args, name) or []
        if len(set(given)) < len(given):
            raise UserError(f"--{name} {' '.join(map(str, given))}: must be different.")
    for rate in args.learning_rates:
        if not 0 < rate < 1:
            raise UserError(f"--learning_rates {rate}: must lie between 0 and 1.")
    plan = SuitePlan(
        tasks=chosen_tasks(args.tasks, args.set),
        mixers=tuple(mixers),
        **{name: tuple(getattr(args, name)) for name in (*LISTS, "seeds")},
        **{name: getattr(args, name) for name in ("selection_seed", "batch_size", "test_rows")},
    )
    plan.check()
    return plan


def plan_lines(plan: SuitePlan) -> str:
    """What would be run, a line a cell."""
    lines = []
    for cell in plan.cells:
        size = f"hidden_size {cell.hidden_size}" + (f", state {cell.mamba_state}" if cell.mixer == "mamba" else "")
        lines.append(f"{cell.task:<18} {cell.mixer:<13} {size}, {cell.steps} steps")
    each = f"{len(plan.learning_rates)} to choose a rate and {len(plan.seeds)} seeds"
    return "\n".join([*lines, f"{len(lines)} cells, {len(lines) * plan.runs_of_a_cell} runs: {each} each"])


def run_missing(plan: SuitePlan, finished: FinishedRuns, threads: int | None) -> None:
    """Make the runs that are not finished, each a row of the file as soon as it is."""
    if threads:
        torch.set_num_threads(threads)
    stopper = Stopper()
    planned = len(plan.cells) * plan.runs_of_a_cell
    with (
        CaughtSignals((signal.SIGTERM, signal.SIGINT), stopper.receive),
        tqdm(total=planned, unit="run", desc="suite", disable=None) as bar,
    ):
        for cell in plan.cells:
            rows = [one_run(plan, finished, run, SELECTION, stopper.check, bar) for run in plan.trials(cell)]
            for run in plan.reported(cell, best_rate(rows)):
                one_run(plan, finished, run, REPORT, stopper.check, bar)


def one_run(
    plan: SuitePlan, finished: FinishedRuns, run: SuiteRun, role: str, after_step: Callable[[], None], bar: tqdm
) -> dict:
    """The row of a run, made where it is not there yet."""
    task = plan.tasks[run.task]
    row = finished.of(run, task)
    if row is None:
        row = finished.add(run, task, role, train_and_ask(run, task, after_step))
        told = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(run).items() if name in TOLD)
        logger.info("%s, %s, %s: accuracy %.3f (%s)", run.task, run.mixer, told, row["accuracy"], role)
    bar.update()
    return row


TOLD = ("hidden_size", "learning_rate", "seed")


class Stopper:
    """Remembers a signal, and ends the work after the step that it came in."""

    def __init__(self):
        self.signum: int | None = None

    def receive(self, signum, frame) -> None:
        self.signum = signum

    def check(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum, "the finished runs are kept; the same command goes on with the rest")
