"""Which runs a suite is made of, and the file that holds those that are finished.

A cell is a task put to a mixer at one size. Its learning rates are tried with the selection seed; the rate with the
best accuracy there is trained again with the seeds that are reported, whose rows no choice has seen.
"""

import csv
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.cli import UserError
from ..common.files import write_csv
from .models import RECURRENT, model_config
from .task import SyntheticTask
from .tasks import MQAR
from .training import TEST, TRAIN, SuiteRun, stream, training_rows

logger = logging.getLogger("frankenlm.suite")

SELECTION, REPORT = "selection", "report"
MEASURED = {
    "accuracy": float,
    "loss": float,
    "chance": float,
    "parameters": int,
    "state_size": int,
    "seconds": float,
}
KINDS = {
    "config": str,
    "role": str,
    "task_fields": str,
    **{field.name: field.type for field in dataclasses.fields(SuiteRun)},
    **MEASURED,
}
COLUMNS = tuple(KINDS)


@dataclass(frozen=True)
class SuiteCell:
    """A task put to a mixer at one size."""

    task: str
    mixer: str
    hidden_size: int
    mamba_state: int
    steps: int


@dataclass(frozen=True)
class CommonSize:
    """The size that every task has of every mixer: what is said of mixers side by side is said at this one alone."""

    hidden_size: int
    mamba_state: int
    steps: int


@dataclass(frozen=True)
class SuitePlan:
    """What is to be run.

    tasks: by name. mixers: names in `MODELS`. hidden_sizes: the first is that of every task, the others are for MQAR
    alone. mamba_states: the first is that of every task, the others are for MQAR at the first hidden size. steps: the
    first are those of every task; with the others the recurrent mixers are given MQAR again, at the first sizes.
    """

    tasks: Mapping[str, SyntheticTask]
    mixers: tuple[str, ...]
    hidden_sizes: tuple[int, ...]
    mamba_states: tuple[int, ...]
    learning_rates: tuple[float, ...]
    selection_seed: int
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    batch_size: int
    test_rows: int

    @property
    def common(self) -> CommonSize:
        return CommonSize(self.hidden_sizes[0], self.mamba_states[0], self.steps[0])

    @property
    def cells(self) -> list[SuiteCell]:
        """What is run, in order: of each task all mixers at the first size, and then MQAR at the others."""
        width, state, steps = dataclasses.astuple(self.common)
        cells = [SuiteCell(task, mixer, width, state, steps) for task in self.tasks for mixer in self.mixers]
        if MQAR in self.tasks:
            widths = [(mixer, other) for other in self.hidden_sizes[1:] for mixer in self.mixers]
            cells += [SuiteCell(MQAR, mixer, other, state, steps) for mixer, other in widths]
            if "mamba" in self.mixers:
                cells += [SuiteCell(MQAR, "mamba", width, other, steps) for other in self.mamba_states[1:]]
            again = [(mixer, other) for other in self.steps[1:] for mixer in self.mixers if mixer in RECURRENT]
            cells += [SuiteCell(MQAR, mixer, width, state, other) for mixer, other in again]
            cells.sort(key=lambda cell: cell.task != MQAR)  # stable: MQAR first, at its first size first
        return cells

    @property
    def runs_of_a_cell(self) -> int:
        return len(self.learning_rates) + len(self.seeds)

    def run(self, cell: SuiteCell, learning_rate: float, seed: int) -> SuiteRun:
        return SuiteRun(
            **dataclasses.asdict(cell),
            learning_rate=learning_rate,
            seed=seed,
            batch_size=self.batch_size,
            test_rows=self.test_rows,
        )

    def trials(self, cell: SuiteCell) -> list[SuiteRun]:
        """The runs that choose a cell's learning rate."""
        return [self.run(cell, rate, self.selection_seed) for rate in self.learning_rates]

    def reported(self, cell: SuiteCell, learning_rate: float) -> list[SuiteRun]:
        """The runs that the table rests on."""
        return [self.run(cell, learning_rate, seed) for seed in self.seeds]

    def check(self) -> None:
        """Build every configuration, and draw a batch of every task and seed.

        Raises:
            UserError: a size that one of them cannot have; a test that leaves a task no row to train on.
        """
        for cell in self.cells:
            try:
                model_config(cell.mixer, self.tasks[cell.task], cell.hidden_size, cell.mamba_state)
            except ValueError as error:
                raise UserError(f"{cell.mixer} at --hidden_sizes {cell.hidden_size}: {error}") from error
        for task in self.tasks.values():
            for seed in (self.selection_seed, *self.seeds):
                test = task.draw(self.test_rows, stream(seed, TEST), is_test=True)
                training_rows(task, self.batch_size, stream(seed, TRAIN), set(test.keys()))


def digest(run: SuiteRun, task: SyntheticTask) -> str:
    """What tells a run's settings from others', its task's sizes among them."""
    facts = {**dataclasses.asdict(run), "task_fields": dataclasses.asdict(task)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class FinishedRuns:
    """The rows of suite.csv, one a run, by digest; the file is replaced whole after every run."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = {row["config"]: row for row in read_rows(path)}

    def of(self, run: SuiteRun, task: SyntheticTask) -> dict[str, Any] | None:
        """The row of a run; None where it is not finished."""
        return self.rows.get(digest(run, task))

    def add(self, run: SuiteRun, task: SyntheticTask, role: str, measured: Mapping[str, Any]) -> dict[str, Any]:
        row = {
            "config": digest(run, task),
            "role": role,
            "task_fields": json.dumps(dataclasses.asdict(task), sort_keys=True),
            **dataclasses.asdict(run),
            **{name: round(value, 6) if KINDS[name] is float else value for name, value in measured.items()},
        }
        self.rows[row["config"]] = row
        write_csv(self.path, self.rows.values(), COLUMNS)
        return row

    def arrange(self, plan: SuitePlan) -> list[dict[str, Any]]:
        """Write the rows of the plan first, in its order and with its roles, before others; return the plan's."""
        planned = {row["config"]: row for row in self.in_plan(plan)}
        self.rows = planned | {config: row for config, row in self.rows.items() if config not in planned}
        write_csv(self.path, self.rows.values(), COLUMNS)
        return list(planned.values())

    def in_plan(self, plan: SuitePlan) -> Iterator[dict[str, Any]]:
        """The rows that are runs of the plan, in its order.

        The role is the plan's: a run that was reported once may be one that chooses now, and then it is no evidence.
        """
        for cell in plan.cells:
            trials = [self.of(run, plan.tasks[cell.task]) for run in plan.trials(cell)]
            yield from ({**row, "role": SELECTION} for row in trials if row)
            if None not in trials:
                reported = [self.of(run, plan.tasks[cell.task]) for run in plan.reported(cell, best_rate(trials))]
                yield from ({**row, "role": REPORT} for row in reported if row)


def best_rate(trials: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate of the row with the best accuracy; of several, the one with the least loss."""

    def worth(row: Mapping[str, Any]) -> tuple[float, float]:
        return row["accuracy"], -math.inf if math.isnan(row["loss"]) else -row["loss"]

    return max(trials, key=worth)["learning_rate"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier call; none if there was none.

    Raises:
        UserError: the file is not such a table.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(set(row) != set(COLUMNS) or None in row.values() for row in rows):
            raise ValueError("its columns are others")
        return [{name: _read(name, value) for name, value in row.items()} for row in rows]
    except ValueError as error:
        raise UserError(f"{path} is no table of a suite ({error}): choose another --output_dir.") from error


def _read(name: str, text: str) -> Any:
    """A cell of the file; the loss of a run that diverged is an empty one."""
    return math.nan if name == "loss" and not text else KINDS[name](text)
