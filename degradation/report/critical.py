"""The level at which a measure breaks: half way to its floor (L50), and where Cohen's d first reaches 0.8 (d-crit).

L50 asks how much of what could be lost is lost; d-crit asks how soon the loss stands out from the spread, and follows
the rule of Alejandro Wainstock's thesis, whose experiments this package repeats. A level that is not reached is said to
be so, never extrapolated. Positions are those of a `LevelAxis`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy

from .bootstrap import drawn_effects, drawn_means, drawn_weights, expanded, interval, widening
from .isotonic import crossings
from .level_axis import LevelAxis

LARGE_EFFECT = 0.8  # Cohen's "large"
REACHED, NOT_REACHED, NO_CHANGE, NO_BASELINE = "reached", "not reached", "no change shown", "nothing to compare"
AT_CHANCE = "no better than chance"
ONE_SIDED = 1.645  # standard errors: 95 % of guesses lie below


@dataclass(frozen=True, eq=False)
class Critical:
    """A critical level.

    Attributes:
        status: "reached"; "not reached" (the curve ends before); "no change shown" (the interval of the distance
            between baseline and floor includes 0, so half of it means nothing); "no better than chance"
            (see `half_level`); "nothing to compare" (no baseline, no other level, or a lone observation, which has no
            spread).
        position: on the axis; NaN unless reached.
        low, high: ends of the 95 % interval, inf where that end is "not reached", NaN without an interval.
        reached_share: in how many of the draws it is reached, 0 to 1; NaN without draws.
        threshold: the value of the measure (L50) or of d that had to be passed.
        floor: where the fall ends; NaN for d-crit.
        drawn: (B,), position in each draw, inf where not reached; what orders two measures of the same repeats.
    """

    status: str
    position: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reached_share: float = math.nan
    threshold: float = math.nan
    floor: float = math.nan
    drawn: numpy.ndarray | None = field(default=None, repr=False)

    @property
    def reached(self) -> bool:
        return self.status == REACHED

    def record(self, axis: LevelAxis) -> dict[str, Any]:
        """Return it for JSON, positions as levels; an open end of the interval has high_reached False."""
        ends = {
            name: axis.level_at(value) if math.isfinite(value) else None
            for name, value in (("level", self.position), ("low", self.low), ("high", self.high))
        }
        return {
            "status": self.status,
            **ends,
            "high_reached": None if math.isnan(self.high) else math.isfinite(self.high),
            "reached_share": _or_none(self.reached_share),
            "threshold": _or_none(self.threshold),
            "floor": _or_none(self.floor),
        }

    def text(self, axis: LevelAxis) -> str:
        """Return it for a table: "0.432 (0.401 to 0.466)", "not reached", "0.432 (0.40 to not reached)"."""
        if not self.reached:
            return self.status
        at = axis.text_at(self.position)
        if math.isnan(self.low):
            return at
        ends = [axis.text_at(end) if math.isfinite(end) else "not reached" for end in (self.low, self.high)]
        return f"{at} ({ends[0]} to {ends[1]})"


def half_level(
    values: numpy.ndarray,
    counts: numpy.ndarray,
    axis: LevelAxis,
    worse: int | None,
    floor: float | None = None,
    questions: float | None = None,
) -> Critical:
    """Return L50: the first level where the isotonic fit of the mean is half way from baseline to floor.

    The fit is weighted by the number of repeats behind each level, and a straight line between levels. The floor is
    drawn anew with the repeats where it is the value at the most severe level.

    Args:
        values: (R, L), a row for each repeat; NaN is a missing cell. The first level is the baseline.
        counts: (B, R), see `draw_counts`.
        worse: +1 if damage raises the measure, -1 if it lowers it; None takes the sign from the last level.
        floor: the chance level; None takes the mean at the most severe level.
        questions: number of different questions behind a chance level. Repeats do not show how well a guesser may
            do on these questions by luck (without sampling they even agree), so the baseline must be better than 95 %
            of guessers; otherwise the status is "no better than chance". None asks for no margin.
    """
    values, positions = _with_data(values, axis.positions)
    if len(positions) < 2 or not axis.has_baseline or positions[0] != axis.positions[0]:
        return Critical(NO_BASELINE)
    own = numpy.ones((1, len(values)))
    observed = _distances(values, own, floor)
    sign = worse or _sign(observed[1][0] - observed[0][0])
    point = _half_positions(values, own, positions, floor, sign)[0]
    base, end = observed[0][0], observed[1][0]
    facts = {"threshold": (base + end) / 2, "floor": end}
    if floor is not None and questions and sign * (end - base) <= guess_margin(floor, questions):
        return Critical(AT_CHANCE, **facts)
    if not _room_is_shown(values, counts, floor, sign):
        return Critical(NO_CHANGE, **facts)
    repeats = int(numpy.isfinite(values).any(axis=1).sum())
    return _critical(point, _draws(values, counts, positions, floor, sign), repeats, positions, **facts)


def guess_margin(chance: float, questions: float) -> float:
    """Return how far above chance guessing gets in 1 of 20 cases: 1.645 standard errors of a share.

    A chance of 0 counts as one lucky question.
    """
    share = min(max(chance, 1 / questions), 0.5)
    return ONE_SIDED * math.sqrt(share * (1 - share) / questions)


def effect_level(
    moments: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
    counts: numpy.ndarray,
    axis: LevelAxis,
    worse: int | None,
    threshold: float = LARGE_EFFECT,
) -> Critical:
    """Return d-crit: the first level, interpolated, where Cohen's d against the baseline reaches `threshold`.

    Args:
        moments: count, sum and sum of squares of the observations of each cell, each (R, L). The observations may be
            the answers (the spread is then that between answers) or the means of the repeats.
        counts, worse: as in `half_level`. Only a change in the direction of `worse` counts.
    """
    present = (moments[0] > 0).any(axis=0)
    positions = axis.positions[present]
    if len(positions) < 2 or not axis.has_baseline or not present[0]:
        return Critical(NO_BASELINE, threshold=threshold)
    moments = tuple(part[:, present] for part in moments)
    observed = drawn_effects(moments, numpy.ones((1, len(counts[0]))), 0)
    if numpy.isnan(observed).any():  # a lone observation has no spread
        return Critical(NO_BASELINE, threshold=threshold)
    sign = worse or _sign(observed[0, -1])
    point = first_reached(sign * observed, positions, threshold)[0]
    drawn = None
    if not _alone(moments[0] > 0):
        drawn = first_reached(sign * drawn_effects(moments, counts, 0), positions, threshold)
    return _critical(point, drawn, int((moments[0] > 0).any(axis=1).sum()), positions, threshold=threshold)


def first_reached(effects: numpy.ndarray, positions: numpy.ndarray, threshold: float) -> numpy.ndarray:
    """Return where each row of effects, (B, L), first reaches the threshold, on straight lines between levels: (B,).

    inf: it does not; NaN: the row has a NaN. An infinite effect is reached at its level.
    """
    reached = effects >= threshold
    first = reached.argmax(axis=1)
    rows = numpy.arange(len(effects))
    right, left = effects[rows, first], effects[rows, numpy.maximum(first - 1, 0)]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        share = numpy.where(numpy.isfinite(right) & numpy.isfinite(left), (threshold - left) / (right - left), 1.0)
    start = positions[numpy.maximum(first - 1, 0)]
    found = numpy.where(reached.any(axis=1), start, numpy.inf)
    later = reached.any(axis=1) & (first > 0)
    found[later] += share[later] * (positions[first[later]] - start[later])
    return numpy.where(numpy.isnan(effects).any(axis=1), numpy.nan, found)


def earlier_share(first: Critical, second: Critical) -> float | None:
    """Return in which share of the draws `first` is reached before `second`; ties count half, None without draws.

    Both must come from the same `counts`: only then does a draw take the same repeats for both.
    """
    if first.drawn is None or second.drawn is None:
        return None
    kept = ~(numpy.isnan(first.drawn) | numpy.isnan(second.drawn))
    if not kept.any():
        return None
    a, b = first.drawn[kept], second.drawn[kept]
    return float((a < b).mean() + (a == b).mean() / 2)


def _critical(
    point: float, drawn: numpy.ndarray | None, repeats: int, positions: numpy.ndarray, **facts: float
) -> Critical:
    share = low = high = math.nan
    if drawn is not None and not numpy.isnan(drawn).all():
        low, high = _widened(point, *(float(end) for end in interval(drawn)), repeats, positions)
        share = float(numpy.isfinite(drawn[~numpy.isnan(drawn)]).mean())
    if not math.isfinite(point):
        return Critical(NOT_REACHED, reached_share=share, drawn=drawn, **facts)
    return Critical(REACHED, float(point), low, high, share, drawn=drawn, **facts)


def _widened(point: float, low: float, high: float, repeats: int, positions: numpy.ndarray) -> tuple[float, float]:
    """Return the ends of a percentile interval moved outward as far as so few repeats ask for, as those of means are.

    Levels that were not tested are not named: an end beyond the most severe one is "not reached", and none is milder
    than the baseline.
    """
    if not math.isfinite(point):
        return low, high
    factor = float(widening(numpy.array([repeats]))[0])
    lower = max(float(positions[0]), point - factor * (point - low))
    upper = point + factor * (high - point) if math.isfinite(high) else math.inf
    return lower, upper if upper <= positions[-1] else math.inf


def _with_data(values: numpy.ndarray, positions: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    present = numpy.isfinite(values).any(axis=0)
    return values[:, present], positions[present]


def _distances(values, counts, floor: float | None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Baseline and floor of each draw, (B,) each."""
    curves = drawn_means(values[:, [0, -1]], counts)
    return curves[:, 0], curves[:, 1] if floor is None else numpy.full(len(curves), floor)


def _half_positions(values, counts, positions, floor: float | None, sign: int) -> numpy.ndarray:
    base, end = _distances(values, counts, floor)
    falling = -sign * drawn_means(values, counts)  # as a curve that falls with damage
    found = crossings(falling, drawn_weights(values, counts), positions, -sign * (base + end) / 2)
    # below half way at the baseline already: the draw has nothing to lose
    return numpy.where(found == -numpy.inf, numpy.inf, found)


def _room_is_shown(values, counts, floor: float | None, sign: int) -> bool:
    """Whether baseline and floor are told apart: by the interval of their distance or, from one repeat, by sign.

    The interval is widened as that of a mean is; where the sign is taken from the data too, 0 still lies outside of it
    on either side in 1 of 20 cases without a change.
    """
    base, end = _distances(values, numpy.ones((1, len(values))), floor)
    distance = sign * (end - base)
    if _alone(numpy.isfinite(values)):
        return bool((distance > 0).all())
    base, end = _distances(values, counts, floor)
    used = values[:, :1] if floor is not None else values[:, [0, -1]]
    repeats = numpy.isfinite(used).sum(axis=0).min(keepdims=True)
    low, _ = expanded(distance, *interval(sign * (end - base)[:, None]), repeats)
    return bool(low[0] > 0)


def _draws(values, counts, positions, floor, sign) -> numpy.ndarray | None:
    return None if _alone(numpy.isfinite(values)) else _half_positions(values, counts, positions, floor, sign)


def _alone(present: numpy.ndarray) -> bool:
    """Whether all cells with data, (R, L) bool, are of one repeat: drawing it again and again shows no spread."""
    return bool(present.any(axis=1).sum() < 2)


def _sign(difference: float) -> int:
    return 1 if difference >= 0 else -1


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
