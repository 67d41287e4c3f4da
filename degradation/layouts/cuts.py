"""Parts of a tensor that holds several projections, and the patterns that pick tensors by name.

Sources: the `forward` methods of transformers 5.24, by which the tests read every layout again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

QKV = "qkv"


@dataclass(frozen=True)
class Slice:
    """A part of a contiguous tensor: `tensor.view(view_shape).narrow(dim, start, length)`."""

    view_shape: tuple[int, ...]
    dim: int
    start: int
    length: int

    @property
    def numel(self) -> int:
        return math.prod(self.view_shape) // self.view_shape[self.dim] * self.length

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (flat start, length) of each contiguous run of elements, in ascending order."""
        inner = math.prod(self.view_shape[self.dim + 1 :])
        step = self.view_shape[self.dim] * inner
        for outer in range(math.prod(self.view_shape[: self.dim])):
            yield outer * step + self.start * inner, self.length * inner


class Heads(NamedTuple):
    """Heads of an attention layer: number of query heads, number of key and value heads, width of each.

    value_width: of a head of v and o, where it differs.
    """

    query: int
    key_value: int
    width: int
    value_width: int | None = None

    def rows(self, part: str) -> int:
        """Return how many outputs the projection q, k or v has, or inputs o."""
        number = self.query if part in "qo" else self.key_value
        return number * (self.width if part in "qk" else self.value_width or self.width)


Cut = Callable[[tuple[int, ...], Heads], Slice]


@dataclass(frozen=True)
class Pick:
    """Parameters by the full match of their canonical names; `cut` takes a part of each, called `part`.

    holds: the projections that a cut tensor holds. stacked: only tensors (expert, rows, columns).
    """

    pattern: str
    part: str | None = None
    cut: Cut | None = None
    holds: str = QKV
    stacked: bool = False

    def head_width(self, heads: Heads) -> int:
        """Return how many rows stand between the beginnings of two heads: k and v of one lie together in MLA."""
        return heads.width + (heads.value_width or heads.width) if self.holds == "kv" else heads.width


def stacked(part: str, axis: int) -> Cut:
    """Cut q, k or v out of a matrix in which they stand one after the other along an axis: 0, its rows; 1, columns."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        start = sum(heads.rows(other) for other in QKV[: QKV.index(part)])
        return Slice(shape, axis, start, heads.rows(part))

    return cut


def rows_by_head(part: str) -> Cut:
    """Cut q, k or v out of a matrix whose rows are (head, q k v, width)."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        return Slice((heads.query, 3, heads.width, *shape[1:]), 1, QKV.index(part), 1)

    return cut


def rows_by_group(part: str) -> Cut:
    """Cut q, k or v out of a matrix whose rows are (key head, its queries and k and v, width), as Falcon's."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        queries = heads.query // heads.key_value
        start, length = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[part]
        return Slice((heads.key_value, queries + 2, heads.width, *shape[1:]), 1, start, length)

    return cut


def rows_by_quarter(part: str) -> Cut:
    """Cut q, k or v out of a matrix whose rows are (quarter of the heads, q v k, rows), as CodeGen's."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        return Slice((4, 3, heads.query // 4 * heads.width, *shape[1:]), 1, "qvk".index(part), 1)

    return cut


def rows_of_latent(part: str) -> Cut:
    """Cut k or v out of a matrix whose rows are (head, k then v), as multi-head latent attention's (DeepSeek)."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        key, value = heads.width, heads.value_width or heads.width
        start, length = (0, key) if part == "k" else (key, value)
        return Slice((heads.query, key + value, *shape[1:]), 1, start, length)

    return cut


def half_of_rows(index: int) -> Cut:
    """Cut the first (0) or second (1) half of the rows out of a matrix, or of each matrix of a stack."""

    def cut(shape: tuple[int, ...], heads: Heads) -> Slice:
        *stack, rows, columns = shape
        return Slice((*stack, 2, rows // 2, columns), len(stack), index, 1)

    return cut
