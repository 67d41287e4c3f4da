"""Bootstrap over repeats, medians, Cohen's d, rank correlation and isotonic regression, against slow oracles."""

import itertools
import math
import statistics
import subprocess
import sys

import numpy
import pytest

from frankenlm.degradation.report.bootstrap import (
    draw_counts,
    drawn_effects,
    drawn_means,
    drawn_medians,
    drawn_weights,
    holm,
    interval,
    mean_curve,
    means,
    median_curve,
    medians,
    ranks,
    spearman,
)
from frankenlm.degradation.report.isotonic import crossings, isotonic_fit

NAN = numpy.nan


@pytest.fixture
def generator():
    return numpy.random.default_rng(7)


def with_gaps(generator, repeats, levels, gaps):
    values = generator.normal(size=(repeats, levels))
    values.flat[generator.choice(values.size, gaps, replace=False)] = NAN
    return values


def moments_of(values):
    """Moments of cells with one observation each."""
    present = numpy.isfinite(values)
    filled = numpy.where(present, values, 0.0)
    return present.astype(float), filled, filled**2


# --- draws and intervals


def test_draws_take_as_many_repeats_as_there_are_and_come_again():
    counts = draw_counts(7, 500, seed=3)
    assert counts.shape == (500, 7) and (counts.sum(axis=1) == 7).all()
    assert (counts == draw_counts(7, 500, seed=3)).all() and (counts != draw_counts(7, 500, seed=4)).any()
    # each repeat is drawn once on average, with the spread of a binomial distribution
    assert counts.mean() == 1 and abs(counts.var() - 6 / 7) < 0.1


@pytest.mark.parametrize(("repeats", "draws"), [(0, 10), (5, 0), (-1, 3)])
def test_draws_of_nothing_are_refused(repeats, draws):
    with pytest.raises(ValueError, match="at least 1"):
        draw_counts(repeats, draws)


@pytest.mark.parametrize("gaps", [0, 5, 12])
def test_drawn_means_are_the_means_of_the_repeats_drawn(generator, gaps):
    values = with_gaps(generator, 6, 4, gaps)
    counts = draw_counts(6, 30)
    drawn, weights = drawn_means(values, counts), drawn_weights(values, counts)
    for draw, count in enumerate(counts.astype(int)):
        taken = numpy.repeat(values, count, axis=0)  # the same repeats at every level
        for level in range(4):
            kept = [value for value in taken[:, level] if not math.isnan(value)]
            assert weights[draw, level] == len(kept)
            expected = statistics.fmean(kept) if kept else NAN
            assert drawn[draw, level] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("gaps", [0, 6, 14])
def test_medians_leave_gaps_out(generator, gaps):
    values = with_gaps(generator, 5, 4, gaps)
    for level, median in enumerate(medians(values)):
        kept = values[numpy.isfinite(values[:, level]), level]
        assert median == pytest.approx(statistics.median(kept) if len(kept) else NAN, nan_ok=True)


def test_drawn_medians_take_the_same_repeats_at_every_level(generator):
    """Levels that differ by a constant have medians that differ by it in every draw."""
    column = generator.normal(size=(7, 1))
    drawn = drawn_medians(numpy.concatenate([column, column + 5], axis=1), draws=50)
    numpy.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 5)
    assert len(numpy.unique(drawn[:, 0])) > 3 and set(numpy.unique(drawn[:, 0])) <= set(column[:, 0])


def test_intervals_are_order_statistics_and_keep_infinite_ends():
    drawn = numpy.arange(1001.0)[::-1].copy()
    assert interval(drawn) == (25.0, 975.0)
    drawn[drawn > 900] = numpy.inf
    assert interval(drawn) == (25.0, numpy.inf)
    drawn[drawn == 0] = NAN  # left out: 1,000 draws, 1 ... 1000
    low, high = interval(numpy.stack([drawn, numpy.full(1001, NAN)], axis=1))
    assert low[0] == 25.0 and high[0] == numpy.inf and math.isnan(low[1]) and math.isnan(high[1])


def test_one_repeat_has_a_mean_and_no_interval():
    curve = mean_curve(numpy.array([[1.0, NAN, 3.0]]), draw_counts(1, 100))
    assert curve["mean"].tolist()[::2] == [1, 3] and curve["n"].tolist() == [1, 0, 1]
    assert all(numpy.isnan(curve[name]).all() for name in ("low", "high", "sd"))
    curve = median_curve(numpy.array([[1.0, NAN, 3.0], [NAN, NAN, 4.0]]), draws=100)
    assert curve["median"][[0, 2]].tolist() == [1, 3.5] and math.isnan(curve["median"][1])
    assert math.isnan(curve["low"][0]) and 0 < curve["low"][2] < 3 < 4 < curve["high"][2]


def test_curve_of_equal_repeats_is_certain():
    curve = mean_curve(numpy.tile([0.25, 0.5], (5, 1)), draw_counts(5, 200))
    for name in ("mean", "low", "high"):
        assert curve[name].tolist() == [0.25, 0.5]
    assert curve["sd"].tolist() == [0, 0]


def test_levels_of_a_repeat_stay_together(generator):
    """Where repeats differ by a constant, the fall between two levels is certain though neither level is."""
    values = generator.normal(0, 3, size=(8, 1)) + numpy.array([[1.0, 0.0]])
    drawn = drawn_means(values, draw_counts(8, 400))
    assert drawn[:, 0].std() > 0.5
    numpy.testing.assert_allclose(drawn[:, 0] - drawn[:, 1], 1)


def coverage(repeats, experiments, draws, seed):
    generator = numpy.random.default_rng(seed)
    counts = draw_counts(repeats, draws)
    # a logistic curve with a shift of each repeat: its levels are correlated, as in a trajectory
    x = numpy.linspace(0, 1, 5)
    shifts = generator.normal(0, 0.05, size=(repeats, experiments, 1))
    noise = generator.normal(0, 0.03, size=(repeats, experiments, 5))
    values = 1 / (1 + numpy.exp((x - 0.5 - shifts) / 0.1)) + noise
    many = generator.normal(0, 0.05, size=(200_000, 1))
    truth = (1 / (1 + numpy.exp((x - 0.5 - many) / 0.1))).mean(axis=0)
    low, high = interval(drawn_means(values.reshape(repeats, -1), counts))
    covered = (low <= numpy.tile(truth, experiments)) & (numpy.tile(truth, experiments) <= high)
    return covered.mean()


@pytest.mark.parametrize(("repeats", "least", "most"), [(5, 0.79, 0.88), (30, 0.91, 0.97)])
def test_intervals_cover_the_truth_as_often_as_the_docstring_says(repeats, least, most):
    assert least < coverage(repeats, 300, 1000, seed=1) < most


@pytest.mark.slow
@pytest.mark.parametrize(("repeats", "stated"), [(3, 0.75), (5, 0.84), (10, 0.91), (30, 0.93)])
def test_stated_coverage_of_normal_means(repeats, stated):
    values = numpy.random.default_rng(1).normal(size=(repeats, 8000))
    low, high = interval(drawn_means(values, draw_counts(repeats, 5000)))
    assert abs(((low < 0) & (high > 0)).mean() - stated) < 0.015


@pytest.mark.parametrize("spread", ["normal", "standard_t"])
@pytest.mark.parametrize("repeats", [3, 4, 5, 10])
def test_intervals_of_medians_cover(repeats, spread):
    """Of perplexities, whose logarithms are normal, or have heavy tails."""
    generator = numpy.random.default_rng(repeats)
    shape = (repeats, 1500)
    logs = generator.normal(size=shape) if spread == "normal" else generator.standard_t(3, size=shape)
    curve = median_curve(numpy.exp(logs), 500)
    covered = ((curve["low"] <= 1) & (curve["high"] >= 1)).mean()
    assert 0.935 < covered < 0.985  # a standard error is 0.006
    low, high = interval(drawn_medians(numpy.exp(logs), 500))
    assert repeats > 3 or ((low <= 1) & (high >= 1)).mean() < 0.8, "what plain percentile intervals do"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.2, 0.9]) == pytest.approx([0.4, 0.9]) and holm([]) == []


# --- Cohen's d


def pooled_d(first, second):
    n, m = len(first), len(second)
    pooled = ((n - 1) * statistics.variance(first) + (m - 1) * statistics.variance(second)) / (n + m - 2)
    return (statistics.fmean(second) - statistics.fmean(first)) / math.sqrt(pooled)


def test_effects_are_those_of_the_textbook(generator):
    values = generator.normal(size=(9, 4)) * [1, 2, 3, 4] + [0, 1, -2, 5]
    counts = draw_counts(9, 20)
    effects = drawn_effects(moments_of(values), counts, 0)
    assert (effects[:, 0] == 0).all()
    for draw, count in enumerate(counts.astype(int)):
        taken = numpy.repeat(values, count, axis=0)
        for level in (1, 2, 3):
            assert effects[draw, level] == pytest.approx(pooled_d(taken[:, 0], taken[:, level]), rel=1e-9)


def test_effect_by_hand():
    """Means 2 and 5, both variances 1: d = 3."""
    values = numpy.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    assert drawn_effects(moments_of(values), numpy.ones((1, 3)), 0)[0, 1] == pytest.approx(3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1, 1), (1, 1), 0.0),
        ((1, 1), (0, 0), -numpy.inf),
        ((0.1, 0.1), (0.1, 0.1), 0.0),
        ((0, 0), (0.3, 0.3), numpy.inf),
    ],
)
def test_effects_without_spread(first, second, expected):
    values = numpy.array([first, second], dtype=float).T
    assert drawn_effects(moments_of(values), numpy.ones((1, 2)), 0)[0, 1] == expected


def test_effects_of_too_few_observations_are_unknown():
    assert numpy.isnan(drawn_effects(moments_of(numpy.array([[1.0, 2.0]])), numpy.ones((1, 1)), 0)).all()
    values = numpy.array([[1.0, NAN], [2.0, NAN]])
    assert math.isnan(drawn_effects(moments_of(values), numpy.ones((1, 2)), 0)[0, 1])


# --- rank correlation


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, 1, 2], [3, 1, 2]), ([5, 5, 1], [2.5, 2.5, 1]), ([2, 2, 2, 2], [2.5] * 4), ([1, 3, 3, 3, 9], [1, 3, 3, 3, 5])],
)
def test_ranks_share_ties(values, expected):
    assert ranks(numpy.array(values)).tolist() == expected


def naive_spearman(x, y, direction):
    """Pearson of the ranks, and p over every order, one by one."""

    def rank(values):
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    a, b = rank(x), rank(y)
    rho = statistics.correlation(a, b)
    others = [statistics.correlation(a, order) for order in itertools.permutations(b)]
    if direction is None:
        far = sum(abs(other) >= abs(rho) - 1e-9 for other in others)
    else:
        far = sum(direction * other >= direction * rho - 1e-9 for other in others)
    return rho, far / len(others)


@pytest.mark.parametrize("direction", [1, -1, None])
@pytest.mark.parametrize("y", [[1, 2, 3, 4, 5, 6], [5, 3, 3, 2, 1, 0], [0, 1, 0, 1, 0, 1], [9, 7, 8, 7, 7, 1]])
def test_spearman_is_exact_for_few_levels(y, direction):
    x = [0, 1, 2, 3, 4, 5]
    found = spearman(numpy.array(x), numpy.array(y, dtype=float), direction)
    rho, p = naive_spearman(x, y, direction)
    assert (found["rho"], found["p"]) == (pytest.approx(rho), pytest.approx(p)) and found["test"] == "exact"


def test_permuted_p_is_near_the_exact_one_and_never_zero(generator, monkeypatch):
    x, y = numpy.arange(8.0), numpy.array([1.0, 0.0, 3.0, 2.0, 2.5, 5.0, 3.5, 4.5])
    exact = spearman(x, y, 1)
    monkeypatch.setattr("frankenlm.degradation.report.bootstrap.EXACT_UP_TO", 7)
    # a seed not used before, as orders are cached
    drawn = spearman(x, y, 1, seed=11)
    assert drawn["test"] == "permutation" and drawn["rho"] == exact["rho"]
    assert drawn["p"] == pytest.approx(exact["p"], abs=5 * math.sqrt(exact["p"] / 10_000))
    perfect = spearman(numpy.arange(21.0), -numpy.arange(21.0), -1)
    assert perfect["rho"] == pytest.approx(-1) and perfect["p"] == 1 / 10_001
    assert spearman(numpy.arange(21.0), -numpy.arange(21.0), 1)["p"] == 1


def test_spearman_of_nothing_to_rank():
    for y in ([1.0, 1.0, 1.0, 1.0], [1.0, NAN, NAN, 2.0], [NAN] * 4):
        found = spearman(numpy.arange(4.0), numpy.array(y), 1)
        assert found["rho"] is None and found["p"] is None


# --- isotonic regression


def brute_force(values, weights):
    """Minimax formula of isotonic regression: no pooling, every pair of ends is looked at."""
    n = len(values)

    def average(i, j):
        return numpy.average(values[i : j + 1], weights=weights[i : j + 1])

    return [max(min(average(i, j) for j in range(k, n)) for i in range(k + 1)) for k in range(n)]


@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("case", range(12))
def test_isotonic_fit_is_the_brute_force_one(case, falls):
    generator = numpy.random.default_rng(case)
    n = int(generator.integers(1, 12))
    values, weights = generator.normal(size=n), generator.uniform(0.2, 3, size=n)
    if case % 3 == 0:
        values = numpy.round(values)  # ties
    sign = -1 if falls else 1
    expected = sign * numpy.array(brute_force(sign * values, weights))
    numpy.testing.assert_allclose(isotonic_fit(values, weights, falls), expected, atol=1e-12)


def test_isotonic_fit_by_hand():
    assert isotonic_fit([1.0, 3.0, 2.0, 4.0]).tolist() == [1, 2.5, 2.5, 4]
    assert isotonic_fit([1.0, 3.0, 2.0, 4.0], falls=True).tolist() == [2.5] * 4
    assert isotonic_fit([3.0, 0.0], [1.0, 2.0]).tolist() == [1, 1]
    assert isotonic_fit([]).tolist() == []


@pytest.mark.parametrize(("values", "weights"), [([1.0, NAN], None), ([1.0, 2.0], [1.0, 0.0])])
def test_isotonic_fit_refuses_levels_without_data(values, weights):
    with pytest.raises(ValueError, match="without data"):
        isotonic_fit(values, weights)


def naive_crossing(curve, weights, positions, threshold):
    fit = isotonic_fit(curve, weights, falls=True)
    if fit[0] <= threshold:
        return -numpy.inf
    for i in range(1, len(fit)):
        if fit[i] <= threshold:
            return positions[i - 1] + (fit[i - 1] - threshold) / (fit[i - 1] - fit[i]) * (
                positions[i] - positions[i - 1]
            )
    return numpy.inf


def test_crossings_are_those_of_the_fits(generator):
    positions = numpy.array([0.0, 0.1, 0.3, 0.35, 0.6, 1.0])
    curves = numpy.round(generator.normal(size=(400, 6)) - 2 * positions, 1)  # rounded: ties and exact hits
    weights = generator.integers(1, 5, size=(400, 6)).astype(float)
    thresholds = numpy.round(generator.normal(-1, 1, size=400), 1)
    found = crossings(curves, weights, positions, thresholds)
    expected = [naive_crossing(*row[:2], positions, row[2]) for row in zip(curves, weights, thresholds, strict=True)]
    kinds = {kind: sum(1 for value in expected if value == kind) for kind in (numpy.inf, -numpy.inf)}
    assert min(kinds.values()) > 10 and sum(kinds.values()) < 350  # all three cases are there
    # a fit that touches the threshold up to rounding may be on either side of it
    fits = numpy.array([isotonic_fit(curve, weight, True) for curve, weight in zip(curves, weights, strict=True)])
    near = numpy.abs(fits - thresholds[:, None]).min(axis=1) < 1e-9
    assert near.sum() < 100
    numpy.testing.assert_allclose(found[~near], numpy.array(expected)[~near], atol=1e-9)


def test_crossings_of_unusable_curves_are_unknown():
    positions = numpy.array([0.0, 1.0])
    curves = numpy.array([[1.0, 0.0], [1.0, NAN], [1.0, 0.0], [1.0, 0.0]])
    weights = numpy.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = crossings(curves, weights, positions, numpy.array([0.25, 0.25, 0.25, NAN]))
    assert found[0] == 0.75 and numpy.isnan(found[1:]).all()


def test_statistics_need_no_torch():
    code = (
        "import sys, frankenlm.degradation.report.critical; "
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_means_ignore_gaps():
    assert means(numpy.array([[1.0, NAN], [3.0, NAN]]))[0] == 2
    assert math.isnan(means(numpy.array([[1.0, NAN], [3.0, NAN]]))[1])


@pytest.mark.parametrize("repeats", [3, 5, 10])
def test_intervals_of_means_cover_what_they_claim(repeats):
    """Of 4,000 experiments with normal values, 95 % of the intervals hold the true mean: 0."""
    values = numpy.random.default_rng(repeats).normal(size=(repeats, 4000))
    curve = mean_curve(values, draw_counts(repeats, 2000))
    covered = ((curve["low"] <= 0) & (curve["high"] >= 0)).mean()
    assert 0.935 < covered < 0.96  # a standard error is 0.0035
    low, high = interval(drawn_means(values, draw_counts(repeats, 2000)))
    assert ((low <= 0) & (high >= 0)).mean() < 0.93, "what plain percentile intervals do"
