"""Which skill breaks first, and how sure that is: half levels with intervals, paired differences, matched questions.

A skill is compared on questions that the undamaged model answers, chosen by one wording and measured by another: what
questions that were chosen by luck lose by themselves (regression to the mean) is lost at the baseline already, not
under damage. L50 is where a skill's mean share has fallen half way from its own baseline to chance, so that skills that
begin lower are not behind from the start; what remains of that is asked by `matched_pairs`, questions of two skills
that the undamaged model answers equally surely.

Two things vary, the damage (repeats) and the questions (topics: those of one share answers and wordings). A draw takes
both anew, independently (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics
1(2); its variance errs to the large side), the same repeats for all skills. From the draws come standard errors, and
intervals and p-values by Student's t with as many degrees of freedom as the scarcer of the two leaves.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ..report.bootstrap import SEED, draw_counts, holm, student
from ..report.isotonic import crossings
from .items import SIZE

CHANCE = 1 / SIZE
DRAWS = 2_000
CALIPER = 1.0  # nats between the margins of two questions that are matched
FEWEST = 3  # topics, or matched questions, below which nothing is said of a difference
STEPS = 20_001  # of the numerical integral


@dataclass(frozen=True, eq=False)
class Questions:
    """The chosen questions of one skill, damaged.

    Attributes:
        topics: (n,), the number of each question's topic.
        margins: (n,), by the first wording, undamaged, in nats.
        values: (R, L, n), the right answers' shares by the second wording; the first level is the baseline.
    """

    skill: str
    topics: numpy.ndarray
    margins: numpy.ndarray
    values: numpy.ndarray

    def __getitem__(self, chosen: numpy.ndarray) -> "Questions":
        return Questions(self.skill, self.topics[chosen], self.margins[chosen], self.values[:, :, chosen])


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its 95 % interval and two-sided p-value against 0; NaN where nothing can be said.

    reached: in which share of the draws the levels that it rests on were reached at all.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reached: float = math.nan


def half_levels(questions: Questions, repeats: numpy.ndarray, weights: numpy.ndarray, positions: numpy.ndarray):
    """Return L50 in each of B draws, inf where it is not reached: (B,).

    Args:
        repeats: (B, R), how often each repeat is taken. weights: (B, n), how often each question. positions: (L,).
    """
    sums = numpy.einsum("rln,bn->brl", questions.values, weights)
    curves = numpy.einsum("brl,br->bl", sums, repeats)
    curves /= (repeats.sum(axis=1) * weights.sum(axis=1))[:, None]
    found = crossings(curves, numpy.ones((1, len(positions))), positions, (curves[:, 0] + CHANCE) / 2)
    return numpy.where(found == -numpy.inf, numpy.inf, found)  # no better than chance: nothing to lose


def drawn_topics(questions: Questions, draws: int, seed: int) -> numpy.ndarray:
    """Return how often each draw takes each question, those of a topic together: (B, n)."""
    known, place = numpy.unique(questions.topics, return_inverse=True)
    return draw_counts(len(known), draws, seed)[:, place]


def half_level(questions: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> Estimate:
    """Return the L50 of a skill; value inf: not reached."""
    drawn = _drawn(questions, positions, draws, SEED + 1)
    scarcer = min(len(questions.values), len(numpy.unique(questions.topics)))
    return _estimate(_point(questions, positions), drawn, scarcer, float(numpy.isfinite(drawn).mean()), positions)


def difference(first: Questions, second: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> Estimate:
    """Return L50 of `second` less that of `first`: positive where `first` breaks first."""
    scarcer = min(len(first.values), *(len(numpy.unique(each.topics)) for each in (first, second)))
    drawn = [_drawn(each, positions, draws, SEED + 1 + place) for place, each in enumerate((first, second))]
    return _difference(first, second, drawn, scarcer, positions)


def matched_pairs(first: Questions, second: Questions) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return places of questions of two skills that belong together, nearest margins first, none twice, two (m,)."""
    apart = numpy.abs(first.margins[:, None] - second.margins[None, :])
    pairs: list[tuple[int, int]] = []
    for place in numpy.argsort(apart, axis=None, kind="stable"):
        one, other = divmod(int(place), apart.shape[1])
        if apart[one, other] > CALIPER:
            break
        if all(one != a and other != b for a, b in pairs):
            pairs.append((one, other))
    ones, others = (numpy.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    return ones, others


def matched_difference(
    first: Questions, second: Questions, positions: numpy.ndarray, draws: int = DRAWS
) -> tuple[Estimate, int]:
    """Return `difference` on matched questions alone, drawn pair by pair, and how many pairs there are."""
    ones, others = matched_pairs(first, second)
    if len(ones) < FEWEST:
        return Estimate(math.nan), len(ones)
    first, second = first[ones], second[others]
    weights = draw_counts(len(ones), draws, SEED + 1)
    repeats = draw_counts(len(first.values), draws, SEED)
    drawn = [half_levels(each, repeats, weights, positions) for each in (first, second)]
    return _difference(first, second, drawn, min(len(first.values), len(ones)), positions), len(ones)


def _drawn(questions: Questions, positions: numpy.ndarray, draws: int, seed: int) -> numpy.ndarray:
    repeats = draw_counts(len(questions.values), draws, SEED)
    return half_levels(questions, repeats, drawn_topics(questions, draws, seed), positions)


def _point(questions: Questions, positions: numpy.ndarray) -> float:
    once = numpy.ones((1, len(questions.values))), numpy.ones((1, len(questions.topics)))
    return float(half_levels(questions, *once, positions)[0])


def _difference(first, second, drawn: Sequence[numpy.ndarray], scarcer: int, positions) -> Estimate:
    points = [_point(each, positions) for each in (first, second)]
    reached = float(numpy.isfinite(drawn).all(axis=0).mean())
    if not numpy.isfinite(points).all():
        return Estimate(math.nan, reached=reached)
    # a level beyond the last one counts as the last: the difference is then rather too small
    ends = [numpy.minimum(each, positions[-1]) for each in drawn]
    return _estimate(points[1] - points[0], ends[1] - ends[0], scarcer, reached)


def _estimate(value: float, drawn: numpy.ndarray, scarcer: int, reached: float, positions=None) -> Estimate:
    """Return an estimate with what its draws and the scarcer of repeats and topics allow to say of it."""
    if scarcer < FEWEST or not math.isfinite(value):
        return Estimate(value, reached=reached)
    if positions is not None:
        drawn = numpy.minimum(drawn, positions[-1])
    error = float(drawn.std()) * math.sqrt(scarcer / (scarcer - 1))
    room = float(student(numpy.array([scarcer]))[0]) * error
    p = student_p(value / error, scarcer - 1) if error > 0 else math.nan
    return Estimate(value, value - room, value + room, p, reached)


def student_p(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t: with t = sqrt(freedom) tan(a), its density is cos(a)^(freedom-1)."""
    angles = numpy.linspace(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, STEPS)
    whole = numpy.linspace(0.0, math.pi / 2, STEPS)
    tail, all_of_it = (numpy.trapezoid(numpy.cos(part) ** (freedom - 1), part) for part in (angles, whole))
    return float(tail / all_of_it)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two skills of one group of weights, compared; `p_holm` holds for all pairs of all groups together."""

    group: str
    first: str
    second: str
    plain: Estimate
    matched: Estimate
    pairs: int
    p_holm: float = math.nan
    matched_p_holm: float = math.nan


def compare(groups: dict[str, tuple[Sequence[Questions], numpy.ndarray]], draws: int = DRAWS) -> list[Pair]:
    """Compare every two skills under damage of every group; groups: name -> its skills' questions, and the levels."""
    found = [
        Pair(group, a.skill, b.skill, difference(a, b, positions, draws), *matched_difference(a, b, positions, draws))
        for group, (skills, positions) in groups.items()
        for a, b in itertools.combinations(skills, 2)
    ]
    plain, matched = (_holm([getattr(pair, name).p for pair in found]) for name in ("plain", "matched"))
    return [
        Pair(pair.group, pair.first, pair.second, pair.plain, pair.matched, pair.pairs, *both)
        for pair, *both in zip(found, plain, matched, strict=True)
    ]


def _holm(p: Sequence[float]) -> list[float]:
    """`holm` of those that there are."""
    raised = iter(holm([each for each in p if not math.isnan(each)]))
    return [math.nan if math.isnan(each) else next(raised) for each in p]
