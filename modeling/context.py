"""What a mixer needs to know about the batch besides its hidden states, computed once per forward pass.

Shapes: B batch, L new tokens, T keys they may see: those of the past that a cache keeps, then the new ones.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from .attention_blocks import Block, BlockBounds, cut_at_documents, cut_by_window
from .cache import LayerState, StateCache
from .documents import DocumentBorders, Documents, find_starts, settle_positions


@dataclass(frozen=True)
class SequenceContext:
    """Direction, padding, positions and memory of one batch.

    Attributes:
        is_causal: True when a token may see itself and the past only.
        position_ids: (B or 1, L) int64, the number of real tokens of its document before each token; 0 at left pads.
        is_contiguous: True when key_ids rise by 0 or 1 from key to key; False when the caller chose the positions.
        mask: (B, L) bool, True at real tokens; None when there is no padding.
        documents: which document each token is of; None when there is one document a row.
        key_ids: (B or 1, T) int64, position_ids that go on rising where a document ends: their differences are the
            distances within a document. key_mask: (B, T) bool, True at keys of real tokens, or None.
        attention_window: how many tokens back (and ahead, when bidirectional) attention reaches, itself included.
        inner_pads: the most pads that any row has after its first real token; 0 under torch.compile, where nobody
            looks.
        attn_implementation: "eager" or "sdpa".
        keep_weights: True when mixers return their attention weights (eager attention only).
        scan_backend: "torch" or "fla", what the scans run through.
        cache: what earlier calls left behind; None when nothing is kept.
    """

    is_causal: bool
    position_ids: torch.Tensor
    key_ids: torch.Tensor
    is_contiguous: bool = True
    mask: torch.Tensor | None = None
    documents: Documents | None = None
    key_mask: torch.Tensor | None = None
    attention_window: int | None = None
    inner_pads: int = 0
    attn_implementation: str = "sdpa"
    keep_weights: bool = False
    scan_backend: str = "torch"
    cache: StateCache | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        *,
        batch_size: int,
        length: int,
        device: torch.device,
        is_causal: bool,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        borders: DocumentBorders | None = None,
        attention_window: int | None = None,
        attn_implementation: str = "sdpa",
        keep_weights: bool = False,
        scan_backend: str = "torch",
        max_positions: int | None = None,
        cache: StateCache | None = None,
    ) -> "SequenceContext":
        """Derive the context from what a caller of the model gives, and book the new tokens into the cache.

        With a cache that holds P columns, `attention_mask` is (B, P + L) or (B, L) and positions go on from the past.
        Documents begin where `position_ids` (0) or `borders` say so; behind a past `position_ids` alone can tell. What
        a cache then keeps is the last document of each row: all before it counts as padding from then on.

        Raises:
            ValueError: `attention_mask` or `position_ids` of another shape, a cache of another batch size, a position
                beyond the table of `max_positions`, or borders that contradict each other or cannot be (documents.py);
                the meta device, where a model has no weights.
        """
        if device.type == "meta":
            raise ValueError(
                "the model lies on the meta device and has no weights to compute with: load them with "
                "from_pretrained(), or make room for them with to_empty(device='cpu')."
            )
        past, start, has_past = 0, None, None
        if cache is not None:
            cache.check_batch(batch_size)
            past, start, has_past = cache.get_seq_length(), cache.next_positions(), cache.has_past()
        mask = _real_tokens(attention_mask, batch_size, length, past)
        if position_ids is not None:
            position_ids = _given_positions(position_ids, mask, batch_size, length)
        starts = find_starts(
            (batch_size, length), mask=mask, position_ids=position_ids, borders=borders, has_past=has_past
        )
        documents = None if starts is None else Documents.beginning_at(starts)
        counted = _positions(mask, length, device, start, starts)
        is_contiguous = position_ids is None or _are_counted(position_ids, counted)
        position_ids = counted if is_contiguous else position_ids
        if max_positions is not None:
            _check_positions(position_ids, max_positions)
        rising = position_ids if starts is None else _unroll(position_ids, starts, start)
        key_ids, key_mask, inner_pads = rising, mask, _inner_pads(mask)
        if cache is not None:
            key_ids, key_mask = cache.book(rising, mask, batch_size, is_contiguous)
            inner_pads, is_contiguous = cache.inner_pads, cache.is_contiguous
            if documents is not None:
                cache.begin_documents(documents.ids, position_ids, mask)
        return cls(
            is_causal=is_causal,
            position_ids=position_ids,
            key_ids=key_ids,
            is_contiguous=is_contiguous,
            mask=mask,
            documents=documents,
            key_mask=key_mask,
            attention_window=attention_window,
            inner_pads=inner_pads,
            attn_implementation=attn_implementation,
            keep_weights=keep_weights,
            scan_backend=scan_backend,
            cache=cache,
        )

    def to(self, device: torch.device | str | int) -> "SequenceContext":
        """Return the context with its tensors on a device, made once for all layers there.

        accelerate's hooks ask for it, where a model lies on several devices. The cache is the same: each of its entries
        lies where its layer does.
        """
        device = torch.device(device)
        return self if device == self.position_ids.device else self.shared(("on", device), lambda: self._moved(device))

    def _moved(self, device: torch.device) -> "SequenceContext":
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        documents = None if self.documents is None else replace(self.documents, ids=self.documents.ids.to(device))
        return replace(self, **tensors, documents=documents, _shared={})

    @property
    def past(self) -> int:
        """Return how many of the T keys come before the new tokens."""
        return self.key_ids.shape[1] - self.position_ids.shape[1]

    @property
    def document_ids(self) -> torch.Tensor | None:
        """Return (B or 1, L) int64, each token's document; None when there is one a row."""
        return None if self.documents is None else self.documents.ids

    @property
    def reversed_document_ids(self) -> torch.Tensor | None:
        """Return the same for the row read backwards, numbered in that order."""
        return None if self.documents is None else self.documents.reversed().ids

    def state(self, logical_layer_idx: int) -> LayerState | None:
        """Return what the cache keeps for a layer; None without a cache."""
        return None if self.cache is None else self.cache.layers[logical_layer_idx]

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return make(), computed once per forward pass for all layers that ask for `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def blocks(self) -> list[Block]:
        """Return the queries in blocks, each with the keys in its reach: one block unless there are a window or
        documents."""
        return self.shared("blocks", lambda: [self._block(piece) for piece in self._pieces()])

    def _pieces(self) -> list[BlockBounds]:
        length, past, window = self.position_ids.shape[1], self.past, self.attention_window
        if self.keep_weights or self._is_one_block():
            return [BlockBounds(0, length, 0, past + length)]
        reach = None if window is None else window - 1 + self.inner_pads
        if self.documents is None or torch.compiler.is_compiling():
            return cut_by_window(length, past, window, reach, self.is_causal)
        return cut_at_documents(self.documents.ids, past, window, reach, self.is_causal)

    def _is_one_block(self) -> bool:
        """Whether a program that serves every length, or does not know how far pads reach, must not cut the queries."""
        hides_pads = self.mask is not None and torch.compiler.is_compiling()
        return torch.compiler.is_exporting() or (hides_pads and self.attention_window is not None)

    def _block(self, piece: BlockBounds) -> Block:
        start, stop, first, last, _ = piece
        visible = self._visible(piece)
        rising_ids = self.position_ids if self.documents is None else self.key_ids[:, self.past :]
        return Block(
            queries=slice(start, stop),
            keys=slice(first, last),
            query_ids=rising_ids[:, start:stop],
            key_ids=self.key_ids[:, first:last],
            visible=visible,
            is_causal=self.is_causal and visible is None and bool(stop - start > 1),
            is_contiguous=self.is_contiguous,
        )

    def _visible(self, piece: BlockBounds) -> torch.Tensor | None:
        """(B or 1, 1, Lq, Lk) bool for the piece's queries and keys, or None."""
        start, stop, first, last, is_whole = piece
        length, past, window = self.position_ids.shape[1], self.past, self.attention_window
        is_apart = self.documents is None or is_whole  # no key of another document in reach
        is_step = length == 1 and (window is None or (self.inner_pads == 0 and not self._is_one_block()))
        sees_all = window is None and (first == past + start or not self.is_causal)  # that causality leaves it
        if self.key_mask is None and is_apart and (is_step or sees_all):
            return None
        device = self.position_ids.device
        query = torch.arange(past + start, past + stop, device=device)[:, None]
        key = torch.arange(first, last, device=device)[None]
        visible = (key <= query if self.is_causal else torch.ones_like(key <= query))[None]
        if window is not None:
            rank = self.shared("rank", self._rank)
            distance = (rank[:, past + start : past + stop, None] - rank[:, None, first:last]).abs()
            visible = visible & (distance < window)
        if not is_apart:
            numbers = self.shared("document of each key", self._documents_of_keys)
            visible = visible & (numbers[:, past + start : past + stop, None] == numbers[:, None, first:last])
        if self.key_mask is not None:
            visible = visible & self.key_mask[:, None, first:last]
        return (visible | (key == query))[:, None]

    def _documents_of_keys(self) -> torch.Tensor:
        """(B or 1, T): what a cache holds is of document 0, or else a pad."""
        return F.pad(self.documents.ids, (self.past, 0))

    def _rank(self):
        """(B or 1, T): how many real tokens come before each key; a window counts tokens, whatever their positions."""
        if self.key_mask is None:
            return torch.arange(self.key_ids.shape[1], device=self.key_ids.device)[None]
        return self.key_mask.long().cumsum(1)

    def zero_pads(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, L, ...) with zeros at the pads."""
        return zero_pads(x, self.mask)


def zero_pads(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return x (B, L, ...) with zeros where mask (B, L) is False; x itself when mask is None."""
    if mask is None:
        return x
    # `where` and not a product: NaN * 0 is NaN. Behind the last layer, x may lie on another device than the mask.
    return torch.where(mask.to(x.device).reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0.0)


def _real_tokens(attention_mask: torch.Tensor | None, batch_size: int, length: int, past: int) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    if attention_mask.shape not in ((batch_size, length), (batch_size, past + length)):
        with_past = f" or, with the past, ({batch_size}, {past + length})" if past else ""
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected (batch, length) = "
            f"({batch_size}, {length}){with_past} with 1 at real tokens and 0 at pads."
        )
    mask = attention_mask[:, -length:].bool()
    # A mask without pads costs as much as one with; under torch.compile the shortcut would depend on the data.
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask


def _positions(mask, length: int, device: torch.device, start: torch.Tensor | None, starts) -> torch.Tensor:
    """Count real tokens from `start` (B or 1, 1), and from 0 again where a document starts (B or 1, L).

    Pads take the position of the real token before them.
    """
    counted = torch.arange(length, device=device)[None] if mask is None else mask.long().cumsum(1) - 1
    if starts is not None:
        counted, starts = torch.broadcast_tensors(counted, starts)
        first = torch.where(starts, counted, -1).cummax(1).values  # -1 in document 0, which counts on from the past
        before = 0 if start is None else start
        return torch.where(first < 0, before + counted, counted - first).clamp_min(0)
    return counted.clamp_min(0) if start is None else (start + counted).clamp_min(0)


def _unroll(position_ids: torch.Tensor, starts: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """Let positions (B or 1, L) go on rising where a document starts: by 1 from the last one before it."""
    position_ids, starts = torch.broadcast_tensors(position_ids, starts)
    last = position_ids.new_zeros(1, 1) - 1 if start is None else start - 1
    before = torch.cat([last.expand(position_ids.shape[0], 1), position_ids[:, :-1]], dim=1)
    return position_ids + torch.where(starts, before + 1 - position_ids, 0).cumsum(1)


def _given_positions(position_ids, mask, batch_size: int, length: int) -> torch.Tensor:
    if position_ids.shape not in ((batch_size, length), (1, length)):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}, expected ({batch_size}, {length}) or (1, {length})."
        )
    return position_ids if mask is None else settle_positions(position_ids, mask)


def _check_positions(position_ids: torch.Tensor, limit: int) -> None:
    if torch.compiler.is_compiling():
        return  # nobody looks; the table's own lookup refuses what it does not hold
    needed = int(position_ids.max()) + 1
    if needed > limit:
        raise ValueError(
            f"The sequence needs {needed} positions but max_position_embeddings={limit}; truncate it: "
            "tokenizer(..., truncation=True), or feed it in windows."
        )


def _are_counted(position_ids: torch.Tensor, counted: torch.Tensor) -> bool:
    """Whether given positions are what counting gives, as those of generate() are; under compile nobody looks."""
    return not torch.compiler.is_compiling() and bool((position_ids == counted).all())


def _inner_pads(mask: torch.Tensor | None) -> int:
    if mask is None or torch.compiler.is_compiling():  # nobody looks: see SequenceContext._is_one_block
        return 0
    return int(((mask.cumsum(1) > 0) & ~mask).sum(1).max())
