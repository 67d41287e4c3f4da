"""Critical levels on curves whose half-way level is known, in both directions, on every kind of axis."""

import math

import numpy
import pytest

from frankenlm.degradation.report.bootstrap import draw_counts, drawn_means, drawn_weights
from frankenlm.degradation.report.critical import (
    AT_CHANCE,
    NO_BASELINE,
    NO_CHANGE,
    NOT_REACHED,
    REACHED,
    Critical,
    earlier_share,
    effect_level,
    first_reached,
    half_level,
)
from frankenlm.degradation.report.isotonic import isotonic_fit
from frankenlm.degradation.report.level_axis import LevelAxis

NAN = numpy.nan
SIGMA = LevelAxis.of("mult_gauss", numpy.linspace(0.05, 1, 20).tolist(), True)


def logistic(positions, half, width=0.06, top=0.9, bottom=0.2):
    return bottom + (top - bottom) / (1 + numpy.exp((positions - half) / width))


def repeats_of(axis, half, repeats=10, seed=0, spread=0.02, noise=0.02, **shape):
    generator = numpy.random.default_rng(seed)
    shifts = generator.normal(0, spread, size=(repeats, 1))
    return logistic(axis.positions, half + shifts, **shape) + generator.normal(0, noise, (repeats, len(axis.levels)))


def moments_of(values):
    present = numpy.isfinite(values)
    filled = numpy.where(present, values, 0.0)
    return present.astype(float), filled, filled**2


# --- the axis


def test_axis_of_noise():
    axis = LevelAxis.of("mult_gauss", [0.4, 0.1], True)
    assert axis.levels == (0.0, 0.1, 0.4) and axis.positions.tolist() == [0, 0.1, 0.4]
    assert axis.level_at(0.25) == 0.25 and axis.text_at(0.12345) == "0.123"
    assert LevelAxis.of("ablation", [0.2], False).levels == (0.2,)


def test_axis_of_quantisation_is_inverted_and_logarithmic():
    axis = LevelAxis.of("uni_quant", [4, 1024, 16], True)
    assert axis.levels == (None, 1024, 16, 4)
    assert axis.positions.tolist() == [-14, -10, -4, -2]  # the baseline one median step (4) before 1024
    assert axis.level_at(-5) == 32 and axis.level_at(-12) is None
    assert axis.text_at(-5) == "32" and axis.text_at(-12) == "above 1024"
    assert axis.ticks()[1] == ["none", "1024", "16", "4"]
    assert LevelAxis.of("uni_quant", [], True).levels == (None,)


# --- L50


@pytest.mark.parametrize("half", [0.2, 0.43, 0.77])
@pytest.mark.parametrize("worse", [-1, 1, None])
def test_half_level_of_a_logistic_curve(half, worse):
    values = repeats_of(SIGMA, half)
    values = 1 - values if worse == 1 else values
    floor = 0.8 if worse == 1 else 0.2
    found = half_level(values, draw_counts(10, 2000), SIGMA, worse, floor)
    assert found.status == REACHED and found.low <= found.position <= found.high
    assert found.low - 0.01 < half < found.high + 0.01 and abs(found.position - half) < 0.03
    assert found.floor == floor and found.reached_share == 1


def test_half_level_without_chance_ends_at_the_last_level():
    """Half way from 0.9 to the value at sigma = 0.5, which is not the floor of the curve."""
    axis = LevelAxis.of("mult_gauss", numpy.linspace(0.025, 0.5, 20).tolist(), True)
    values = repeats_of(axis, 0.5, spread=0.0, noise=0.0)
    found = half_level(values, draw_counts(10, 100), axis, -1)
    middle = (values[0, 0] + values[0, -1]) / 2
    assert found.threshold == pytest.approx(middle) and found.floor == pytest.approx(values[0, -1])
    exact = 0.5 + 0.06 * math.log((0.9 - 0.2) / (middle - 0.2) - 1)
    assert found.position == pytest.approx(exact, abs=0.003)
    assert found.low == pytest.approx(found.position) == found.high  # repeats that are equal leave no doubt


def test_half_level_follows_the_isotonic_fit_not_the_dips():
    """A lone dip below half way is pooled with the levels round it; the fit passes half way later."""
    axis = LevelAxis.of("ablation", [1.0, 2.0, 3.0, 4.0], True)
    values = numpy.array([[1.0, 0.4, 0.9, 0.7, 0.0]] * 5)
    assert isotonic_fit(values[0], falls=True).tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 0])
    found = half_level(values, draw_counts(5, 50), axis, -1, 0.0)
    assert found.position == pytest.approx(3 + (2 / 3 - 0.5) / (2 / 3))


def naive_half(values, counts, axis, floor):
    found = []
    for count in counts.astype(int):
        mean = numpy.repeat(values, count, axis=0)
        weights = numpy.isfinite(mean).sum(axis=0)
        mean = numpy.nanmean(mean, axis=0)
        fit = isotonic_fit(mean, weights, falls=True)
        end = mean[-1] if floor is None else floor
        half = (mean[0] + end) / 2
        below = numpy.flatnonzero(fit <= half)
        if not len(below) or below[0] == 0:
            found.append(numpy.inf)
            continue
        i = below[0]
        share = (fit[i - 1] - half) / (fit[i - 1] - fit[i])
        found.append(axis.positions[i - 1] + share * (axis.positions[i] - axis.positions[i - 1]))
    return found


@pytest.mark.parametrize("floor", [None, 0.2, 0.0])
def test_drawn_half_levels_are_those_of_single_fits(floor):
    values = repeats_of(SIGMA, 0.5, noise=0.15)
    values[2, 4] = values[5, 4] = NAN  # missing cells
    counts = draw_counts(10, 60)
    found = half_level(values, counts, SIGMA, -1, floor)
    numpy.testing.assert_allclose(found.drawn, naive_half(values, counts, SIGMA, floor), atol=1e-9)


@pytest.mark.parametrize(
    ("half", "floor", "status"), [(2.0, 0.2, NO_CHANGE), (1.2, 0.2, NOT_REACHED), (0.9, 0.2, REACHED)]
)
def test_what_is_not_reached_is_said(half, floor, status):
    values = repeats_of(SIGMA, half)
    if status == NO_CHANGE:  # a baseline that is chance already
        values = values - 0.7
    found = half_level(values, draw_counts(10, 1000), SIGMA, -1, floor)
    assert found.status == status
    if status == NOT_REACHED:
        assert math.isnan(found.position) and found.text(SIGMA) == "not reached" and found.reached_share < 0.5
        assert found.record(SIGMA)["level"] is None


@pytest.mark.parametrize(
    ("baseline", "chance", "questions", "status"),
    [
        (0.15, 0.13, 60, AT_CHANCE),
        (0.30, 0.13, 60, REACHED),
        (0.15, 0.13, 6000, REACHED),
        (0.02, 0.0, 50, AT_CHANCE),
        (0.10, 0.0, 50, REACHED),
        (0.15, 0.13, None, REACHED),
    ],
)
def test_luck_on_few_questions_is_no_skill(baseline, chance, questions, status):
    """Greedy answers are the same in every repeat: only the number of questions tells skill from luck."""
    values = numpy.tile(baseline * (1 - SIGMA.positions), (5, 1))
    found = half_level(values, draw_counts(5, 100), SIGMA, -1, chance, questions)
    assert found.status == status and found.floor == chance


def test_an_interval_may_end_where_the_levels_do():
    """Some repeats pass half way just before the last level, others do not."""
    values = repeats_of(SIGMA, 0.97, spread=0.08, noise=0.0, repeats=8, seed=4)
    found = half_level(values, draw_counts(8, 2000), SIGMA, -1, 0.2)
    assert found.status == REACHED and found.high == numpy.inf and 0.025 < 1 - found.reached_share < 0.975
    assert found.text(SIGMA).endswith("to not reached)")
    record = found.record(SIGMA)
    assert record["high"] is None and record["high_reached"] is False and record["low"] < record["level"]


@pytest.mark.parametrize(("worse", "most"), [(-1, 0.045), (None, 0.075)])
@pytest.mark.parametrize("repeats", [3, 10])
def test_noise_alone_rarely_has_a_half_level(repeats, worse, most):
    """At the rate of the interval's false alarms: one side of it, or both where the direction is free."""
    counts = draw_counts(repeats, 300)
    noise = numpy.random.default_rng(3).normal(size=(600, repeats, 5))
    axis = LevelAxis.of("mult_gauss", [0.25, 0.5, 0.75, 1.0], True)
    statuses = [half_level(values, counts, axis, worse).status for values in noise]
    assert 0 < sum(status != NO_CHANGE for status in statuses) / 600 < most


def test_a_change_for_the_better_is_no_damage():
    found = half_level(1 - repeats_of(SIGMA, 0.5), draw_counts(10, 500), SIGMA, -1)
    assert found.status == NO_CHANGE


def test_missing_levels_and_missing_baseline():
    values = repeats_of(SIGMA, 0.5, noise=0.0)
    values[:, 9] = NAN  # a level without any data is passed over
    assert half_level(values, draw_counts(10, 100), SIGMA, -1, 0.2).position == pytest.approx(0.5, abs=0.02)
    values[:, 0] = NAN
    for found in (
        half_level(values, draw_counts(10, 100), SIGMA, -1),
        half_level(values * NAN, draw_counts(10, 9), SIGMA, 1),
    ):
        assert found.status == NO_BASELINE and found.text(SIGMA) == "nothing to compare"


def test_levels_without_the_undamaged_one_have_nothing_to_compare():
    axis = LevelAxis.of("mult_gauss", [0.1, 0.5, 1.0], False)
    values, counts = repeats_of(axis, 0.5), draw_counts(10, 50)
    assert half_level(values, counts, axis, -1, 0.2).status == NO_BASELINE
    assert effect_level(moments_of(values), counts, axis, -1).status == NO_BASELINE


def test_one_repeat_has_a_level_and_no_interval():
    found = half_level(repeats_of(SIGMA, 0.5, repeats=1), draw_counts(1, 100), SIGMA, -1, 0.2)
    assert found.reached and math.isnan(found.low) and found.drawn is None
    assert "(" not in found.text(SIGMA) and found.record(SIGMA)["high_reached"] is None


def test_data_of_one_repeat_among_ten_have_no_interval():
    """Perplexity is measured in the first repeat alone; draws of that one repeat would look certain."""
    values = numpy.full((10, 21), NAN)
    values[0] = repeats_of(SIGMA, 0.5, repeats=1)
    found = half_level(values, draw_counts(10, 100), SIGMA, -1, 0.2)
    assert found.reached and math.isnan(found.low) and math.isnan(found.reached_share) and found.drawn is None
    answers = tuple(
        numpy.where(numpy.isfinite(values), part, 0.0) for part in (9.0, 9 * values, 9 * (values**2 + 0.01))
    )
    found = effect_level(answers, draw_counts(10, 100), SIGMA, -1)
    assert found.reached and math.isnan(found.low) and found.drawn is None


def test_half_level_on_the_quantisation_axis():
    axis = LevelAxis.of("uni_quant", [1024, 512, 256, 128, 64, 32, 16, 8, 4], True)
    values = repeats_of(axis, -math.log2(16), width=0.4, spread=0.1)
    found = half_level(values, draw_counts(10, 1000), axis, -1, 0.2)
    assert found.record(axis)["level"] == pytest.approx(16, rel=0.1)
    assert found.record(axis)["low"] > found.record(axis)["high"]  # milder levels are larger numbers


# --- d-crit


def test_effect_level_by_hand():
    """Both variances 1, means 0, 0.4, 1.2: d = 0, 0.4, 1.2, so 0.8 half way between the last two levels."""
    axis = LevelAxis.of("mult_gauss", [0.1, 0.3], True)
    values = numpy.array([[-1.0], [0.0], [1.0]]) + numpy.array([[0.0, 0.4, 1.2]])
    for sign in (1, -1):
        found = effect_level(moments_of(sign * values), draw_counts(3, 100), axis, sign)
        assert found.position == pytest.approx(0.2) and found.threshold == 0.8
        assert effect_level(moments_of(sign * values), draw_counts(3, 100), axis, None).position == found.position
        assert effect_level(moments_of(sign * values), draw_counts(3, 100), axis, -sign).status == NOT_REACHED


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ([0, 0.4, 0.8, 2], 2.0),
        ([0, 1.6, 0, 0], 0.5),
        ([0, 0.2, 0.3, 0.4], numpy.inf),
        ([0, 0.2, numpy.inf, 1], 2.0),
        ([0, NAN, 1, 2], NAN),
        ([0, -1, 1, 2], 1.9),
        ([0, -numpy.inf, 2, 2], 2.0),
    ],
)
def test_first_reached(effects, expected):
    found = first_reached(numpy.array([effects], dtype=float), numpy.arange(4.0), 0.8)
    assert found[0] == pytest.approx(expected, nan_ok=True)


def test_effect_levels_of_answers_and_of_repeats():
    """Between answers the spread is wide, so d is reached later than between the repeats' means."""
    generator = numpy.random.default_rng(0)
    answers = repeats_of(SIGMA, 0.5)[:, :, None] + generator.normal(0, 0.4, size=(10, 21, 40))
    counts = draw_counts(10, 1000)
    wide = effect_level(tuple((answers**power).sum(axis=2) for power in (0, 1, 2)), counts, SIGMA, -1)
    narrow = effect_level(moments_of(answers.mean(axis=2)), counts, SIGMA, -1)
    assert wide.reached and narrow.reached and narrow.position < wide.position
    # d = 0.8 is a fall by 0.8 * 0.4 = 0.32 from 0.9
    exact = 0.5 + 0.06 * math.log(0.7 / (0.9 - 0.32 - 0.2) - 1)
    assert wide.low - 0.02 < exact < wide.high + 0.02


def test_effect_level_without_spread_to_compare():
    axis = LevelAxis.of("mult_gauss", [0.1], True)
    assert effect_level(moments_of(numpy.array([[1.0, 2.0]])), draw_counts(1, 10), axis, 1).status == NO_BASELINE
    found = effect_level(moments_of(numpy.array([[1.0, NAN], [2.0, NAN]])), draw_counts(2, 10), axis, 1)
    assert found.status == NO_BASELINE


# --- order


def test_order_of_two_measures_is_judged_draw_by_draw():
    """Repeats that shift both curves alike leave the order certain, though the intervals overlap."""
    generator = numpy.random.default_rng(5)
    shifts = generator.normal(0, 0.15, size=(10, 1))
    counts = draw_counts(10, 2000)
    first, second = (
        half_level(logistic(SIGMA.positions, half + shifts, bottom=0.0), counts, SIGMA, -1, 0.0) for half in (0.45, 0.5)
    )
    assert first.high > second.low and earlier_share(first, second) == 1 and earlier_share(second, first) == 0
    assert earlier_share(first, first) == 0.5
    assert earlier_share(first, Critical(NO_CHANGE)) is None
    assert earlier_share(first, Critical(REACHED, drawn=numpy.full(2000, NAN))) is None


# --- coverage


def covered_share(repeats, experiments, draws):
    """How often the interval of L50 holds the L50 of the mean over endless repeats."""
    many = numpy.random.default_rng(99).normal(0, 0.04, size=(20_000, 1))
    truth_curve = logistic(SIGMA.positions, 0.5 + many).mean(axis=0)[None]
    truth = half_level(truth_curve, numpy.ones((1, 1)), SIGMA, -1, 0.2).position
    counts = draw_counts(repeats, draws)
    held = 0
    for seed in range(experiments):
        found = half_level(repeats_of(SIGMA, 0.5, repeats, seed, spread=0.04, noise=0.03), counts, SIGMA, -1, 0.2)
        held += found.low <= truth <= found.high
    return held / experiments


@pytest.mark.parametrize("repeats", [3, 10])
def test_intervals_of_half_levels_cover(repeats):
    assert covered_share(repeats, 120, 400) > 0.9  # a standard error is 0.02


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [3, 4, 5, 8, 10, 30])
def test_coverage_of_half_levels(repeats):
    assert 0.93 < covered_share(repeats, 1500, 2000) < 0.985  # a standard error is 0.006


def test_weights_count_the_repeats_behind_a_level():
    values = repeats_of(SIGMA, 0.5, repeats=4)
    values[:3, 3] = NAN
    counts = numpy.ones((1, 4))
    assert drawn_weights(values, counts)[0, 3] == 1 and drawn_weights(values, counts)[0, 4] == 4
    assert drawn_means(values, counts)[0, 3] == values[3, 3]
