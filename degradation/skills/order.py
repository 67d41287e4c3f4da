"""Which skill breaks first, and how sure that is: half levels with intervals, paired differences, matched questions.

A skill is compared on questions that the undamaged model answers, chosen by one wording and measured by another: what
questions that were chosen by luck lose by themselves (regression to the mean) is lost at the baseline already, not
under damage. L50 is where a skill's mean share has fallen half way from its own baseline to chance, so that skills that
begin lower are not behind from the start; what remains of that is asked by `matched_pairs`, questions of two skills
that the undamaged model answers equally surely.

Two things vary, the damage (repeats) and the questions (topics: those of one share answers and wordings). Each is drawn
anew with the other held, the same repeats for all skills; the variances add up (what both share is in both: the sum is
rather too large), each with the n / (n - 1) that a bootstrap lacks, and intervals and p-values are Student's t, its
degrees of freedom those of the sum (Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance
Components"), rounded down.
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
class WithInterval:
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


def half_level(questions: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> WithInterval:
    """Return the L50 of a skill, its interval within the levels that were tested; inf: not reached."""
    parts = [_by_repeats([questions], positions, draws), _by_topics(questions, positions, draws, SEED + 1)]
    found = _estimate(_point(questions, positions), parts, positions[-1])
    high = found.high if found.high <= positions[-1] else math.inf
    if math.isnan(found.low):
        return found
    return WithInterval(found.value, max(found.low, float(positions[0])), high, found.p, found.reached)


def difference(first: Questions, second: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> WithInterval:
    """Return L50 of `second` less that of `first`: positive where `first` breaks first."""
    parts = [
        _by_repeats([first, second], positions, draws),
        _by_topics(first, positions, draws, SEED + 1),
        _by_topics(second, positions, draws, SEED + 2),
    ]
    return _estimate(_point(second, positions) - _point(first, positions), parts, positions[-1])


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
) -> tuple[WithInterval, int]:
    """Return `difference` on matched questions alone, drawn pair by pair, and how many pairs there are."""
    ones, others = matched_pairs(first, second)
    if len(ones) < FEWEST:
        return WithInterval(math.nan), len(ones)
    first, second = first[ones], second[others]
    once, weights = numpy.ones((draws, len(first.values))), draw_counts(len(ones), draws, SEED + 1)
    drawn = [half_levels(each, once, weights, positions) for each in (first, second)]
    parts = [_by_repeats([first, second], positions, draws), (drawn, len(ones))]
    return _estimate(_point(second, positions) - _point(first, positions), parts, positions[-1]), len(ones)


# what a source of variance does: L50 of one skill or two in each draw, and of how many things was drawn
Part = tuple[Sequence[numpy.ndarray], int]


def _by_repeats(skills: Sequence[Questions], positions: numpy.ndarray, draws: int) -> Part:
    count = len(skills[0].values)
    repeats = draw_counts(count, draws, SEED)
    return [half_levels(each, repeats, numpy.ones((draws, len(each.topics))), positions) for each in skills], count


def _by_topics(questions: Questions, positions: numpy.ndarray, draws: int, seed: int) -> Part:
    once = numpy.ones((draws, len(questions.values)))
    drawn = half_levels(questions, once, drawn_topics(questions, draws, seed), positions)
    return [drawn], len(numpy.unique(questions.topics))


def _point(questions: Questions, positions: numpy.ndarray) -> float:
    once = numpy.ones((1, len(questions.values))), numpy.ones((1, len(questions.topics)))
    return float(half_levels(questions, *once, positions)[0])


def _estimate(value: float, parts: Sequence[Part], last: float) -> WithInterval:
    """Return an estimate with what its sources of variance allow to say of it.

    last: the most severe level; what is not reached in a draw counts as that, so that differences are rather too small.
    """
    reached = float(numpy.mean([numpy.isfinite(drawn).all(axis=0).mean() for drawn, _ in parts]))
    if math.isnan(value) or not math.isfinite(value):
        return WithInterval(math.inf if value == math.inf and len(parts[0][0]) == 1 else math.nan, reached=reached)
    if min(count for _, count in parts) < FEWEST:
        return WithInterval(value, reached=reached)
    capped = [([numpy.minimum(each, last) for each in drawn], count) for drawn, count in parts]
    variances = [
        float((drawn[-1] - (drawn[0] if len(drawn) > 1 else 0)).var()) * count / (count - 1) for drawn, count in capped
    ]
    total = sum(variances)
    if total == 0:
        return WithInterval(value, reached=reached)
    spread = sum(variance**2 / (count - 1) for variance, (_, count) in zip(variances, parts, strict=True))
    freedom = max(1, int(total**2 / spread))
    room = float(student(numpy.array([freedom + 1]))[0]) * math.sqrt(total)
    return WithInterval(value, value - room, value + room, student_p(value / math.sqrt(total), freedom), reached)


def student_p(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t: with t = sqrt(freedom) tan(a), its density is cos(a)^(freedom-1)."""
    angles = numpy.linspace(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, STEPS)
    whole = numpy.linspace(0.0, math.pi / 2, STEPS)
    tail, all_of_it = (numpy.trapezoid(numpy.cos(part) ** (freedom - 1), part) for part in (angles, whole))
    return float(tail / all_of_it)


@dataclass(frozen=True, eq=False)
class SkillPair:
    """Two skills of one group of weights, compared; `p_holm` holds for all pairs of all groups together."""

    group: str
    first: str
    second: str
    plain: WithInterval
    matched: WithInterval
    pairs: int
    p_holm: float = math.nan
    matched_p_holm: float = math.nan


def compare(groups: dict[str, tuple[Sequence[Questions], numpy.ndarray]], draws: int = DRAWS) -> list[SkillPair]:
    """Compare every two skills under damage of every group; groups: name -> its skills' questions, and the levels."""
    found = [
        SkillPair(
            group, a.skill, b.skill, difference(a, b, positions, draws), *matched_difference(a, b, positions, draws)
        )
        for group, (skills, positions) in groups.items()
        for a, b in itertools.combinations(skills, 2)
    ]
    plain, matched = (_holm([getattr(pair, name).p for pair in found]) for name in ("plain", "matched"))
    return [
        SkillPair(pair.group, pair.first, pair.second, pair.plain, pair.matched, pair.pairs, *both)
        for pair, *both in zip(found, plain, matched, strict=True)
    ]


def _holm(p: Sequence[float]) -> list[float]:
    """`holm` of those that there are."""
    raised = iter(holm([each for each in p if not math.isnan(each)]))
    return [math.nan if math.isnan(each) else next(raised) for each in p]
