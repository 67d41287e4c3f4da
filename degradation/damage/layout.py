"""Where the elements of a target lie: in memory, and in the flat index by which noise is addressed.

A target is a whole tensor or a slice `tensor.view(view_shape).narrow(dim, start, length)` of it. Its elements then are
`outer` runs of `length` neighbours, `stride` apart, the first at `offset`; a whole tensor is one run. Work goes over
`Piece`s of a few 10,000 elements: several whole runs, or a part of one. How a tensor is cut depends on its layout
alone, so sums over pieces come out the same for any number of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .noise import MASK, WORDS, Key, fill_counters, fill_words

GROUP = 128


class Piece(NamedTuple):
    """The elements [row_start:row_stop, start:stop] of a layout's runs taken as rows of a matrix."""

    row_start: int
    row_stop: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return (self.row_stop - self.row_start) * (self.stop - self.start)

    def of(self, rows):
        """Return this piece of a matrix [outer, length], a tensor or an array, as a view."""
        return rows[self.row_start : self.row_stop, self.start : self.stop]


@dataclass(frozen=True)
class Layout:
    """The runs of a target in the flat index of its whole tensor.

    shape: of the whole tensor. outer, length, stride, offset: see above, in elements. transposed: stored in x out, as
    GPT-2's Conv1D. head_dim, head_axis: size of a head, and the dimension of the stored matrix along which heads lie.
    gain_offset: 1 where the model scales by 1 + w, so that damage acts on the sum.
    """

    shape: tuple[int, ...]
    outer: int
    length: int
    stride: int
    offset: int = 0
    transposed: bool = False
    head_dim: int | None = None
    head_axis: int | None = None
    gain_offset: float = 0.0

    @classmethod
    def whole(cls, shape: tuple[int, ...], **fields) -> "Layout":
        """Return the layout of a whole tensor of that shape."""
        numel = int(np.prod(shape, dtype=np.int64))
        return cls(tuple(shape), 1, numel, numel, **fields)

    @classmethod
    def sliced(cls, shape: tuple[int, ...], view_shape: tuple[int, ...], dim: int, start: int, length: int, **fields):
        """Return the layout of `tensor.view(view_shape).narrow(dim, start, length)`.

        Raises:
            ValueError: the view does not hold as many elements as the tensor, or the slice leaves it.
        """
        inner = int(np.prod(view_shape[dim + 1 :], dtype=np.int64))
        outer = int(np.prod(view_shape[:dim], dtype=np.int64))
        if outer * view_shape[dim] * inner != int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"slice: view_shape={view_shape} does not fit a tensor of shape {tuple(shape)}.")
        if start < 0 or length < 1 or start + length > view_shape[dim]:
            raise ValueError(f"slice: {start}+{length} leaves dimension {dim} of {view_shape}.")
        return cls(tuple(shape), outer, length * inner, view_shape[dim] * inner, start * inner, **fields)

    @property
    def numel(self) -> int:
        return self.outer * self.length

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the elements within the whole (contiguous) tensor as a view [outer, length]."""
        offset = self.offset + tensor.storage_offset()
        return tensor.detach().as_strided((self.outer, self.length), (self.stride, 1), offset)

    def pieces(self, size: int = WORDS) -> Iterator[Piece]:
        """Cut the runs into pieces of about `size` elements; cuts within a run fall on multiples of `size`."""
        if self.length <= size:
            many = max(1, size // self.length)
            for row in range(0, self.outer, many):
                yield Piece(row, min(row + many, self.outer), 0, self.length)
            return
        for row in range(self.outer):
            start = 0
            while start < self.length:
                first = self.offset + row * self.stride + start
                stop = min(start + size - first % size, self.length)
                yield Piece(row, row + 1, start, stop)
                start = stop

    def starts(self, piece: Piece) -> np.ndarray:
        """Return the flat index of the first element of each of the piece's rows, int64 [rows]."""
        rows = np.arange(piece.row_start, piece.row_stop, dtype=np.int64)
        return self.offset + piece.start + rows * self.stride

    def flat_index(self, piece: Piece) -> np.ndarray:
        """Return the flat index of each of the piece's elements, int64 [numel]."""
        return (self.starts(piece)[:, None] + np.arange(piece.stop - piece.start)).reshape(-1)

    # --- units

    def unit_of(self, kind: str, flat: np.ndarray) -> np.ndarray:
        """Return the number of the row, column, head, expert or group128 (128 inputs of a row) of each index, int64.

        A row is an output of the layer, a column an input, however the matrix is stored; the matrices of a 3-D tensor
        are experts and have rows and columns of their own, and each element of a vector is a row.
        """
        *_, rows, columns = self.shape if len(self.shape) > 1 else (*self.shape, 1)
        matrix, inside = np.divmod(flat, rows * columns)
        first, last = np.divmod(inside, columns)
        if kind == "expert":
            return matrix
        if kind == "head":
            self.check_heads()
            return (first, last)[self.head_axis] // self.head_dim
        output, outputs, entry, inputs = (
            (last, columns, first, rows) if self.transposed else (first, rows, last, columns)
        )
        if kind == "row":
            return matrix * outputs + output
        if kind == "column":
            return matrix * inputs + entry
        return (matrix * outputs + output) * -(-inputs // GROUP) + entry // GROUP

    def numbers(self, kind: str, piece: Piece) -> np.ndarray:
        """Return the flat index (kind "element") or the number of the unit of each of the piece's elements, int64."""
        flat = self.flat_index(piece)
        return flat if kind == "element" else self.unit_of(kind, flat)

    def unit_count(self, kind: str) -> int:
        """Return one more than the largest number that `unit_of` gives for the whole tensor."""
        return int(self.unit_of(kind, np.array([int(np.prod(self.shape, dtype=np.int64)) - 1]))[0]) + 1

    def check_heads(self) -> None:
        """Raise ValueError unless heads are known."""
        if self.head_dim is None or self.head_axis is None:
            raise ValueError("unit='head': no heads are known in this group. Choose unit='row' or 'column'.")


def draw_words(layout: Layout, key: Key, piece: Piece, out: np.ndarray) -> None:
    """Write the words of a piece's elements to `out`, uint32 [numel]."""
    starts = layout.starts(piece)
    length = piece.stop - piece.start
    first, last = int(starts[0]) // 4, (int(starts[-1]) + length - 1) // 4
    per_row = (length + 6) // 4
    if len(starts) == 1 or first >> 32 != (last + per_row) >> 32:
        for row, start in enumerate(starts):
            fill_words(key, int(start), out[row * length : (row + 1) * length])
        return
    counters = (starts // 4)[:, None] + np.arange(per_row)
    drawn = np.empty((counters.size, 4), dtype=np.uint32)
    fill_counters(key, (counters & MASK).astype(np.uint64).reshape(-1), first >> 32, drawn)
    drawn, out = drawn.reshape(len(starts), 4 * per_row), out.reshape(len(starts), length)
    lead = starts % 4
    for value in np.unique(lead):
        chosen = slice(None) if (lead == value).all() else lead == value
        out[chosen] = drawn[chosen, value : value + length]
