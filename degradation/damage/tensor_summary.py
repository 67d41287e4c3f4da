"""What damage must know of an undamaged tensor as a whole: its mean square and its ranges."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch

from .layout import Layout

EXTREMES = 8
EXTREMES_PIECE = 1 << 20
RANGE_UNITS = {"per_row": "row", "group128": "group128"}


class Ranges(NamedTuple):
    """Ends of the ranges of values, float64 [units]; one unit for the whole tensor."""

    low: np.ndarray
    high: np.ndarray


class Summary:
    """The undamaged elements `rows` [outer, length] of a layout, asked on demand, each question once.

    Numbers are of w, or of the gain 1 + w where the layout says so; in float64, in the order of the flat index.
    """

    def __init__(self, name: str, rows: torch.Tensor, layout: Layout):
        self.name, self.rows, self.layout = name, rows, layout

    def values(self, piece) -> np.ndarray:
        """Return the elements of a piece, float64 [numel]."""
        part = piece.of(self.rows).to("cpu", torch.float64).reshape(-1).numpy()
        return part + self.layout.gain_offset

    @functools.cached_property
    def mean_square(self) -> float:
        """The mean of the squares."""
        sums = [float(np.add.reduce(np.square(self.values(piece)))) for piece in self.layout.pieces()]
        return math.fsum(sums) / self.layout.numel

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value.

        Raises:
            ValueError: a value is infinite or no number.
        """
        low, high = math.inf, -math.inf
        for piece in self.layout.pieces():
            least, most = torch.aminmax(piece.of(self.rows))  # NaN wins
            low, high = min(low, least.item()), max(high, most.item())
            if not (math.isfinite(least) and math.isfinite(most)):
                raise ValueError(f"{self.name} holds infinities or NaN, which uni_quant has no level for.")
        return low + self.layout.gain_offset, high + self.layout.gain_offset

    def bound(self, percentile: float) -> float:
        """Return the percentile of the magnitudes: the smallest one that so many percent of them do not exceed."""
        magnitudes = np.concatenate([np.abs(self.values(piece)).astype(np.float32) for piece in self.layout.pieces()])
        place = max(0, math.ceil(percentile / 100 * len(magnitudes)) - 1)
        return float(np.partition(magnitudes, place)[place])

    @functools.cached_property
    def extremes(self) -> np.ndarray:
        """The places of the EXTREMES largest magnitudes, the largest first: rows and columns of `rows`, [2, count]."""
        found = []
        for piece in self.layout.pieces(EXTREMES_PIECE):
            part = piece.of(self.rows)
            magnitudes = (part.float() + self.layout.gain_offset).abs().reshape(-1)
            values, places = magnitudes.topk(min(EXTREMES, piece.numel))
            row, column = np.divmod(places.cpu().numpy(), piece.stop - piece.start)
            found.append(np.stack([values.cpu().numpy(), row + piece.row_start, column + piece.start]))
        values, *places = np.concatenate(found, axis=1, dtype=np.float64)
        order = np.argsort(-values, kind="stable")[:EXTREMES]
        return np.stack(places)[:, order].astype(np.int64)

    def unit_ends(self, kind: str, bound: float) -> Ranges:
        """Return the ends of the values of each unit, clipped to +-bound; units that do not occur get 0 and 0."""
        count = self.layout.unit_count(kind)
        low, high = np.full(count, math.inf), np.full(count, -math.inf)
        for piece in self.layout.pieces():
            units, values = self.layout.numbers(kind, piece), np.clip(self.values(piece), -bound, bound)
            np.minimum.at(low, units, values)
            np.maximum.at(high, units, values)
        empty = low > high
        low[empty] = high[empty] = 0
        return Ranges(low, high)


def value_ranges(summary: Summary, shared_by: str, symmetric: bool, percentile: float | None) -> Ranges:
    """Return the ranges that uni_quant divides.

    Args:
        shared_by: per_tensor, per_row or group128. symmetric: about zero. percentile: clip values to it first.
    Raises:
        ValueError: a value is infinite or no number.
    """
    low, high = summary.ends
    bound = math.inf if percentile is None else summary.bound(percentile)
    if shared_by == "per_tensor":
        ranges = Ranges(np.array([max(low, -bound)]), np.array([min(high, bound)]))
    else:
        ranges = summary.unit_ends(RANGE_UNITS[shared_by], bound)
    if symmetric:
        widest = np.maximum(-ranges.low, ranges.high)
        return Ranges(-widest, widest)
    return ranges
