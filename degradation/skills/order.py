"""Which skill breaks first, and how sure that is: half levels with intervals, differences, matched questions.

A skill is compared on questions that the undamaged model answers, chosen by one wording and measured by another: what
questions that were chosen by luck lose by themselves (regression to the mean) is lost at the baseline already, not
under damage. L50 is where a skill's mean share has fallen half way from its own baseline to chance, so that skills that
begin lower are not behind from the start; what remains of that is asked by `matched_pairs`, questions of two skills
that the undamaged model answers equally surely, by either wording.

What is compared is min(L50, last level), the last being the most severe one that was tested (as survival times are,
restricted to the time that was watched): skills that break alike differ by 0 in it, too, and one that is not reached
counts as the last level, so a difference is rather too small.

Two things vary, the damage (repeats) and the questions (topics: those of one share answers and wordings). Each is drawn
anew with the other held, the same repeats for all skills; the variances add up (what both share is in both: the sum is
rather too large), each with the n / (n - 1) that a bootstrap lacks, and intervals and p-values are Student's t, its
degrees of freedom those of the sum (Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance
Components"), fractions and all: rounded, they would flip with the seed of the draws.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy

from ..report.bootstrap import CONFIDENCE, DRAWS, SEED, draw_counts, holm
from ..report.isotonic import crossings
from .items import SIZE

CHANCE = 1 / SIZE
CALIPER = 1.0  # nats between the margins, by either wording, of two questions that are matched
FEWEST = 3  # repeats, or topics, below which nothing is said of a difference
STEPS = 20_001  # of the numerical integral


@dataclass(frozen=True, eq=False)
class Questions:
    """The chosen questions of one skill, damaged.

    Attributes:
        topics: (n,), the number of each question's topic.
        margins: (2, n), undamaged, in nats: by the wording that chose them, and by the one that measures.
        values: (R, L, n), the right answers' shares by the second wording; the first level is the baseline.
    """

    skill: str
    topics: numpy.ndarray
    margins: numpy.ndarray
    values: numpy.ndarray

    def __getitem__(self, chosen: numpy.ndarray) -> "Questions":
        return Questions(self.skill, self.topics[chosen], self.margins[:, chosen], self.values[:, :, chosen])


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
    """Return L50 in each of B draws, inf where it is not reached, NaN where the undamaged share is chance: (B,).

    Args:
        repeats: (B, R), how often each repeat is taken. weights: (B, n), how often each question. positions: (L,).
    """
    sums = numpy.einsum("rln,bn->brl", questions.values, weights)
    curves = numpy.einsum("brl,br->bl", sums, repeats)
    curves /= (repeats.sum(axis=1) * weights.sum(axis=1))[:, None]
    found = crossings(curves, numpy.ones((1, len(positions))), positions, (curves[:, 0] + CHANCE) / 2)
    return numpy.where(found == -numpy.inf, numpy.nan, found)  # no better than chance: nothing to lose


def drawn_topics(questions: Questions, draws: int, seed: int) -> numpy.ndarray:
    """Return how often each draw takes each question, those of a topic together: (B, n)."""
    known, place = numpy.unique(questions.topics, return_inverse=True)
    return draw_counts(len(known), draws, seed)[:, place]


def half_level(questions: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> WithInterval:
    """Return the L50 of a skill, its interval within the levels that were tested; inf: not reached.

    NaN where the undamaged share is no better than chance.
    """
    parts = [_by_repeats([questions], positions, draws), _by_topics(questions, positions, draws, SEED + 1)]
    value = _point(questions, positions)
    if not math.isfinite(value):
        return WithInterval(value, reached=_reached(parts))
    found = _estimate(value, parts, positions[-1])
    high = math.inf if found.high > positions[-1] else found.high
    return replace(found, low=numpy.maximum(found.low, positions[0]), high=high)


def difference(first: Questions, second: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> WithInterval:
    """Return min(L50, last level) of `second` less that of `first`: positive where `first` breaks first.

    NaN where neither is reached, or one is no better than chance undamaged.
    """
    parts = [
        _by_repeats([first, second], positions, draws),
        _by_topics(first, positions, draws, SEED + 1),
        _by_topics(second, positions, draws, SEED + 2),
    ]
    points = [_point(each, positions) for each in (first, second)]
    if not math.isfinite(min(points)) or math.isnan(points[1]):
        return WithInterval(math.nan, reached=_reached(parts))
    early, late = (min(point, float(positions[-1])) for point in points)
    return _estimate(late - early, parts, positions[-1])


def matched_pairs(first: Questions, second: Questions) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return places of questions of two skills that belong together, nearest margins first, none twice, two (m,).

    Two are as far apart as their margins by the wording in which they differ more.
    """
    apart = numpy.abs(first.margins[:, :, None] - second.margins[:, None, :]).max(axis=0)
    pairs: list[tuple[int, int]] = []
    for place in numpy.argsort(apart, axis=None, kind="stable"):
        one, other = divmod(int(place), apart.shape[1])
        if apart[one, other] > CALIPER:
            break
        if all(one != a and other != b for a, b in pairs):
            pairs.append((one, other))
    ones, others = (numpy.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    return ones, others


@dataclass(frozen=True, eq=False)
class Matched:
    """Two skills compared on `pairs` of questions; `shares`: the two undamaged shares of these, as measured."""

    estimate: WithInterval
    pairs: int
    shares: tuple[float, float] = (math.nan, math.nan)


def matched_difference(first: Questions, second: Questions, positions: numpy.ndarray, draws: int = DRAWS) -> Matched:
    """Return `difference` on matched questions alone.

    Topics are drawn, not pairs: questions of a topic break together, whomever they are matched with.
    """
    ones, others = matched_pairs(first, second)
    if not len(ones):
        return Matched(WithInterval(math.nan), 0)
    first, second = first[ones], second[others]
    shares = (float(first.values[0, 0].mean()), float(second.values[0, 0].mean()))
    return Matched(difference(first, second, positions, draws), len(ones), shares)


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


def _reached(parts: Sequence[Part]) -> float:
    """In which share of the draws every L50 was reached."""
    return float(numpy.mean([numpy.isfinite(drawn).all(axis=0).mean() for drawn, _ in parts]))


def _estimate(value: float, parts: Sequence[Part], last: float) -> WithInterval:
    """Return an estimate with what its sources of variance allow to say of it.

    last: what an L50 of a draw is at most. Draws that are at chance undamaged are left out.
    """
    reached = _reached(parts)
    if min(count for _, count in parts) < FEWEST:
        return WithInterval(value, reached=reached)
    capped = [([numpy.minimum(each, last) for each in drawn], count) for drawn, count in parts]
    variances = [
        float(numpy.nanvar(drawn[-1] - (drawn[0] if len(drawn) > 1 else 0))) * count / (count - 1)
        for drawn, count in capped
    ]
    total = sum(variances)
    if total == 0:
        return WithInterval(value, reached=reached)
    spread = sum(variance**2 / (count - 1) for variance, (_, count) in zip(variances, parts, strict=True))
    freedom = total**2 / spread
    room = student_quantile(freedom) * math.sqrt(total)
    return WithInterval(value, value - room, value + room, student_p(value / math.sqrt(total), freedom), reached)


def student_p(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t, of 1 or more degrees of freedom, a fraction too."""
    angles, below = _student(freedom)
    return float(1 - numpy.interp(math.atan(abs(t) / math.sqrt(freedom)), angles, below))


def student_quantile(freedom: float) -> float:
    """Return how far from 0 Student's t lies in 1 of 20 cases: its quantile 0.975."""
    angles, below = _student(freedom)
    return math.sqrt(freedom) * math.tan(numpy.interp(CONFIDENCE, below, angles))


def _student(freedom: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return angles a, 0 to pi / 2, and how often |t| <= sqrt(freedom) tan(a); their density is cos(a)^(freedom-1)."""
    angles = numpy.linspace(0.0, math.pi / 2, STEPS)
    density = numpy.cos(angles) ** (freedom - 1)
    below = numpy.concatenate([[0.0], numpy.cumsum(density[1:] + density[:-1])])
    return angles, below / below[-1]


@dataclass(frozen=True, eq=False)
class SkillPair:
    """Two skills of one group of weights, compared; p (Holm): for both comparisons of all pairs of all groups."""

    group: str
    first: str
    second: str
    plain: WithInterval
    matched: Matched
    p_holm: float = math.nan
    matched_p_holm: float = math.nan


def compare(groups: dict[str, tuple[Sequence[Questions], numpy.ndarray]], draws: int = DRAWS) -> list[SkillPair]:
    """Compare every two skills under damage of every group; groups: name -> its skills' questions, and the levels."""
    found = [
        SkillPair(
            group, a.skill, b.skill, difference(a, b, positions, draws), matched_difference(a, b, positions, draws)
        )
        for group, (skills, positions) in groups.items()
        for a, b in itertools.combinations(skills, 2)
    ]
    raised = _holm([p for pair in found for p in (pair.plain.p, pair.matched.estimate.p)])
    return [
        replace(pair, p_holm=plain, matched_p_holm=matched)
        for pair, plain, matched in zip(found, raised[::2], raised[1::2], strict=True)
    ]


def _holm(p: Sequence[float]) -> list[float]:
    """`holm` of those that there are."""
    raised = iter(holm([each for each in p if not math.isnan(each)]))
    return [math.nan if math.isnan(each) else next(raised) for each in p]
