"""Isotonic (monotone) regression, and where its fit crosses a threshold. NumPy alone.

`isotonic_fit` is the method of pool adjacent violators (Ayer et al. 1955; Barlow et al. 1972, "Statistical Inference
under Order Restrictions", section 1.2). `crossings` finds the place of a crossing in ten thousand curves at once
without fitting any of them: the level sets of the fit are read off the cumulative sums.
"""

import numpy


def isotonic_fit(values: numpy.ndarray, weights: numpy.ndarray | None = None, falls: bool = False) -> numpy.ndarray:
    """Return the non-decreasing row (non-increasing where `falls`) nearest to `values` in weighted squares: (L,).

    Raises:
        ValueError: a value is not finite, or a weight not positive.
    """
    values = numpy.asarray(values, dtype=numpy.float64)
    weights = numpy.ones_like(values) if weights is None else numpy.asarray(weights, dtype=numpy.float64)
    if not numpy.isfinite(values).all() or not (weights > 0).all():
        raise ValueError("isotonic_fit takes finite values and positive weights: leave out levels without data.")
    sign = -1.0 if falls else 1.0
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(sign * values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, heavier, length = blocks.pop()
            before = blocks[-1]
            total = before[1] + heavier
            blocks[-1] = [(before[0] * before[1] + mean * heavier) / total, total, before[2] + length]
    return sign * numpy.concatenate([numpy.full(int(length), mean) for mean, _, length in blocks] or [values])


def crossings(
    curves: numpy.ndarray, weights: numpy.ndarray, positions: numpy.ndarray, thresholds: numpy.ndarray
) -> numpy.ndarray:
    """Return where the non-increasing isotonic fit of each curve first is at or below its threshold: (B,).

    Between two levels the fit is a straight line. inf: the fit stays above; -inf: it lies at or below from the first
    level on; NaN: the curve has a level without a value or without weight, or the threshold is not finite.

    Args:
        curves: (B, L), a curve in each row.
        weights: (B, L) or (1, L), of the levels.
        positions: (L,), increasing.
        thresholds: (B,).

    With S_m the sum of w_i (y_i - t) over the first m levels, exactly those levels lie above t in the fit that stand
    before the first maximum of S, and the fitted values on its two sides are the smallest slope that leads up to it
    and the largest that leads on.
    """
    weights = numpy.broadcast_to(weights, curves.shape)
    usable = numpy.isfinite(curves).all(axis=1) & (weights > 0).all(axis=1) & numpy.isfinite(thresholds)
    result = numpy.full(len(curves), numpy.nan)
    if not usable.any():
        return result
    curves, weights, thresholds = curves[usable], weights[usable], thresholds[usable]
    sums = _cumulative(weights * (curves - thresholds[:, None]))
    totals = _cumulative(weights)
    above = sums.argmax(axis=1)  # the first one, so a fit that equals the threshold counts as down
    found = numpy.where(above == 0, -numpy.inf, numpy.inf)
    inside = (above > 0) & (above < curves.shape[1])
    found[inside] = _between(sums[inside], totals[inside], above[inside], positions)
    result[usable] = found
    return result


def _between(sums, totals, above, positions) -> numpy.ndarray:
    rows, places = numpy.arange(len(sums)), numpy.arange(sums.shape[1])
    rise, run = sums - sums[rows, above][:, None], totals - totals[rows, above][:, None]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        slopes = rise / run
    before = numpy.where(places < above[:, None], slopes, numpy.inf).min(axis=1)
    after = numpy.where(places > above[:, None], slopes, -numpy.inf).max(axis=1)
    left, right = positions[above - 1], positions[above]
    return left + before / (before - after) * (right - left)


def _cumulative(matrix: numpy.ndarray) -> numpy.ndarray:
    """Cumulative sums along the rows, beginning with 0: (B, L) -> (B, L + 1)."""
    return numpy.concatenate([numpy.zeros((len(matrix), 1)), numpy.cumsum(matrix, axis=1)], axis=1)
