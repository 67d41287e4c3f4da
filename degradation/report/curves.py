"""One measure over the levels of one series: mean, interval, critical levels, trend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy
from tqdm import tqdm

from ..measures.names import Measure
from .bootstrap import DRAWS, SEED, draw_counts, holm, mean_curve, median_curve, spearman
from .cells_of_series import Series
from .critical import Critical, effect_level, half_level

MEDIANS = ("perplexity",)  # its mean would be that of the worst repeat


@dataclass(frozen=True, eq=False)
class Curve:
    """Attributes:

    values: (R, L), the cells. stats: centre, low, high, n, each (L,); centre is a mean or, for perplexity, a median.
    half: L50. effect: d-crit with the spread between answers; effect_repeats: with that between the repeats' means.
    trend: Spearman's correlation of level and centre; p_holm: p among all curves made together.
    effect is None for a measure of whole cells.
    """

    series: Series
    measure: Measure
    values: numpy.ndarray
    stats: Mapping[str, numpy.ndarray]
    half: Critical
    effect: Critical | None
    effect_repeats: Critical
    trend: Mapping[str, Any]

    @property
    def chance(self) -> float | None:
        return self.series.chance.get(self.measure.name)

    @property
    def baseline(self) -> float:
        return float(self.stats["centre"][0]) if self.series.has_baseline else float("nan")

    @property
    def last(self) -> float:
        return float(self.stats["centre"][-1])

    def text_at(self, place: int) -> str:
        """Return the value at a level with its interval, for a table."""
        stats, text = self.stats, self.measure.text
        value, low, high = (text(stats[name][place]) for name in ("centre", "low", "high"))
        known = numpy.isfinite(stats["low"][place])
        return f"{value} ({low.removesuffix(' %')}–{high.removesuffix(' %')})" if known else value


def make_curves(
    series: Sequence[Series],
    measures: Mapping[str, Measure],
    draws: int = DRAWS,
    seed: int = SEED,
    progress: bool | None = None,
) -> list[Curve]:
    """Summarise every measure of every series; equal seeds give equal numbers.

    Args:
        measures: what is known of the measures, by name; one without an entry has no better direction.
    """
    hidden = None if progress is None else not progress
    pairs = [(one, name) for one in series for name in one.cells]
    bar = tqdm(pairs, desc="bootstrap", unit="curve", disable=hidden)
    return _with_holm([_curve(one, measures.get(name, Measure(name, name)), draws, seed) for one, name in bar])


def _with_holm(curves: Sequence[Curve]) -> list[Curve]:
    """Add to each trend its p-value among all of them."""
    known = [curve.trend["p"] for curve in curves if curve.trend["p"] is not None]
    together = iter(holm(known))
    return [
        replace(curve, trend={**curve.trend, "p_holm": None if curve.trend["p"] is None else next(together)})
        for curve in curves
    ]


def _curve(series: Series, measure: Measure, draws: int, seed: int) -> Curve:
    values = series.cells[measure.name]
    counts = _counts(len(values), draws, seed)
    if measure.name in MEDIANS:
        stats = median_curve(values, draws, seed)
        stats = {"centre": stats.pop("median"), **stats}
        stats["low"] = numpy.maximum(stats["low"], 1.0)  # no perplexity is lower
    else:
        stats = mean_curve(values, counts)
        stats = {"centre": stats.pop("mean"), **stats}
    # a widened interval may reach beyond what a measure can be
    least, most = (0.0, 1.0) if measure.share else (measure.least, math.inf)
    stats |= {side: numpy.clip(stats[side], least, most) for side in ("low", "high")}
    # medians have no isotonic mean: perplexity breaks where its logarithm does
    ranked = numpy.log(values) if measure.name in MEDIANS else values
    moments = series.moments.get(measure.name)
    return Curve(
        series,
        measure,
        values,
        stats,
        half_level(ranked, counts, series.axis, measure.worse, series.chance.get(measure.name), _questions(moments)),
        effect_level(moments, counts, series.axis, measure.worse) if moments else None,
        effect_level(_repeat_moments(ranked), counts, series.axis, measure.worse),
        spearman(series.axis.positions, stats["centre"], measure.worse, seed),
    )


def _questions(moments: tuple[numpy.ndarray, ...] | None) -> float | None:
    """How many answers the fullest undamaged cell has: a question each."""
    return float(moments[0][:, 0].max()) or None if moments else None


def _repeat_moments(values: numpy.ndarray) -> tuple[numpy.ndarray, ...]:
    present = numpy.isfinite(values)
    centre = values[present].mean() if present.any() else 0.0
    filled = numpy.where(present, values - centre, 0.0)
    return present.astype(numpy.float64), filled, filled**2


@lru_cache(maxsize=16)
def _counts(repeats: int, draws: int, seed: int) -> numpy.ndarray:
    return draw_counts(repeats, draws, seed)


def by_task(curves: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Curves by model and task, in order of first appearance."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        found.setdefault((curve.series.key.model, curve.series.key.task), []).append(curve)
    return found
