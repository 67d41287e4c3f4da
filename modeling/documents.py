"""Several documents packed into one row: which document each token is of, from the forms that transformers speaks.

`position_ids` that begin again at 0 (DataCollatorWithFlattening, TRL's packing), `seq_idx` (a number for each token's
document), or `cu_seq_lens_q` and `cu_seq_lens_k` (where the documents of one padding-free row begin and end).
Shapes: B batch, L new tokens, N documents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch


class DocumentBorders(TypedDict, total=False):
    """The borders between packed documents that a model takes beside `position_ids`, spelled as in transformers.

    seq_idx: (B, L) or (1, L) integers that never fall: equal for the tokens of one document.
    cu_seq_lens_q, cu_seq_lens_k: (N + 1,) integers, 0, the end of each document in tokens, and so L at last; equal to
        each other, for a batch of one row.
    max_length_q, max_length_k: the length of the longest document, or more.
    """

    seq_idx: torch.Tensor | None
    cu_seq_lens_q: torch.Tensor | None
    cu_seq_lens_k: torch.Tensor | None
    max_length_q: int | None
    max_length_k: int | None


BORDER_NAMES = tuple(DocumentBorders.__annotations__)


def borders_in(kwargs: dict) -> DocumentBorders:
    """Return those of a call's keyword arguments that tell borders."""
    # a plain dict: torch.compile takes no TypedDict whose keys are optional into its graph
    return {name: kwargs[name] for name in BORDER_NAMES if kwargs.get(name) is not None}


@dataclass(frozen=True)
class Documents:
    """Which document each token of a row is of.

    Attributes:
        ids: (B or 1, L) int64, never falling. Document 0 is that of what a cache holds, or the first one without a
            past; pads are of the document of the real token before them, at the left of the first.
        count: how many documents there are at most; under torch.compile, where nobody looks, as many as could be.
    """

    ids: torch.Tensor
    count: int

    @classmethod
    def beginning_at(cls, starts: torch.Tensor) -> "Documents":
        """Return the documents that begin where starts (B or 1, L) is True, and the one before the first of them."""
        ids = starts.long().cumsum(1)
        return cls(ids, ids.shape[1] + 1 if torch.compiler.is_compiling() else int(ids.max()) + 1)

    def reversed(self) -> "Documents":
        """Return the documents of the row read backwards, numbered in that order."""
        return Documents(self.ids[:, -1:] - self.ids.flip(1), self.count)

    def convolve(
        self, convolution: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, front: int
    ) -> torch.Tensor:
        """Return what a convolution makes of each document by itself: it is given them with zeros between them.

        Args:
            convolution: (B, C, T) -> (B, C', T - K + 1), for a kernel of K places.
            inputs: (B, L + K - 1, C): `front` columns that belong to document 0, the L tokens, and zeros.

        Returns:
            (B, L, C').
        """
        batch_size, length = inputs.shape[0], self.ids.shape[1]
        gap = inputs.shape[1] - length
        width = inputs.shape[1] + gap * (self.count - 1)
        rows = torch.arange(batch_size, device=inputs.device)[:, None]
        # (B, L), where the first place of the kernel lies when its output is that of token i
        places = torch.arange(length, device=inputs.device) + gap * self.ids
        columns = torch.cat(
            [torch.arange(front, device=inputs.device).expand(places.shape[0], -1), places + front], dim=1
        )
        apart = inputs.new_zeros(batch_size * width, inputs.shape[2])
        apart = apart.index_copy(0, (rows * width + columns).flatten(), inputs[:, : front + length].flatten(0, 1))
        outputs = convolution(apart.unflatten(0, (batch_size, width)).transpose(1, 2)).transpose(1, 2)
        flat = (rows * outputs.shape[1] + places).flatten()
        return outputs.flatten(0, 1).index_select(0, flat).unflatten(0, (batch_size, length))


def find_starts(
    shape: tuple[int, int],
    *,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    borders: DocumentBorders | None = None,
    has_past: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return (B or 1, L) bool, True at the first real token of each document that is not its row's first.

    None means that there is one document a row. Under torch.compile nobody looks at the values: forms are then neither
    checked nor compared, borders go before positions, and positions always give a tensor.

    Args:
        shape: (B, L).
        mask: (B, L) bool, True at real tokens, or None.
        position_ids: (B or 1, L), where a pad has the position of the real token before it, 0 at the left.
        has_past: (B,) bool, the rows of which a cache holds real tokens.

    Raises:
        ValueError: a form of another shape, one that cannot be documents, or two that contradict each other.
    """
    forms = _borders_given(shape, mask, borders or {}, has_past)
    if position_ids is not None:
        forms["position_ids"] = (position_ids == 0) & _behind_real_tokens(position_ids, mask, has_past)
    if not forms:
        return None
    starts = next(iter(forms.values()))
    if torch.compiler.is_compiling():
        return starts
    for name, others in list(forms.items())[1:]:
        _check_agreement(next(iter(forms)), starts, name, others)
    if position_ids is not None:
        _check_rising(position_ids, starts)
    return starts if bool(starts.any()) else None


def documents_begin(
    shape: tuple[int, int],
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    borders: DocumentBorders,
) -> torch.Tensor | None:
    """Return `find_starts` from what a model is called with, `shape` being (B, L): (B or 1, L) bool, or None."""
    given = position_ids if position_ids is not None else borders.get("seq_idx")
    batch_size, length = shape if given is None else (shape[0], given.shape[1])
    mask = None if attention_mask is None else attention_mask[:, -length:].bool()
    if mask is not None and position_ids is not None:
        position_ids = settle_positions(position_ids, mask)
    return find_starts((batch_size, length), mask=mask, position_ids=position_ids, borders=borders)


def check_one_document(input_ids, inputs_embeds, attention_mask, position_ids, kwargs: dict) -> None:
    """Raise ValueError when a row of what a model is called with holds several documents."""
    rows = input_ids if inputs_embeds is None else inputs_embeds
    if rows is None or documents_begin(rows.shape[:2], attention_mask, position_ids, borders_in(kwargs)) is None:
        return
    if not torch.compiler.is_compiling():
        raise ValueError(
            "a row holds several documents, as its position_ids, seq_idx or cu_seq_lens tell, but gets one output: "
            "give each document a row of its own."
        )


def settle_positions(position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give pads the position of the last real token before them (0 at the left), as counting would; (B, L) each."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, 0).cummax(1).values
    return torch.where(mask, position_ids, 0).gather(1, last)


def _behind_real_tokens(like: torch.Tensor, mask, has_past) -> torch.Tensor:
    """Return (B or 1, L) bool, True at real tokens with a real token before them."""
    real = torch.ones_like(like, dtype=torch.bool) if mask is None else mask
    before = real.long().cumsum(1) - real.long()
    if has_past is not None:
        before = before + has_past[:, None].long()
    return real & (before > 0)


def _borders_given(shape, mask, borders, has_past) -> dict[str, torch.Tensor]:
    """Return the starts that each form among `borders` tells, by its name."""
    given = {}
    for name in ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"):
        value = borders.get(name)
        if value is None:
            continue
        if has_past is not None:
            raise ValueError(
                f"{name} beside a filled cache cannot tell whether the first new token goes on with the document in "
                "it: give position_ids, 0 where a document begins."
            )
        numbers = _numbers_of_tokens(name, value, shape)
        numbers = numbers if mask is None else _settle(numbers, mask)
        steps = numbers.diff(dim=1, prepend=numbers[:, :1])
        if not torch.compiler.is_compiling() and bool((steps < 0).any()):
            row, token = (steps < 0).nonzero()[0].tolist()
            raise ValueError(
                f"{name} falls from {int(numbers[row, token - 1])} to {int(numbers[row, token])} at token {token} of "
                f"row {row}: a document is in one piece, and the next one has a higher number."
            )
        given[name] = (steps != 0) & _behind_real_tokens(numbers, mask, None)
    _check_longest(borders)
    return given


def _numbers_of_tokens(name: str, value: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return (B or 1, L) int64, the number of each token's document."""
    batch_size, length = shape
    if name != "seq_idx":
        if batch_size > 1:
            raise ValueError(
                f"{name} tells the documents of one padding-free row, but the batch has {batch_size} rows: give "
                "seq_idx or position_ids."
            )
        _check_ends(name, value, length)
        # the end of document n is no longer of it
        return torch.searchsorted(value[1:].long(), torch.arange(length, device=value.device), right=True)[None]
    if value.shape not in ((batch_size, length), (1, length)):
        raise ValueError(f"seq_idx has shape {tuple(value.shape)}, expected ({batch_size}, {length}) or (1, {length}).")
    return value.long()


def _settle(numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give pads the number of the last real token before them, at the left that of the first real one."""
    places = torch.arange(numbers.shape[1], device=numbers.device)
    last = torch.where(mask, places, -1).cummax(1).values
    first = mask.long().argmax(1, keepdim=True)
    return numbers.expand(mask.shape).gather(1, torch.where(last < 0, first, last))


def _check_ends(name: str, ends: torch.Tensor, length: int) -> None:
    if ends.ndim != 1 or len(ends) < 2:
        raise ValueError(
            f"{name} has shape {tuple(ends.shape)}, expected (documents + 1,): 0 and the end of each document."
        )
    if torch.compiler.is_compiling():
        return
    if int(ends[0]) != 0 or int(ends[-1]) != length:
        raise ValueError(
            f"{name} runs from {int(ends[0])} to {int(ends[-1])}, but must run from 0 to the {length} tokens of the "
            "row."
        )
    if bool((ends.diff() <= 0).any()):
        place = int((ends.diff() <= 0).nonzero()[0])
        raise ValueError(
            f"{name} must rise, but document {place} would run from {int(ends[place])} to {int(ends[place + 1])}."
        )


def _check_longest(borders: DocumentBorders) -> None:
    for side in "qk":
        longest, ends = borders.get(f"max_length_{side}"), borders.get(f"cu_seq_lens_{side}")
        if longest is None or ends is None or torch.compiler.is_compiling():
            continue
        if int(ends.diff().max()) > longest:
            raise ValueError(
                f"max_length_{side}={int(longest)}, but cu_seq_lens_{side} has a document of {int(ends.diff().max())} "
                "tokens."
            )


def _check_agreement(name: str, starts: torch.Tensor, other: str, others: torch.Tensor) -> None:
    differ = starts != others
    if not bool(differ.any()):
        return
    row, token = differ.nonzero()[0].tolist()
    says, denies = (name, other) if bool(starts.expand_as(differ)[row, token]) else (other, name)
    raise ValueError(f"{says} begins a document at token {token} of row {row}, where {denies} does not.")


def _check_rising(position_ids: torch.Tensor, starts: torch.Tensor) -> None:
    falls = (position_ids.diff(dim=1) < 0) & ~starts[:, 1:]
    if bool(falls.any()):
        row, before = falls.nonzero()[0].tolist()
        here = position_ids.expand_as(starts) if len(starts) > len(position_ids) else position_ids
        raise ValueError(
            f"position_ids fall from {int(here[row, before])} to {int(here[row, before + 1])} at token {before + 1} of "
            f"row {row}: within a document they must not fall, and a document begins at 0."
        )
