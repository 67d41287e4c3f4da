"""Segments of unequal rows side by side: the tokens of a call on a grid of segments by tokens.

A slot memory (slot_memory.py) writes once per segment of real tokens, and every row stands elsewhere in its own.
Shapes: B batch, L length, C segments that a call touches (the open one first), T tokens of a segment that a call can
bring, F features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class SegmentGrid:
    """Where each new token lies among the segments of its row: a grid of C segments by T tokens.

    Attributes:
        num_segments, tokens_per_segment: C and T. T is the memory's segment, or 1 when one token comes at a time.
        cells: (B, L) int64, the cell of each token in the flattened grid, C * T for pads; None when token i is in
            cell i in every row.
        filled: (B or 1, C, T) bool, the cells that hold a real token.
        closed: (B,) int64, how many segments become full; the one after them stays open.
        count: (B,) int64, tokens then in the open segment.
    """

    num_segments: int
    tokens_per_segment: int
    cells: torch.Tensor | None
    filled: torch.Tensor
    closed: torch.Tensor
    count: torch.Tensor

    @classmethod
    def lay_out(cls, count: torch.Tensor, length: int, mask: torch.Tensor | None, segment: int, *, is_fresh: bool):
        """Lay out `length` new columns, of which mask (B, L) marks the real tokens, behind `count` (B,) earlier ones.

        `is_fresh` says that count is zero everywhere, which is then not looked up.
        """
        device = count.device
        # (B,) each: what a row has in its open segment after the call, counted in tokens and in full segments
        total = count + (length if mask is None else mask.sum(1))
        closed = total // segment
        # C is the most that any row can touch: a row may stand one token before its segment's end
        num_segments, width = -(-(length if is_fresh else segment - 1 + length) // segment), segment
        if torch.compiler.is_exporting():
            # one program for every length: written for one segment it would not serve two, so there is one more
            num_segments = ((length if is_fresh else segment - 1 + length) + 2 * segment - 1) // segment
        # (B, L), the place of each token counted from the start of the row's open segment
        if length == 1:
            num_segments, width = 1, 1  # the one cell that decoding needs
            position = torch.zeros_like(count)[:, None]
        elif mask is None:
            position = count[:, None] + torch.arange(length, device=device)
        else:
            position = count[:, None] + mask.cumsum(1) - 1
        size = num_segments * width
        if mask is None and (is_fresh or length == 1):
            cells, filled = None, (torch.arange(size, device=device) < length)[None]
        else:
            cells = position if mask is None else torch.where(mask, position, size)  # pads go to a cell past the end
            filled = torch.zeros(count.shape[0], size + 1, dtype=torch.bool, device=device)
            filled = filled.scatter(1, cells, True)[:, :-1]
        filled = filled.unflatten(1, (-1, width))
        return cls(num_segments, width, cells, filled, closed, total - closed * segment)

    @property
    def closes(self) -> torch.Tensor:
        """Return (B, C) bool: which segments become full."""
        return torch.arange(self.num_segments, device=self.closed.device) < self.closed[:, None]

    def spread(self, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Lay x (B, L, F) out on the grid: (B, C, T, F), with `fill` where no token is."""
        size = self.num_segments * self.tokens_per_segment
        if self.cells is None:
            grid = F.pad(x, (0, 0, 0, size - x.shape[1]), value=fill)
        else:
            grid = x.new_full((x.shape[0], size + 1, x.shape[2]), fill)
            grid = grid.scatter(1, self.cells[:, :, None].expand_as(x), x)[:, :-1]
        return grid.unflatten(1, (-1, self.tokens_per_segment))

    def collect(self, grid: torch.Tensor, length: int) -> torch.Tensor:
        """Bring a grid (B, C, T, F) back to the tokens' order: (B, L, F), zero at pads."""
        flat = grid.flatten(1, 2)
        if self.cells is None:
            return flat[:, :length]
        flat = F.pad(flat, (0, 0, 0, 1))
        return flat.gather(1, self.cells[:, :, None].expand(-1, -1, flat.shape[2]))
