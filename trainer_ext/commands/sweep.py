"""scripts/sweep.py behind its flags: the plan, the runs that are missing, and after each of them the reports."""

import argparse
import fnmatch
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from ..sweeps.choice import CHOICE, REPORT
from ..sweeps.cost import plan_table
from ..sweeps.figure import plot_sweep
from ..sweeps.grid import Sweep, SweepRun, choosing_run, decision_for, following, read_sweep, reported_runs
from ..sweeps.run_folder import FINISHED, ImpossibleRun, PlannedRun, plan_run
from ..sweeps.running import Ending, RunProcesses
from ..sweeps.table import GROUP, LOSSES, METRICS, STAGE, cells_of, edges, page, row_of, table_of

logger = logging.getLogger("frankenlm.sweep")

PAGE = "sweep.md"


def sweep(args: argparse.Namespace) -> None:
    """Run a sweep as scripts/sweep.py's flags say.

    Raises:
        UserError: a mistake in the file or in any of its runs, before anything is written.
        Failed: a run failed, the others were made; or finished ones have nothing to choose by. Interrupted: a signal
            came.
    """
    check_numbers(args, least={"jobs": 1})
    with RunLog(args.log_level) as log:
        asked = read_sweep(args.config, args.set)
        check_output_dir(args.output_dir)
        asked, plan = planned_so_far(asked, args.output_dir)
        chosen_runs(asked, args.only)
        for run in later_runs(asked):
            plan_run(run, args.output_dir)  # a mistake in what is reported is found before anything is chosen
        if args.dry_run:
            print(plan_table(plan, chosen_runs(asked, args.only), len(later_runs(asked)), args.jobs))
            return
        with ExitStack() as held:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(locked_folder(args.output_dir))
            log.write_to(args.output_dir / "sweep.log", append=True)
            # again, as another sweep may have worked here until the lock was free
            for run in asked.runs:
                settle(args.output_dir / run.name)  # checkpoints that a killed run had written whole
            asked, plan = planned_so_far(asked, args.output_dir)
            processes = RunProcesses(args.jobs, lock)
            plan = run_stages(args, asked, plan, processes)
    failed = [
        planned.run.name for planned in plan if planned.earlier.get("status") == "failed" and not is_answer(planned)
    ]
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
    lacking = without_metric(plan, asked.metric)
    if lacking:
        raise Failed(
            f"{len(lacking)} finished runs have no {asked.metric} to choose by, such as {lacking[0]}: take another "
            "metric."
        )


def chosen_runs(asked: Sweep, only: Sequence[str], is_checked: bool = False) -> set[str]:
    """The names of the runs to be made.

    Raises:
        UserError: a pattern of --only that fits none, unless that `is_checked` already.
    """
    names = [run.name for run in asked.runs]
    for pattern in only:
        if not is_checked and not fnmatch.filter(names, pattern):
            raise UserError(f"--only {pattern!r}: no run is called so.{suggest(pattern, names)} --dry_run lists them.")
    return {name for name in names if not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)}


def planned_so_far(asked: Sweep, output_dir: Path, plan: Sequence[PlannedRun] = ()) -> tuple[Sweep, list[PlannedRun]]:
    """The sweep with all runs that follow from what lies in its folder, and what is to be done about each.

    Args:
        plan: what is known of some runs already.
    Raises:
        UserError: a mistake in the settings of one, or a folder of something else.
    """
    known = {planned.run.name: planned for planned in plan}
    while True:
        for run in asked.runs:
            try:
                if run.name not in known:
                    known[run.name] = plan_run(run, output_dir, asked.metric)
            except ImpossibleRun:
                if not is_grown(asked, run):
                    raise
                asked = replace(asked, refused=asked.refused | {run.name})  # the list of values ends before it
        plan = [known[run.name] for run in asked.runs if run.name not in asked.refused]
        if asked.choice is None:
            return asked, plan
        grown = following(asked, found_by(plan, asked.metric))
        if grown.runs == asked.runs:
            return asked, plan
        asked = grown


def is_grown(asked: Sweep, run: SweepRun) -> bool:
    """Whether a run is one of a choice at a value that its file does not have."""
    return run.stage == CHOICE and run.varied[asked.choice.setting] not in asked.choice.values


def found_by(plan: Sequence[PlannedRun], metric: str) -> dict[str, float]:
    """The metric of the runs of a choice, by name; infinitely bad where training gave up or the loss is no number."""
    found = {}
    for planned in plan:
        facts = planned.facts() if planned.state == FINISHED else {}
        if facts.get(metric) is not None:
            found[planned.run.name] = facts[metric]
        elif is_answer(planned) or {metric, "eval_loss"} & set(facts.get("non_finite", ())):
            found[planned.run.name] = -math.inf if METRICS[metric] else math.inf
    return found


def without_metric(plan: Sequence[PlannedRun], metric: str) -> list[str]:
    """The names of the runs of a choice that are finished, and have nothing to choose by all the same."""
    found = found_by(plan, metric)
    finished_ones = [planned.run for planned in plan if planned.state == FINISHED and planned.run.stage == CHOICE]
    return [run.name for run in finished_ones if run.name not in found]


def later_runs(asked: Sweep) -> list[SweepRun]:
    """The runs of seeds that are reported and wait for a choice, at a value that stands for the one chosen."""
    if asked.choice is None:
        return []
    begun = {(run.group, *map(str, varied_beside(asked, run).items())) for run in asked.runs if run.stage == REPORT}
    waiting = [one for one in asked.entrants if (one.group, *map(str, one.varied.items())) not in begun]
    return [run for entrant in waiting for run in reported_runs(asked, entrant, asked.choice.values[0])]


def varied_beside(asked: Sweep, run: SweepRun) -> dict:
    """What varies in a run beside the setting that is chosen."""
    return {key: value for key, value in run.varied.items() if key != asked.choice.setting}


def run_stages(
    args: argparse.Namespace, asked: Sweep, plan: list[PlannedRun], processes: RunProcesses
) -> list[PlannedRun]:
    """Make the chosen runs that are not finished, then those that follow from them, each once, until there are none."""
    tried: set[str] = set()
    while True:
        chosen = chosen_runs(asked, args.only, is_checked=True) - tried
        run_missing(args.output_dir, asked, plan, chosen, processes)
        tried |= chosen
        grown, plan = planned_so_far(asked, args.output_dir, plan)
        if processes.signum is not None or grown.runs == asked.runs:
            write_reports(args.output_dir, grown, plan)
            return plan
        asked = grown


def is_answer(planned: PlannedRun) -> bool:
    """Whether a run without a result is one all the same: a value at which training gave up."""
    return planned.run.stage == CHOICE and planned.gave_up


def finished(plan: Sequence[PlannedRun]) -> int:
    return sum(planned.state == FINISHED for planned in plan)


def run_missing(
    output_dir: Path, asked: Sweep, plan: Sequence[PlannedRun], chosen: set[str], processes: RunProcesses
) -> None:
    """Make the chosen runs that are not finished; after each, the reports tell how far the sweep is."""
    missing = [
        planned
        for planned in plan
        if planned.state != FINISHED and not is_answer(planned) and planned.run.name in chosen
    ]
    logger.info("%d runs, %d finished, %d to make", len(plan), finished(plan), len(missing))
    write_reports(output_dir, asked, plan)
    started: dict[str, float] = {}
    with tqdm(total=len(plan), initial=finished(plan), unit="run", desc=asked.name, disable=None) as bar:

        def begins(planned: PlannedRun) -> None:
            planned.folder.mkdir(parents=True, exist_ok=True)
            started[planned.run.name] = time.monotonic()
            logger.info("%s: begins (%s)", planned.run.name, planned.state)
            planned.write("running")

        def ends(planned: PlannedRun, ending: Ending) -> None:
            # of a run that was stopped and goes on, the last part alone
            planned.write(ending.status, ending.message, time.monotonic() - started[planned.run.name])
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
    told, *before = [
        cells_of([row for row in rows if row[STAGE] == stage], keys, asked.metric)
        for stage in (("",) if asked.choice is None else (REPORT, CHOICE))
    ]
    lines = call_best(asked, plan, before[0]) if asked.choice else edges(told, keys, asked.metric)
    unmeasured = [row["name"] for row in rows if row["status"] == "finished" and row[asked.metric] is None]
    if unmeasured:
        lines.append(f"{len(unmeasured)} finished runs have no {asked.metric}, such as {unmeasured[0]}")
    columns = [
        *("name", *keys, *own, "seed", *([STAGE] if asked.choice else [])),
        *dict.fromkeys((asked.metric, *LOSSES)),
        *("steps", "seconds", "status", "message"),
    ]
    write_csv(output_dir / "sweep.csv", [{name: flat(row[name]) for name in columns} for row in rows], columns)
    facts = {"name": asked.name, "metric": asked.metric, "versions": library_versions(), "warnings": lines}
    runs = [{**row, "settings": planned.settings} for row, planned in zip(rows, plan, strict=True)]
    write_json(output_dir / "sweep.json", {**facts, "runs": runs, "cells": told, "choice": before[0] if before else []})
    text = page(asked.name, asked.metric, rows, told, keys, lines)
    if before:
        text += f"\nChosen by seed {asked.choice.seed}:\n\n{table_of(before[0], keys, asked.metric)}\n"
    write_text(output_dir / PAGE, text)
    with replaced_file(output_dir / "sweep.png") as scratch:
        plot_sweep(before[0] if before else told, keys, asked.metric, scratch, title=asked.name)


def call_best(asked: Sweep, plan: Sequence[PlannedRun], cells: Sequence[dict]) -> list[str]:
    """Mark the cells of the values that are chosen; a line for each entrant that has none, with the reason."""
    found, lines = found_by(plan, asked.metric), []
    for cell in cells:
        cell["best"] = False
    for entrant in asked.entrants:
        decision = decision_for(asked, entrant, found)
        own = {**({GROUP: entrant.group} if entrant.group else {}), **entrant.varied}
        for cell in cells:
            if cell[asked.choice.setting] == decision.chosen and all(cell[key] == plain(own[key]) for key in own):
                cell["best"] = True
        if decision.chosen is None:
            named = ", ".join([entrant.group, *(f"{key}={value}" for key, value in entrant.varied.items())]).strip(", ")
            names = {choosing_run(asked, entrant, value).name for value in decision.values}
            lacking = len(names.intersection(without_metric(plan, asked.metric)))
            reason = f"{lacking} of {len(names)} have no {asked.metric}" if lacking else decision.reason
            lines.append(f"{named + ': ' if named else ''}no {asked.choice.setting} is called best: {reason}")
    return lines


def about(run: SweepRun, keys: Sequence[str], own: Sequence[str]) -> dict:
    """Name, settings that vary (those of `base` where a run does not set them), and seed."""
    values = {GROUP: run.group, **run.settings}
    named = {key: plain(values.get(key)) for key in (*keys, *own)}
    return {"name": run.name, **named, "seed": run.settings.get("seed"), STAGE: run.stage}


def flat(value):
    """A value as one cell of a table."""
    return str(value) if isinstance(value, (list, dict)) else value


def results(planned: PlannedRun) -> tuple[dict, list, dict]:
    """metrics.json, training.csv and the ending of a run: those of a finished one, or how far it is."""
    ending = {"status": planned.earlier.get("status", "missing"), "message": planned.earlier.get("message", "")}
    if planned.state == FINISHED:
        return planned.facts(), planned.curve(), {"status": "finished", "message": ""}
    return {}, planned.curve() if planned.earlier else [], ending
