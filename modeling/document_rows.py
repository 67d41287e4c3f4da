"""Packed documents laid out as rows of their own, for parts that know rows only.

Documents of about the same length share a batch, so that padding at most doubles what is computed for any of them.
Shapes: B batch, L length, N documents of a group, M the length of its longest, F features.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of about the same length.

    Attributes:
        rows: (N,) int64, the packed row of each.
        numbers: (N,) int64, which document of its row it is.
        places: (N, M) int64, its tokens in the flattened (B L); behind its last one any.
        inside: (N, M) bool, False behind its last token.
    """

    rows: torch.Tensor
    numbers: torch.Tensor
    places: torch.Tensor
    inside: torch.Tensor

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, M, F) of x (B, L, F)."""
        return x.flatten(0, 1).index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return (N, M) bool, True at real tokens of mask (B, L); None where there are no others."""
        real = self.inside if mask is None else self.inside & mask.flatten()[self.places]
        return None if bool(real.all()) else real


def group_documents(ids: torch.Tensor) -> list[DocumentGroup]:
    """Return the documents of ids (B, L), int64 and never falling, in groups of which none holds one twice as long as
    another."""
    batch_size, length = ids.shape
    is_start = torch.ones_like(ids, dtype=torch.bool)
    is_start[:, 1:] = ids.diff(dim=1) != 0
    starts = is_start.flatten().nonzero().flatten()  # row after row, document after document
    lengths = torch.cat([starts, starts.new_tensor([batch_size * length])]).diff()
    doublings = torch.tensor([(each - 1).bit_length() for each in lengths.tolist()], device=ids.device)
    groups = []
    for doubling in doublings.unique().tolist():
        members = doublings == doubling
        begins, sizes = starts[members], lengths[members]
        steps = torch.arange(int(sizes.max()), device=ids.device)
        inside = steps < sizes[:, None]
        places = begins[:, None] + torch.where(inside, steps, 0)
        groups.append(DocumentGroup(begins // length, ids.flatten()[begins], places, inside))
    return groups


def bring_back(groups: list[DocumentGroup], parts: list[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Return (B, L, F) from each group's (N, M, F)."""
    tokens = [group.inside.flatten().nonzero().flatten() for group in groups]
    places = torch.cat([group.places.flatten()[each] for group, each in zip(groups, tokens, strict=True)])
    together = torch.cat([part.flatten(0, 1)[each] for part, each in zip(parts, tokens, strict=True)])
    return together.index_select(0, places.argsort()).unflatten(0, shape)
