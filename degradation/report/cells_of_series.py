"""Measured rows -> cells (level x repeat) of every series."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from ..measures.names import GRADED, SKILLS
from .columns import MeasuredRows
from .harness_tasks import task_values
from .level_axis import LevelAxis
from .result_files import ResultFile, common, damage_level, identity, run_of, series_key

# records of a cell, measured by the runner; the first two may stand in rows too
MODEL_MEASURES = ("perplexity", "log_perplexity", "kl_to_baseline")


@dataclass(frozen=True, order=True)
class SeriesKey:
    """What a curve over levels belongs to, see `result_files.series_key`.

    `experiment` tells apart runs that differ in settings alone.
    """

    model: str
    task: str
    method: str
    group: str
    experiment: str


@dataclass(eq=False)
class Series:
    """All cells of one group damaged by one method.

    Attributes:
        axis: its L levels, the baseline first where there is one.
        repeats: the R repeat indices.
        answers: (R, L) number of rows; 0 is a missing cell.
        cells: measure -> (R, L) mean over the cell's rows, NaN where not defined.
        moments: measure -> count, sum, sum of squares of the rows, each (R, L), centred; of measures of rows only.
        rel_l2: (R, L) relative L2 distance of the damaged weights, NaN where not recorded.
        chance: measure -> chance level of an accuracy or score.
        label: a name that no other series of the same model and task has.
    """

    key: SeriesKey
    axis: LevelAxis
    repeats: tuple[int, ...]
    answers: numpy.ndarray
    rel_l2: numpy.ndarray
    cells: dict[str, numpy.ndarray] = field(default_factory=dict)
    moments: dict[str, tuple[numpy.ndarray, ...]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def has_baseline(self) -> bool:
        return self.axis.has_baseline

    @property
    def mean_rel_l2(self) -> numpy.ndarray:
        """(L,): mean over the repeats; 0 at the baseline, NaN where not recorded."""
        present = numpy.isfinite(self.rel_l2)
        sums, n = numpy.where(present, self.rel_l2, 0).sum(axis=0), present.sum(axis=0)
        mean = numpy.divide(sums, n, out=numpy.full(len(sums), numpy.nan), where=n > 0)
        if self.has_baseline:
            mean[0] = 0.0
        return mean


def all_rows(files: Iterable[ResultFile]) -> list[dict[str, Any]]:
    """Join the rows of several files.

    Raises:
        ValueError: two files hold the same row, so one of them is a copy.
    """
    rows: dict[tuple, tuple[dict[str, Any], str]] = {}
    for file in files:
        for row in file.rows:
            key = identity(row)
            if key in rows:
                raise ValueError(
                    f"{file.path} and {rows[key][1]} hold the same row (experiment {row['experiment_id']!r}, level "
                    f"{row['level_value']}, repeat {row['repeat_index']}, prompt {row['prompt_id']}): give one of them."
                )
            rows[key] = row, str(file.path)
    return [row for row, _ in rows.values()]


def build_series(
    rows: Sequence[Mapping[str, Any]],
    measured: MeasuredRows,
    chance: numpy.ndarray,
    files: Sequence[ResultFile] = (),
) -> list[Series]:
    """Gather rows into series, in order of first appearance, with the journal's records of cells and lesions.

    Args:
        measured: as from `measure_rows`. chance: as from `add_accuracies`.
    """
    places: dict[SeriesKey, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(SeriesKey(*series_key(row)), []).append(place)
    found = {}
    for key, chosen in places.items():
        found[key] = _series(key, [rows[i] for i in chosen], _Picked(measured.columns, chosen), chance[chosen])
    for (*key, level, repeat), values in measured.cells.items():
        one = found[SeriesKey(*key)]
        _put(one, _Grid(one.axis, one.repeats).place({"level_value": level, "repeat_index": repeat}), values)
    _add_records(list(found.values()), files)
    _name(list(found.values()))
    return list(found.values())


class _Picked:
    """Columns restricted to some rows."""

    def __init__(self, columns: Mapping[str, numpy.ndarray], chosen: Sequence[int]):
        self.columns, self.chosen = columns, numpy.asarray(chosen)

    def items(self):
        for name, column in self.columns.items():
            part = column[self.chosen]
            if numpy.isfinite(part).any():
                yield name, part


def _series(key: SeriesKey, rows: Sequence[Mapping[str, Any]], columns: _Picked, chance: numpy.ndarray) -> Series:
    levels = common(damage_level(row) for row in rows)
    axis = LevelAxis.of(key.method, [level for level in levels if level is not None], None in levels)
    repeats = tuple(sorted({row["repeat_index"] for row in rows}))
    grid = _Grid(axis, repeats)
    cells = grid.places(rows)
    ones = numpy.ones(len(rows))
    series = Series(key, axis, repeats, grid.sums(cells, ones), grid.mean(cells, _column(rows, "damage_rel_l2")))
    for name, values in columns.items():
        series.moments[name] = grid.moments(cells, values)
        series.cells[name] = grid.mean(cells, values)
        if name in GRADED or name.startswith(SKILLS):
            series.chance[name] = float(chance[numpy.isfinite(values)].mean())
    perplexity = grid.mean(cells, _column(rows, "perplexity"))
    if numpy.isfinite(perplexity).any():
        series.cells["perplexity"], series.cells["log_perplexity"] = perplexity, numpy.log(perplexity)
    return series


@dataclass(frozen=True, eq=False)
class _Grid:
    """Repeats x levels, and sums over the rows of each cell."""

    axis: LevelAxis
    repeats: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.repeats), len(self.axis.levels)

    def place(self, record: Mapping[str, Any]) -> int | None:
        """Number of a record's cell, row by row; None for one that is not in the grid."""
        level = damage_level(record)
        columns = {None if entry == 0 else entry: place for place, entry in enumerate(self.axis.levels)}
        if level not in columns or record["repeat_index"] not in self.repeats:
            return None
        return self.repeats.index(record["repeat_index"]) * len(self.axis.levels) + columns[level]

    def places(self, rows: Sequence[Mapping[str, Any]]) -> numpy.ndarray:
        known: dict[tuple, int | None] = {}
        found = []
        for row in rows:
            key = damage_level(row), row["repeat_index"]
            if key not in known:
                known[key] = self.place(row)
            found.append(known[key])
        return numpy.array(found, dtype=numpy.int64)

    def sums(self, cells: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
        filled = numpy.where(numpy.isfinite(values), values, 0.0)
        return numpy.bincount(cells, filled, minlength=self.shape[0] * self.shape[1]).reshape(self.shape)

    def mean(self, cells: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
        n = self.sums(cells, numpy.isfinite(values).astype(numpy.float64))
        return numpy.divide(self.sums(cells, values), n, out=numpy.full(self.shape, numpy.nan), where=n > 0)

    def moments(self, cells: numpy.ndarray, values: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
        centred = values - numpy.nanmean(values)
        n = self.sums(cells, numpy.isfinite(values).astype(numpy.float64))
        return n, self.sums(cells, centred), self.sums(cells, centred**2)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> numpy.ndarray:
    return numpy.array([numpy.nan if row.get(name) is None else row[name] for row in rows], dtype=numpy.float64)


def _add_records(series: Sequence[Series], files: Sequence[ResultFile]) -> None:
    """Put the journal's records of cells (perplexity, KL) and lesions (relative L2) where they belong."""
    for file in files:
        experiments = {row["experiment_id"] for row in file.rows}
        for one in series:
            if one.key.experiment not in experiments:
                continue
            grid = _Grid(one.axis, one.repeats)
            for record in file.cells:
                if (record["degradation_method"], record["param_group_name"]) == (one.key.method, one.key.group):
                    found = {name: record.get(name) for name in MODEL_MEASURES} | task_values(record)
                    _put(one, grid.place(record), found)
            for record in file.lesions:
                place = grid.place(record)
                if (record["method"], record["group"]) == (one.key.method, one.key.group) and place is not None:
                    one.rel_l2.flat[place] = numpy.nan if record["rel_l2"] is None else record["rel_l2"]


def _put(series: Series, place: int | None, found: Mapping[str, float | None]) -> None:
    for name, value in found.items():
        if place is not None and value is not None:
            series.cells.setdefault(name, numpy.full(series.answers.shape, numpy.nan)).flat[place] = value


def _name(series: Sequence[Series]) -> None:
    """Give each series a label: its group, with method and experiment where the group alone would not do."""
    for one in series:
        near = [other for other in series if (other.key.model, other.key.task) == (one.key.model, one.key.task)]
        one.label = one.key.group
        if len({other.key.method for other in near}) > 1:
            one.label += f", {one.key.method}"
        same = [other for other in near if (other.key.method, other.key.group) == (one.key.method, one.key.group)]
        if len(same) > 1:
            one.label += f" ({run_of(one.key.experiment)})"
