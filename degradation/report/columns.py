"""Rows -> columns of measures, and measures of whole cells. Knows rows and texts, never a model."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy
from tqdm import tqdm

from ..measures.names import GRADED, SKILLS
from .result_files import damage_level, series_key

Row = Mapping[str, Any]
MeasureRow = Callable[[Row, Any], Mapping[str, Any]]
MeasureCell = Callable[[Sequence[Row]], Mapping[str, Any]]
FindPrompt = Callable[[Row], Any]
ENDS = {"ended_by_itself": ("eos", "stop", "filled"), "cut_off": ("length",), "non_finite": ("nan",)}
UNREAD = ("output", "gen_params")  # fields no measure looks at, left out of what goes to other processes


@dataclass(frozen=True)
class MeasuredRows:
    """columns: name -> float64 (rows,), NaN where a measure is not defined. cells: `cell_key` of a row -> measures."""

    columns: dict[str, numpy.ndarray]
    cells: dict[tuple, dict[str, float]]


def cell_key(row: Row) -> tuple:
    """Return the cell of a row: its series, level and repeat."""
    return (*series_key(row), damage_level(row), row["repeat_index"])


def measure_rows(
    rows: Sequence[Row],
    measure: MeasureRow,
    find_prompt: FindPrompt,
    measure_cell: MeasureCell | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> MeasuredRows:
    """Measure every row and every cell; measures that are texts are left out.

    The reasons for which answers ended become three shares: ended by itself, cut off at the limit, not finite.

    Args:
        measure_cell: measures that need all texts of a cell at once.
        workers: processes; 91,000 rows take two minutes in one. They start anew, so a script that asks for several
            must have its work behind `if __name__ == "__main__"`, and the two functions must be importable.
        progress: show a bar; None shows it on a terminal only.

    Raises:
        ValueError: `workers` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1.")
    rows_of_cell: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        rows_of_cell.setdefault(cell_key(row), []).append(number)
    tasks = (
        (measure, measure_cell, [_slim(rows[i]) for i in numbers], [find_prompt(rows[i]) for i in numbers])
        for numbers in rows_of_cell.values()
    )
    found = MeasuredRows({}, {})
    hidden = None if progress is None else not progress
    with tqdm(total=len(rows), desc="measuring", unit="row", disable=hidden) as bar:
        for (key, numbers), (of_rows, of_cell) in zip(rows_of_cell.items(), _work(tasks, workers), strict=True):
            found.cells[key] = of_cell
            for number, values in zip(numbers, of_rows, strict=True):
                for name, value in values.items():
                    _column(found.columns, name, len(rows))[number] = value
            bar.update(len(numbers))
    return found


def _column(columns: dict[str, numpy.ndarray], name: str, length: int) -> numpy.ndarray:
    """Return a column, NaN throughout where it is new."""
    if name not in columns:
        columns[name] = numpy.full(length, numpy.nan)
    return columns[name]


def _slim(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in UNREAD}


def _work(tasks: Iterable[tuple], workers: int) -> Iterator[tuple[list[dict], dict]]:
    if workers == 1:
        yield from map(_measure, tasks)
        return
    # a fork would copy the locks of threads that torch has started
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measure, tasks, chunksize=16)


def _measure(task: tuple) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Measure the rows of one cell, and the cell."""
    measure, measure_cell, rows, prompts = task
    found = [
        _numbers({**measure(row, prompt), **_ending(row.get("finish_reason"))})
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    return found, _numbers(measure_cell(rows)) if measure_cell else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (bool, int, float))}


def _ending(reason: str | None) -> dict[str, float | None]:
    return {name: None if reason is None else float(reason in reasons) for name, reasons in ENDS.items()}


def add_accuracies(
    columns: dict[str, numpy.ndarray], rows: Sequence[Row], find_prompt: FindPrompt, correct: str
) -> numpy.ndarray:
    """Turn the column `correct` into `accuracy` and `accuracy/<skill>`, and give `score` its `score/<part>`.

    Only graded rows count; an answer without anything that could be one is wrong.

    Returns:
        The chance level of each row, (rows,): that of the prompt's choices, 0 for an open question, NaN for a row
        without a key.
    """
    chance = numpy.full(len(rows), numpy.nan)
    if correct in columns:
        columns["accuracy"] = columns.pop(correct)
    for whole, prefix in zip(GRADED, SKILLS, strict=True):
        if whole not in columns:
            continue
        for number in numpy.flatnonzero(numpy.isfinite(columns[whole])):
            prompt = find_prompt(rows[number])
            _column(columns, prefix + prompt.skill, len(rows))[number] = columns[whole][number]
            chance[number] = prompt.chance or 0.0
    return chance
