"""What a collator's batch says of its documents: whose each place is, where one begins, and what is only a pad.

What is no token of a document may be a pad, or a token that the collator adds: an end behind each document, a separator
between two, a beginning before one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

NO_DOCUMENT = -1
MOST_ADDED = 2  # tokens at one end of a document; more, where a row begins or ends, are pads


@dataclass(frozen=True)
class Collated:
    """A batch, and which document each of its places is of.

    ids: (B, L) int64. owners: (B, L) int64, NO_DOCUMENT at pads.
    told: for each form that the batch speaks, (B, L) bool: where it says that a document begins behind another.
    """

    batch: Mapping[str, Any]
    ids: torch.Tensor
    owners: torch.Tensor
    told: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def has_other_mask(self) -> bool:
        """Whether there is a mask that cannot be read, such as one that a kernel makes for itself."""
        return self.batch.get("attention_mask") is not None and attended_places(self.batch, self.owners) is None

    @property
    def starts(self) -> torch.Tensor:
        """(B, L) bool: where a document begins behind another one in its row, whatever lies between them."""
        before = _previous(self.owners, self.owners != NO_DOCUMENT)
        return (self.owners != before) & (self.owners != NO_DOCUMENT) & (before != NO_DOCUMENT)


def collated(batch: Mapping[str, Any], ids: torch.Tensor, owners: torch.Tensor) -> Collated:
    """Return what becomes of a batch; owners (B, L): of the documents' own tokens, NO_DOCUMENT elsewhere."""
    real = (owners != NO_DOCUMENT) | _added(batch, owners)
    told = _told(batch, owners, real)
    first = next(iter(told.values()), torch.zeros_like(real))
    return Collated(batch, ids, _with_added(owners, real, first), told)


def attended_places(batch: Mapping[str, Any], owners: torch.Tensor) -> torch.Tensor | None:
    """Return (B, L) bool: which places the attention_mask shows; None where there is no mask that can be read.

    A mask of four dimensions shows what a document sees, and what sees itself and a document: the last token of a block
    is seen by no other, and a pad may see something lest its scores be empty.
    """
    mask = batch.get("attention_mask")
    if torch.is_tensor(mask) and mask.shape == owners.shape:
        return mask.bool()
    seen = _seen(batch, owners)
    if seen is None:
        return None
    known = owners != NO_DOCUMENT
    closing = seen.diagonal(dim1=1, dim2=2) & (seen & known[:, None, :]).any(2)
    return (seen & known[:, :, None]).any(1) | closing


def _seen(batch: Mapping[str, Any], owners: torch.Tensor) -> torch.Tensor | None:
    """Return (B, L, L) bool of a mask of four dimensions: whether a place (row) sees another (column)."""
    mask = batch.get("attention_mask")
    size, length = owners.shape
    if not torch.is_tensor(mask) or mask.ndim != 4 or mask.shape[2:] != (length, length):
        return None
    added = mask.is_floating_point() and bool((mask < 0).any())  # to the scores: 0 where one is seen
    return (mask == 0 if added else mask.bool()).any(1).expand(size, -1, -1)


def _added(batch: Mapping[str, Any], owners: torch.Tensor) -> torch.Tensor:
    """Return (B, L) bool: tokens of no document that are no pads either.

    Between documents that is all that the mask does not hide. At an end of a row, where pads are, it is as many as
    every document has, or the beginning of a row that a mask shows.
    """
    attended = attended_places(batch, owners)
    visible = (owners == NO_DOCUMENT) & (torch.ones_like(owners, dtype=torch.bool) if attended is None else attended)
    behind, before = _beside_each(owners, visible), _beside_each(owners.flip(1), visible.flip(1))
    inside = torch.zeros_like(visible)
    for row, known in enumerate(owners != NO_DOCUMENT):
        columns = known.nonzero()[:, 0].tolist()
        if not columns:
            continue
        first = columns[0]
        begins = first if attended is not None and first <= MOST_ADDED else before
        inside[row, first - min(begins, first) : columns[-1] + 1 + behind] = True
    return visible & inside


def _beside_each(owners: torch.Tensor, visible: torch.Tensor) -> int:
    """How many visible tokens of no document follow each document at least; 0 where it is more than is ever added."""
    last = torch.zeros_like(visible)
    last[:, :-1] = owners[:, :-1] != owners[:, 1:]
    last[:, -1] = True
    counts = []
    for row, column in (last & (owners != NO_DOCUMENT)).nonzero().tolist():
        rest = visible[row, column + 1 :].long()
        counts.append(int(rest.cumprod(0).sum()))
    return min(counts) if min(counts) <= MOST_ADDED else 0


def _with_added(owners: torch.Tensor, real: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Return owners (B, L): an added token is of the document before it, or of the next where that has begun."""
    known = owners != NO_DOCUMENT
    before, after = _previous(owners, known), _previous(owners.flip(1), known.flip(1)).flip(1)
    begun = told.long().cumsum(1)
    of_next = (before == NO_DOCUMENT) | ((begun > _previous(begun, known)) & (after != NO_DOCUMENT))
    return torch.where(known, owners, torch.where(real, torch.where(of_next, after, before), NO_DOCUMENT))


def _told(batch: Mapping[str, Any], owners: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return where each form says that a document begins behind another; pads between them say nothing."""
    known = owners != NO_DOCUMENT
    behind = real & (_previous(owners, known) != NO_DOCUMENT)
    told = {}
    blocks = _separated(batch, owners, real) & behind
    positions, numbers = (_of_each_place(batch.get(name), owners) for name in ("position_ids", "seq_idx"))
    if positions is not None:
        starts = (positions == positions[real].min()) & behind
        if bool(starts.any()) or not bool(blocks.any()):  # with a mask of blocks they may run on
            told["position_ids"] = starts
    if numbers is not None:
        told["seq_idx"] = (numbers != _previous(numbers, real)) & behind
    ends = batch.get("cu_seq_lens_q")
    places = real.flatten().nonzero()[:, 0]
    if torch.is_tensor(ends) and int(ends[-1]) in (real.numel(), len(places)):
        starts = torch.zeros_like(real)
        at = ends[1:-1].long()
        starts.view(-1)[at if int(ends[-1]) == real.numel() else places[at]] = True
        told["cu_seq_lens"] = starts & behind
    if bool(blocks.any()):
        told["attention_mask"] = blocks
    return told


def _of_each_place(values: Any, owners: torch.Tensor) -> torch.Tensor | None:
    return values if torch.is_tensor(values) and values.shape == owners.shape else None


def _separated(batch: Mapping[str, Any], owners: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return (B, L) bool: places from which on a mask of four dimensions lets nothing see what was before."""
    seen = _seen(batch, owners)
    if seen is None:
        return torch.zeros_like(real)
    pairs = seen & real[:, :, None] & real[:, None, :]
    pairs = pairs | pairs.transpose(1, 2)
    return torch.stack([~pairs[:, place:, :place].any(2).any(1) for place in range(real.shape[1])], 1)


def _previous(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return (B, L): the value at the last known place before each, and NO_DOCUMENT where there is none."""
    places = torch.where(known, torch.arange(known.shape[1]), -1).cummax(1).values.roll(1, 1)
    places[:, 0] = -1
    return torch.where(places < 0, NO_DOCUMENT, values.gather(1, places.clamp(min=0)))
