"""Means over repeats with bootstrap intervals, rank correlation, Cohen's d. NumPy alone; knows nothing of models.

The unit of every interval is the *repeat*: the levels of a repeat share one field of noise, and its answers one damaged
model, so neither are independent of each other. A draw therefore takes whole repeats, with replacement, and the same
ones at every level (a cluster bootstrap, paired across levels; Davison and Hinkley 1997, "Bootstrap Methods and their
Application", section 3.8). The intervals are percentile intervals, `expanded` for the few repeats that there are; those
of medians see `median_curve`. Over simulated experiments (test_bootstrap.py, test_critical.py) they cover 93 % and more
from 3 repeats on.

`values` is always a matrix (R, L) of float64, a row for each repeat and a column for each level; NaN is a cell that is
not there, or a measure that is not defined in it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy

DRAWS = 10_000
SEED = 2025
CONFIDENCE = 0.95
# Below so many repeats a report warns: intervals are then honest, and wide.
FEW = 5
COVERAGE = "Intervals are widened as Student's t asks for with few repeats: they cover about 95 % from 3 repeats on."
NORMAL = 1.960  # quantile 0.975 of the normal distribution, and of Student's t with 1, 2 ... degrees of freedom
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
EXACT_UP_TO = 8  # levels: 8! = 40,320 orders are all looked at, of more a sample
PERMUTATIONS = 10_000


def draw_counts(repeats: int, draws: int = DRAWS, seed: int = SEED) -> numpy.ndarray:
    """Return how often each draw takes each repeat: float64 (draws, repeats), every row sums to `repeats`.

    The same arguments give the same draws, so that statistics of curves with equally many repeats are paired.

    Raises:
        ValueError: there is no repeat, or no draw.
    """
    if repeats < 1 or draws < 1:
        raise ValueError(f"repeats={repeats} and draws={draws} must be at least 1.")
    generator = numpy.random.default_rng(seed)
    return generator.multinomial(repeats, [1 / repeats] * repeats, size=draws).astype(numpy.float64)


def means(values: numpy.ndarray) -> numpy.ndarray:
    """Return the mean of each level over the repeats that have a value: (R, L) -> (L,); NaN where none has."""
    return drawn_means(values, numpy.ones((1, len(values))))[0]


def drawn_means(values: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Return the mean of each level in each draw: (R, L), (B, R) -> (B, L); NaN where a draw has no value."""
    present = numpy.isfinite(values)
    weights = counts @ present
    sums = counts @ numpy.where(present, values, 0.0)
    return numpy.divide(sums, weights, out=numpy.full_like(sums, numpy.nan), where=weights > 0)


def drawn_weights(values: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """Return on how many values each of `drawn_means` rests: (B, L)."""
    return counts @ numpy.isfinite(values).astype(numpy.float64)


def medians(values: numpy.ndarray) -> numpy.ndarray:
    """Return the median of each level over the repeats that have a value: (R, L) -> (L,); NaN where none has."""
    return _sorted_medians(numpy.sort(values, axis=0))


def drawn_medians(values: numpy.ndarray, draws: int = DRAWS, seed: int = SEED) -> numpy.ndarray:
    """Return the median of each level in each draw of repeats: (R, L) -> (draws, L); NaN where a draw has no value."""
    chosen = numpy.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    columns = [_sorted_medians(numpy.sort(column[chosen], axis=1).T) for column in values.T]
    return numpy.stack(columns, axis=1)


def _sorted_medians(ordered: numpy.ndarray) -> numpy.ndarray:
    """Medians down the columns of a sorted matrix; NaN sorts to the end and is left out."""
    filled = numpy.isfinite(ordered).sum(axis=0)
    columns = numpy.arange(ordered.shape[1])
    low = ordered[numpy.maximum(filled - 1, 0) // 2, columns]
    high = ordered[numpy.minimum(filled // 2, len(ordered) - 1), columns]
    return numpy.where(filled > 0, (low + high) / 2, numpy.nan)


def interval(drawn: numpy.ndarray, confidence: float = CONFIDENCE) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the percentile interval of draws, down the first axis: (B, ...) -> two arrays (...).

    NaN draws are left out; +inf draws ("not reached") are kept, so an end of the interval may be inf. The ends are
    draws themselves, the next ones outward, never interpolated between two.
    """
    columns = drawn.reshape(len(drawn), -1)
    ends = numpy.full((2, columns.shape[1]), numpy.nan)
    whole = ~numpy.isnan(columns).any(axis=0)
    if whole.any():
        ends[:, whole] = _ends(columns[:, whole], confidence)
    for place in numpy.flatnonzero(~whole):
        left = columns[~numpy.isnan(columns[:, place]), place]
        if len(left):
            ends[:, place] = _ends(left, confidence)
    low, high = ends.reshape(2, *drawn.shape[1:])
    return low, high


def _ends(columns: numpy.ndarray, confidence: float) -> numpy.ndarray:
    last = len(columns) - 1
    outside = (1 - confidence) / 2
    low, high = int(numpy.floor(last * outside)), int(numpy.ceil(last * (1 - outside)))
    return numpy.partition(columns, (low, high), axis=0)[[low, high]]


def expanded(mean: numpy.ndarray, low: numpy.ndarray, high: numpy.ndarray, n: numpy.ndarray) -> tuple:
    """Return the ends of percentile intervals of means moved outward as far as so few repeats ask for: two (L,).

    A percentile interval is too narrow by the bootstrap's standard error (sqrt((n - 1) / n)) and by the normal's
    quantile, where Student's t belongs; the factor is the one of Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 4.1.3. For 95 % and n repeats of normal values it covers, see test_bootstrap.py, 95 %.
    """
    factor = widening(n)
    return mean + factor * (low - mean), mean + factor * (high - mean)


def widening(n: numpy.ndarray) -> numpy.ndarray:
    """Return the factor of `expanded` for n repeats, from 2 on: 2.69 of 3, 1.58 of 5, 1.22 of 10."""
    return student(n) / NORMAL * numpy.sqrt(numpy.clip(n, 2, None) / numpy.clip(n - 1, 1, None))


def student(n: numpy.ndarray) -> numpy.ndarray:
    """Return the quantile 0.975 of Student's t for n repeats, which leave n - 1 degrees of freedom."""
    freedom = numpy.clip(n - 1, 1, None)
    places = numpy.minimum(freedom, len(STUDENT)) - 1
    return numpy.where(freedom <= len(STUDENT), numpy.array(STUDENT)[places], NORMAL + 2.4 / freedom)


def mean_curve(values: numpy.ndarray, counts: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Return the curve over the levels: mean, low, high, sd over repeats and n of repeats, each (L,).

    One repeat has no spread: sd, low and high are NaN.
    """
    mean, filled = means(values), numpy.isfinite(values).sum(axis=0)
    low, high = expanded(mean, *interval(drawn_means(values, counts)), filled)
    squares = numpy.nansum((values - mean) ** 2, axis=0)
    spread = numpy.full_like(squares, numpy.nan)
    numpy.sqrt(numpy.divide(squares, filled - 1, out=spread, where=filled > 1), out=spread)
    return {"mean": mean, "low": _where(filled, low), "high": _where(filled, high), "sd": spread, "n": filled}


def median_curve(values: numpy.ndarray, draws: int = DRAWS, seed: int = SEED) -> dict[str, numpy.ndarray]:
    """Return the curve of medians over the levels: median, low, high and n, each (L,); as `mean_curve`.

    Order statistics of so few repeats hold no interval that covers 95 %. Where all values are positive, as perplexities
    are, the percentile interval is joined with Student's of the mean logarithm, which is that of the median where
    logarithms are symmetric; else it is `expanded`.
    """
    filled = numpy.isfinite(values).sum(axis=0)
    if (filled <= 1).all():  # perplexity is often measured in one repeat alone
        none = numpy.full(values.shape[1], numpy.nan)
        return {"median": medians(values), "low": none, "high": none.copy(), "n": filled}
    low, high = interval(drawn_medians(values, draws, seed))
    if (values[numpy.isfinite(values)] > 0).all():
        own = log_student(values, filled)
        low, high = numpy.fmin(low, own[0]), numpy.fmax(high, own[1])
    else:
        low, high = expanded(medians(values), low, high, filled)
    return {"median": medians(values), "low": _where(filled, low), "high": _where(filled, high), "n": filled}


def log_student(values: numpy.ndarray, filled: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the ends of Student's interval of the mean logarithm, taken back: (R, L), (L,) -> two (L,)."""
    logs = numpy.log(values)
    centre = means(logs)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        spread = numpy.sqrt(numpy.nansum((logs - centre) ** 2, axis=0) / (filled - 1) / filled)
    reach = student(filled) * spread
    with numpy.errstate(over="ignore"):
        return numpy.exp(centre - reach), numpy.exp(centre + reach)


def _where(filled: numpy.ndarray, ends: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(filled > 1, ends, numpy.nan)


def drawn_effects(
    moments: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray], counts: numpy.ndarray, baseline: int
) -> numpy.ndarray:
    """Return Cohen's d of every level against the baseline, in each draw: (B, L).

        d = (mean - mean_0) / s,   s^2 = (SS + SS_0) / (n + n_0 - 2)

    with SS the sum of squares about the level's own mean (Cohen 1988, "Statistical Power Analysis for the Behavioral
    Sciences", eq. 2.5.1 and 2.5.2). Two levels without spread have d = 0 if they are equal and +-inf if not.

    Args:
        moments: count, sum and sum of squares of the observations in each cell, each (R, L). They should be
            centred somewhere near the values, or the sum of squares loses its digits.
        counts: (B, R), see `draw_counts`.
        baseline: column of the undamaged level.
    """
    n, sums, squares = (counts @ part for part in moments)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        mean = sums / n
        within = numpy.maximum(squares - sums * mean, 0.0)
        first = slice(baseline, baseline + 1)
        pooled = numpy.sqrt((within + within[:, first]) / (n + n[:, first] - 2))
        difference = mean - mean[:, first]
        # what rounding leaves of a difference or a spread is not one
        tiny = 1e-12 * (1 + numpy.abs(mean) + numpy.abs(mean[:, first]))
        effect = numpy.where(pooled > numpy.sqrt(tiny) * 1e-3, difference / pooled, numpy.sign(difference) * numpy.inf)
    effect = numpy.where(numpy.abs(difference) <= tiny, 0.0, effect)
    return numpy.where((n > 0) & (n[:, first] > 0) & (n + n[:, first] > 2), effect, numpy.nan)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of them together (Holm 1979, "A Simple Sequentially Rejective Multiple Test
    Procedure"): the smallest times their number, the next times one fewer, none below the one before."""
    order = numpy.argsort(p, kind="stable")
    raised = numpy.asarray(p, dtype=numpy.float64)[order] * numpy.arange(len(p), 0, -1)
    found = numpy.empty(len(p))
    found[order] = numpy.minimum(numpy.maximum.accumulate(raised), 1.0)
    return found.tolist()


def ranks(values: numpy.ndarray) -> numpy.ndarray:
    """Return the ranks 1 ... n of n numbers; equal ones share the mean of theirs."""
    _, place, times = numpy.unique(values, return_inverse=True, return_counts=True)
    last = numpy.cumsum(times)
    return (last - (times - 1) / 2)[place]


def spearman(x: numpy.ndarray, y: numpy.ndarray, direction: int | None = None, seed: int = SEED) -> dict[str, Any]:
    """Return Spearman's rank correlation rho of two rows of numbers and the p-value of a permutation test.

    Up to 8 pairs every order of y is looked at ("exact"); of more, 10,000 drawn ones, the observed order counted among
    them ("permutation"), so p is never below 1/10,001. Pairs with NaN are left out.

    Args:
        direction: +1 tests for a rise, -1 for a fall (one-sided), None for either (two-sided).

    Returns:
        rho, p, n, test, alternative; rho and p are None for fewer than 3 pairs or where either side is constant.
    """
    kept = numpy.isfinite(x) & numpy.isfinite(y)
    a, b = ranks(x[kept]), ranks(y[kept])
    alternative = {1: "rise", -1: "fall", None: "two-sided"}[direction]
    result: dict[str, Any] = {"rho": None, "p": None, "n": len(a), "test": None, "alternative": alternative}
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = float(numpy.sqrt((a @ a) * (b @ b)))
    if len(a) < 3 or scale == 0:
        return result
    exact = len(a) <= EXACT_UP_TO
    others = b[_orders(len(a), seed)] @ a
    observed = float(a @ b)
    sign = direction or (1 if observed >= 0 else -1)
    sums, own = (numpy.abs(others), abs(observed)) if direction is None else (sign * others, sign * observed)
    as_far = int((sums >= own - 1e-9 * scale).sum())
    p = as_far / len(others) if exact else (as_far + 1) / (len(others) + 1)
    return result | {"rho": observed / scale, "p": p, "test": "exact" if exact else "permutation"}


@lru_cache(maxsize=64)
def _orders(n: int, seed: int) -> numpy.ndarray:
    """Orders of n things, a row each: all n! of them, or PERMUTATIONS drawn ones."""
    if n > EXACT_UP_TO:
        rows = numpy.tile(numpy.arange(n), (PERMUTATIONS, 1))
        return numpy.random.default_rng(seed).permuted(rows, axis=1)
    orders = numpy.zeros((1, 0), dtype=numpy.int64)
    for size in range(n):  # put thing `size` at every place of every order of the smaller ones
        orders = numpy.concatenate([numpy.insert(orders, place, size, axis=1) for place in range(size + 1)])
    return orders
