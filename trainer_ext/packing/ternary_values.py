"""Whether the values of a dense weight are ternary, found by looking at them a few rows at a time.

A weight is ternary where every value is -s, 0 or +s, with one s for the tensor, for each row, or for each group of 128,
64 or 32 neighbouring inputs of a row. Nothing in a checkpoint says which: the largest that fits is taken. What fits
large groups fits small ones too, so one pass over the values with groups of 32 decides it.
Shapes: O outputs, I inputs, g = 32, G = ceil(I / g) groups, the last of which may be short.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from frankenlm.modeling.ternary import TILE, pack_ternary, packed_shape

FINEST = 32
GROUP_SIZES = (128, 64, 32)
TENSOR, ROW = "tensor", "row"
VALUES_AT_ONCE = 1 << 18
SHOWN_VALUES = 5


class NotTernaryError(ValueError):
    """A weight that is not ternary; the message shows values that are too many."""


class TernaryWeight(NamedTuple):
    """A weight in two bits: weight ~ codes * scale.

    Attributes:
        tiles: uint8 (ceil(O/16), ceil(I/16), 64), as in modeling/ternary.py.
        scale: float32; (O,), the same value for all rows where it belongs to the tensor, or (O, ceil(I / group_size)).
        group_size: inputs that share a scale; None: a row's or the tensor's.
        axis: "tensor", "row", or "group".
        zeros: how many weights are 0.
    """

    tiles: torch.Tensor
    scale: torch.Tensor
    group_size: int | None
    axis: str
    zeros: int

    @property
    def kind(self) -> str:
        """Its axis in a word: "tensor", "row", "group-128"."""
        return self.axis if self.group_size is None else f"group-{self.group_size}"


def rows_at_once(columns: int) -> int:
    """Return how many rows to read at a time: whole tiles of them."""
    return max(1, VALUES_AT_ONCE // max(columns, 1) // TILE) * TILE


class TernaryLook:
    """Takes the rows of a weight (O, I) in order, in parts of whole tiles but for the last, and packs them."""

    def __init__(self, rows: int, columns: int):
        self.rows, self.columns = rows, columns
        self._tiles = torch.empty(packed_shape(rows, columns), dtype=torch.uint8)
        self._scales = torch.empty(rows, -(-columns // FINEST), dtype=torch.float32)
        self._zeros = 0
        self._seen = 0

    def add(self, values: torch.Tensor) -> None:
        """Take the next rows, (R, I) in any float format.

        Raises:
            NotTernaryError: a group of 32 with values other than -s, 0 and +s.
            ValueError: NaN or infinity.
        """
        full = values if values.dtype == torch.float64 else values.float()  # what float32 makes alike may not be
        by_group = F.pad(full, (0, -self.columns % FINEST)).unflatten(1, (-1, FINEST))  # (R, G, g)
        magnitude = by_group.abs()
        scales = magnitude.amax(2)
        if not scales.isfinite().all():
            raise ValueError("holds NaN or infinity.")
        fits = ((magnitude == 0) | (magnitude == scales.unsqueeze(2))).all(2)
        if not fits.all():
            row, group = (~fits).nonzero()[0].tolist()
            raise NotTernaryError(_too_many(by_group[row, group], self._seen + row, group * FINEST, self.columns))
        first, last = self._seen, self._seen + len(values)
        self._scales[first:last] = scales
        codes = full.sign().to(torch.int8)
        self._zeros += int((codes == 0).sum())
        self._tiles[first // TILE : -(-last // TILE)] = pack_ternary(codes)
        self._seen = last

    def found(self) -> TernaryWeight:
        """Return the weight with the fewest scales that hold it, after all rows were taken."""
        axis, group_size, scale = fewest_scales(self._scales)
        return TernaryWeight(self._tiles, scale, group_size, axis, self._zeros)


def fewest_scales(scales: torch.Tensor) -> tuple[str, int | None, torch.Tensor]:
    """Return axis, group size and scale, as in `TernaryWeight`, that stand for scales (O, G) of groups of 32.

    A group whose scale is 0 holds zeros alone, which any scale leaves as they are.
    """
    largest = scales.max() if scales.numel() else scales.new_zeros(())
    if _all_are(scales, largest):
        return TENSOR, None, largest.expand(scales.shape[0]).contiguous()
    by_row = scales.amax(1)
    if _all_are(scales, by_row.unsqueeze(1)):
        return ROW, None, by_row
    for size in GROUP_SIZES[:-1]:
        joined = F.pad(scales, (0, -scales.shape[1] % (size // FINEST))).unflatten(1, (-1, size // FINEST))
        by_group = joined.amax(2)
        if _all_are(joined, by_group.unsqueeze(2)):
            return "group", size, by_group
    return "group", FINEST, scales


def _all_are(scales: torch.Tensor, value: torch.Tensor) -> bool:
    return bool(((scales == 0) | (scales == value)).all())


def _too_many(group: torch.Tensor, row: int, column: int, columns: int) -> str:
    """Say which values of one group are no three of -s, 0 and +s."""
    values = group.unique()
    shown = ", ".join(f"{value:.6g}" for value in values[:SHOWN_VALUES].tolist())
    more = f" and {len(values) - SHOWN_VALUES} others" if len(values) > SHOWN_VALUES else ""
    last = min(column + FINEST, columns) - 1
    return f"is not ternary: row {row}, columns {column} to {last}, holds {shown}{more}, not -s, 0 and +s alone."
