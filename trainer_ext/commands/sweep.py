"""scripts/sweep.py behind its flags: the plan, the runs that are missing, and after each of them the reports."""

import argparse
import fnmatch
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from frankenlm.modeling.yaml_text import plain

from ..cards import library_versions
from ..common.checks import suggest
from ..common.cli import Failed, Interrupted, UserError, check_numbers, check_output_dir
from ..common.files import replaced_file, write_csv, write_json, write_text
from ..common.folder_lock import locked_folder
from ..common.logs import RunLog
from ..saving.publishing import settle
from ..sweeps.figure import plot_sweep
from ..sweeps.grid import Sweep, SweepRun, read_sweep
from ..sweeps.run_folder import FINISHED, PlannedRun, plan_run
from ..sweeps.running import Ending, RunProcesses
from ..sweeps.table import GROUP, LOSSES, cells_of, edges, page, row_of

logger = logging.getLogger("frankenlm.sweep")

PAGE = "sweep.md"


def sweep(args: argparse.Namespace) -> None:
    """Run a sweep as scripts/sweep.py's flags say.

    Raises:
        UserError: a mistake in the file or in any of its runs, before anything is written.
        Failed: a run failed; the others were made. Interrupted: a signal came.
    """
    check_numbers(args, least={"jobs": 1})
    asked = read_sweep(args.config, args.set)
    chosen = chosen_runs(asked, args.only)
    check_output_dir(args.output_dir)
    with RunLog(args.log_level) as log:
        plan = [plan_run(run, args.output_dir) for run in asked.runs]
        if args.dry_run:
            print(plan_table(plan, chosen))
            return
        with ExitStack() as held:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(locked_folder(args.output_dir))
            log.write_to(args.output_dir / "sweep.log", append=True)
            # again, as another sweep may have worked here until the lock was free
            for run in asked.runs:
                settle(args.output_dir / run.name)  # checkpoints that a killed run had written whole
            plan = [plan_run(run, args.output_dir) for run in asked.runs]
            processes = RunProcesses(args.jobs, lock)
            run_missing(args.output_dir, asked, plan, chosen, processes)
    failed = [planned.run.name for planned in plan if planned.earlier.get("status") == "failed"]
    if processes.signum is not None:
        raise Interrupted(
            processes.signum, f"{finished(plan)} of {len(plan)} runs are finished; the same command goes on"
        )
    print((args.output_dir / PAGE).read_text(encoding="utf-8"))
    print(f"report: {args.output_dir / PAGE}")
    if failed:
        raise Failed(
            f"{len(failed)} of {len(plan)} runs failed ({', '.join(failed[:3])}); {PAGE} has their last lines."
        )


def chosen_runs(asked: Sweep, only: Sequence[str]) -> set[str]:
    """The names of the runs to be made.

    Raises:
        UserError: a pattern of --only that fits none.
    """
    names = [run.name for run in asked.runs]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--only {pattern!r}: no run is called so.{suggest(pattern, names)} --dry_run lists them.")
    return {name for name in names if not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)}


def plan_table(plan: Sequence[PlannedRun], chosen: set[str]) -> str:
    """What would be done, a line a run."""
    states = [planned.state if planned.run.name in chosen else "left out" for planned in plan]
    lines = [f"{state:<10} {planned.run.name}" for state, planned in zip(states, plan, strict=True)]
    return "\n".join(
        [*lines, f"{len(plan)} runs, {len(plan) - states.count(FINISHED) - states.count('left out')} to make"]
    )


def finished(plan: Sequence[PlannedRun]) -> int:
    return sum(planned.state == FINISHED for planned in plan)


def run_missing(
    output_dir: Path, asked: Sweep, plan: Sequence[PlannedRun], chosen: set[str], processes: RunProcesses
) -> None:
    """Make the chosen runs that are not finished; after each, the reports tell how far the sweep is."""
    missing = [planned for planned in plan if planned.state != FINISHED and planned.run.name in chosen]
    logger.info("%d runs, %d finished, %d to make", len(plan), finished(plan), len(missing))
    write_reports(output_dir, asked, plan)
    with tqdm(total=len(plan), initial=finished(plan), unit="run", desc=asked.name, disable=None) as bar:

        def begins(planned: PlannedRun) -> None:
            planned.folder.mkdir(parents=True, exist_ok=True)
            logger.info("%s: begins (%s)", planned.run.name, planned.state)
            planned.write("running")

        def ends(planned: PlannedRun, ending: Ending) -> None:
            planned.write(ending.status, ending.message)
            if ending.status == "finished":
                planned.state = FINISHED
                bar.update()
                value = planned.facts().get(asked.metric)
                logger.info("%s: %s %s", planned.run.name, asked.metric, value)
            else:
                logger.warning("%s: %s%s", planned.run.name, ending.status, ending.message and f": {ending.message}")
            write_reports(output_dir, asked, plan)

        processes.run(missing, begins, ends)


def write_reports(output_dir: Path, asked: Sweep, plan: Sequence[PlannedRun]) -> None:
    """Write sweep.csv, sweep.json, sweep.md and sweep.png, of what there is so far."""
    keys = ([GROUP] if any(run.group for run in asked.runs) else []) + asked.axes
    own = [key for key in dict.fromkeys(key for run in asked.runs for key in run.own) if key not in keys]
    rows = [row_of(about(planned.run, keys, own), asked.metric, *results(planned)) for planned in plan]
    cells = cells_of(rows, keys, asked.metric)
    lines = edges(cells, keys, asked.metric)
    unmeasured = [row["name"] for row in rows if row["status"] == "finished" and row[asked.metric] is None]
    if unmeasured:
        lines.append(f"{len(unmeasured)} finished runs have no {asked.metric}, such as {unmeasured[0]}")
    columns = [
        "name",
        *keys,
        *own,
        "seed",
        *dict.fromkeys((asked.metric, *LOSSES)),
        "steps",
        "seconds",
        "status",
        "message",
    ]
    write_csv(output_dir / "sweep.csv", [{name: flat(row[name]) for name in columns} for row in rows], columns)
    facts = {"name": asked.name, "metric": asked.metric, "versions": library_versions(), "warnings": lines}
    runs = [{**row, "settings": planned.settings} for row, planned in zip(rows, plan, strict=True)]
    write_json(output_dir / "sweep.json", {**facts, "runs": runs, "cells": cells})
    write_text(output_dir / PAGE, page(asked.name, asked.metric, rows, cells, keys, lines))
    with replaced_file(output_dir / "sweep.png") as scratch:
        plot_sweep(cells, keys, asked.metric, scratch, title=asked.name)


def about(run: SweepRun, keys: Sequence[str], own: Sequence[str]) -> dict:
    """Name, settings that vary (those of `base` where a run does not set them), and seed."""
    values = {GROUP: run.group, **run.settings}
    named = {key: plain(values.get(key)) for key in (*keys, *own)}
    return {"name": run.name, **named, "seed": run.settings.get("seed")}


def flat(value):
    """A value as one cell of a table."""
    return str(value) if isinstance(value, (list, dict)) else value


def results(planned: PlannedRun) -> tuple[dict, list, dict]:
    """metrics.json, training.csv and the ending of a run: those of a finished one, or how far it is."""
    ending = {"status": planned.earlier.get("status", "missing"), "message": planned.earlier.get("message", "")}
    if planned.state == FINISHED:
        return planned.facts(), planned.curve(), {"status": "finished", "message": ""}
    return {}, planned.curve() if planned.earlier else [], ending
