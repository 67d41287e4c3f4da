"""Which queries attention takes together, and which keys they can reach, so that its cost is that of what is in reach.

Under a window the cost does not grow with the length, and a row of many documents costs what its documents cost.
Shapes: B batch, L new tokens, T keys, those of the past first; Lq queries and Lk keys of a block.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Blocks much shorter than this would spend their time on overhead: short documents share one.
MIN_BLOCK = 128
# A mask makes attention compute what it hides: behind the first run of a causal block, queries are taken this many at a
# time, so that half of that square is all that is wasted. 256 to 736 made no difference above the noise.
MASKED_QUERIES = 384


@dataclass(frozen=True)
class Block:
    """Some queries and the keys that they may look at.

    Attributes:
        queries, keys: slices of the L new tokens and of the T keys.
        query_ids, key_ids: positions of which the differences count, (B or 1, Lq) and (B or 1, Lk).
        visible: (B or 1, 1, Lq, Lk) bool, True where a query may see a key; None when nothing but `is_causal` restricts
            it. Every query sees at least itself, so no softmax runs over nothing.
        is_causal: True when `visible` is None and query i sees keys 0..i only.
        is_contiguous: True when positions rise by 0 or 1 from key to key.
    """

    queries: slice
    keys: slice
    query_ids: torch.Tensor
    key_ids: torch.Tensor
    visible: torch.Tensor | None
    is_causal: bool
    is_contiguous: bool

    def visible_keys(self) -> torch.Tensor:
        """Return `visible` spelled out, (B or 1, 1, Lq, Lk) bool."""
        if self.visible is not None:
            return self.visible
        everything = torch.ones(
            self.query_ids.shape[1], self.key_ids.shape[1], dtype=torch.bool, device=self.key_ids.device
        )
        return (everything.tril() if self.is_causal else everything)[None, None]


def end_mask(keys: int, like: torch.Tensor) -> torch.Tensor:
    """Return (Lq, keys), Lq at most MASKED_QUERIES, to be added to the scores of the last queries of `keys` tokens: 0
    at keys that they see, minus infinity at those ahead.

    Its last columns serve the last queries of fewer tokens. It is no bool mask, of which attention would keep a copy in
    floats for each call.
    """
    queries = min(MASKED_QUERIES, keys)
    return like.new_full((queries, keys), float("-inf")).triu(keys - queries + 1)


class BlockBounds(NamedTuple):
    """Queries start..stop of the L new tokens with keys first..last of the T.

    is_whole: all of these keys and queries are of one document, in every row.
    """

    start: int
    stop: int
    first: int
    last: int
    is_whole: bool = False


def cut_by_window(length: int, past: int, window: int | None, reach: int | None, is_causal: bool) -> list[BlockBounds]:
    """Cut L queries into blocks of at least MIN_BLOCK, each with the keys up to `reach` columns away; one block without
    a window, or when it is as long as the text."""
    size = length if window is None else max(window, MIN_BLOCK)
    if size >= length:
        return [BlockBounds(0, length, 0, past + length)]
    pieces = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        last = past + (stop if is_causal else min(stop + reach, length))
        pieces.append(BlockBounds(start, stop, max(past + start - reach, 0), last))
    return pieces


def cut_at_documents(
    ids: torch.Tensor, past: int, window: int | None, reach: int | None, is_causal: bool
) -> list[BlockBounds]:
    """Cut L queries so that each block reaches no further than its documents do, nor than a window's `reach`.

    Where all rows have the same documents, ids (B or 1, L), a long one is a block of its own and short ones share one;
    otherwise blocks have a fixed size, and reach from the first to the last document that any row has in them.
    """
    ids = ids.cpu()
    length = ids.shape[1]
    columns = torch.arange(length)
    changes = ids.diff(dim=1) != 0
    begins = torch.where(F.pad(changes, (1, 0), value=True), columns, 0).cummax(1).values
    begins = torch.where(ids == 0, 0, past + begins)  # (B or 1, L), the first key of each token's document
    ends = torch.where(F.pad(changes, (0, 1), value=True), columns + 1, length)
    ends = past + ends.flip(1).cummin(1).values.flip(1)  # the key behind its last one
    size = MIN_BLOCK if window is None else max(window, MIN_BLOCK)
    is_shared = bool((ids == ids[:1]).all())
    cuts = _cuts_between(changes[0], None if window is None else size) if is_shared else list(range(0, length, size))
    earliest, latest = begins.amin(0).tolist(), begins.amax(0).tolist()
    soonest, farthest = ends.amin(0).tolist(), ends.amax(0).tolist()
    pieces = []
    for start, stop in zip(cuts, [*cuts[1:], length], strict=True):
        first, last = earliest[start], past + stop if is_causal else farthest[stop - 1]
        is_whole = latest[stop - 1] == first and soonest[start] >= last
        if reach is not None:
            first, last = max(first, past + start - reach), min(last, past + stop + reach)
        pieces.append(BlockBounds(start, stop, first, last, is_whole))
    return pieces


def _cuts_between(changes: torch.Tensor, longest: int | None) -> list[int]:
    """Return where blocks begin, given where documents change (L - 1): short documents share a block up to MIN_BLOCK,
    a long one is cut into blocks of `longest`."""
    borders = [0, *(changes.nonzero().flatten() + 1).tolist(), len(changes) + 1]
    cuts = [0]
    for start, stop in zip(borders, borders[1:], strict=False):
        if stop - cuts[-1] > MIN_BLOCK and start > cuts[-1]:
            cuts.append(start)
        if longest is not None:
            cuts += range(start + longest, stop, longest) if cuts[-1] == start else ()
    return cuts
