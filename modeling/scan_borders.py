"""Documents in a chunked scan: what a token may take from its own chunk, from the state before it, and leave behind.

Every document starts from nothing, so sums of log decays start at 0 in it too: taken across a border, a document's
rounding would depend on the one before. Excluded pairs get an exponent of minus infinity before exp, as elsewhere.
Shapes: B batch, L length, C chunk length, N chunks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Chunks are taken this many tokens at a time. On a CPU what lies between stays in cache then, so that a token
# of a long sequence costs what a token of a short one does; elsewhere every segment launches its kernels anew, and what
# is bounded is the memory of a long row.
CPU_SEGMENT, OTHER_SEGMENT = 512, 8192


def segment_for(device_type: str, chunk_size: int) -> int:
    """Return how many tokens, a multiple of `chunk_size`, a scan on such a device takes at a time."""
    tokens = CPU_SEGMENT if device_type == "cpu" else OTHER_SEGMENT
    return max(tokens // chunk_size, 1) * chunk_size


@dataclass(frozen=True)
class ChunkBorders:
    """Which tokens of a chunk belong together.

    Attributes:
        ids: (B or 1, N, C) int64, the document of each token; behind the last token, that of the last.
        carried: (B or 1, N, C) bool, True where a token is of the document that the state before its chunk is of.
    """

    ids: torch.Tensor
    carried: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, before: torch.Tensor, chunk_size: int) -> "ChunkBorders":
        """Cut ids (B or 1, L) into chunks; the state before the first one is of the documents `before` (B or 1, 1)."""
        missing = -ids.shape[1] % chunk_size
        ids = torch.cat([ids, ids[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (-1, chunk_size))
        before = torch.cat([before, ids[:, :-1, -1]], dim=1)  # (B or 1, N)
        return cls(ids, ids == before[..., None])

    @property
    def apart(self) -> torch.Tensor:
        """Return (B or 1, N, C, C) bool, True for pairs of tokens of two documents."""
        return self.ids[..., :, None] != self.ids[..., None, :]

    @property
    def lasting(self) -> torch.Tensor:
        """Return (B or 1, N, C) bool, True where a token is of its chunk's last document."""
        return self.ids == self.ids[..., -1:]

    @property
    def survives(self) -> torch.Tensor:
        """Return (B or 1, N) bool, True where the state before a chunk is of its last document."""
        return self.carried[..., -1]

    def cumsum(self, x: torch.Tensor) -> torch.Tensor:
        """Return the cumulative sums of x (B or 1, H, N, C) over C, from 0 in every document."""
        ids, step = self.ids[:, None], 1
        while step < x.shape[-1]:  # x holds the sums of the last `step` tokens; those before them join
            is_same = ids[..., step:] == ids[..., :-step]
            x = x + F.pad(torch.where(is_same, x[..., :-step], 0.0), (step, 0))
            step *= 2
        return x


def exp_where(exponent: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """Return exp(exponent), 0 where `allowed` is False; None allows everything."""
    if allowed is None:
        return exponent.exp()
    # -inf goes in before exp: masking afterwards gives inf * 0 = NaN in the backward pass.
    return exponent.masked_fill(~allowed, float("-inf")).exp()


def split_borders(
    document_ids: torch.Tensor | None, length: int, segment: int, chunk_size: int
) -> list[ChunkBorders] | list[None]:
    """Return the borders of every segment of a scan over `length` tokens, given document_ids (B or 1, L) or None.

    The state that a scan starts from is that of document 0.
    """
    if document_ids is None:
        return [None] * -(-length // segment)
    pieces = document_ids.split(segment, dim=1)
    befores = [torch.zeros_like(document_ids[:, :1]), *(piece[:, -1:] for piece in pieces[:-1])]
    return [
        ChunkBorders.of(piece, before, min(chunk_size, piece.shape[1]))
        for piece, before in zip(pieces, befores, strict=True)
    ]


def borders_of_all(document_ids: torch.Tensor | None) -> ChunkBorders | None:
    """Return the borders of a scan that takes all tokens as one chunk, given document_ids (B or 1, L) or None."""
    if document_ids is None:
        return None
    ids = document_ids[:, None]
    return ChunkBorders(ids, ids == 0)
