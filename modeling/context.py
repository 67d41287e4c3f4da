"""What a mixer needs to know about the batch besides its hidden states, computed once per forward pass.

Shapes: B batch, L new tokens, T keys they may see: those of the past that a cache keeps, then the new ones.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .cache import LayerState, StateCache

# Under a window attention runs over blocks of queries, each with the keys in its reach, so that its cost does not grow
# with the length. Blocks much shorter than this would spend their time on overhead.
MIN_BLOCK = 128


@dataclass(frozen=True)
class Block:
    """Some queries and the keys that they may look at.

    Attributes:
        queries, keys: slices of the L new tokens and of the T keys.
        query_ids, key_ids: their position ids, (B or 1, Lq) and (B or 1, Lk).
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


@dataclass(frozen=True)
class SequenceContext:
    """Direction, padding, positions and memory of one batch.

    Attributes:
        is_causal: True when a token may see itself and the past only.
        position_ids: (B or 1, L) int64, the number of real tokens before each token; 0 at left pads.
        is_contiguous: True when position_ids rise by 0 or 1 from token to token; False when the caller chose them.
        mask: (B, L) bool, True at real tokens; None when there is no padding.
        key_ids, key_mask: the same for the T keys, (B or 1, T) and (B, T) or None.
        attention_window: how many tokens back (and ahead, when bidirectional) attention reaches, itself included.
        inner_pads: the most pads that any row has after its first real token.
        attn_implementation: "eager" or "sdpa".
        keep_weights: True when mixers return their attention weights (eager attention only).
        cache: what earlier calls left behind; None when nothing is kept.
    """

    is_causal: bool
    position_ids: torch.Tensor
    key_ids: torch.Tensor
    is_contiguous: bool = True
    mask: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    attention_window: int | None = None
    inner_pads: int = 0
    attn_implementation: str = "sdpa"
    keep_weights: bool = False
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
        attention_window: int | None = None,
        attn_implementation: str = "sdpa",
        keep_weights: bool = False,
        max_positions: int | None = None,
        cache: StateCache | None = None,
    ) -> "SequenceContext":
        """Derive the context from what a caller of the model gives, and book the new tokens into the cache.

        With a cache that holds P columns, `attention_mask` is (B, P + L) or (B, L) and positions go on from the past.

        Raises:
            ValueError: `attention_mask` or `position_ids` of another shape, a cache of another batch size, or a
                position beyond the table of `max_positions`; the meta device, where a model has no weights.
        """
        if device.type == "meta":
            raise ValueError(
                "the model lies on the meta device and has no weights to compute with: load them with "
                "from_pretrained(), or make room for them with to_empty(device='cpu')."
            )
        past, start = 0, None
        if cache is not None:
            cache.check_batch(batch_size)
            past, start = cache.get_seq_length(), cache.next_positions()
        mask = _real_tokens(attention_mask, batch_size, length, past)
        counted = _positions(mask, length, device, start)
        is_contiguous = True
        if position_ids is not None:
            position_ids = _given_positions(position_ids, mask, batch_size, length)
            is_contiguous = _are_counted(position_ids, counted)
        position_ids = counted if is_contiguous else position_ids
        if max_positions is not None:
            _check_positions(position_ids, max_positions)
        key_ids, key_mask, inner_pads = position_ids, mask, _inner_pads(mask)
        if cache is not None:
            key_ids, key_mask = cache.book(position_ids, mask, batch_size, is_contiguous)
            inner_pads, is_contiguous = cache.inner_pads, cache.is_contiguous
        return cls(
            is_causal=is_causal,
            position_ids=position_ids,
            key_ids=key_ids,
            is_contiguous=is_contiguous,
            mask=mask,
            key_mask=key_mask,
            attention_window=attention_window,
            inner_pads=inner_pads,
            attn_implementation=attn_implementation,
            keep_weights=keep_weights,
            cache=cache,
        )

    @property
    def past(self) -> int:
        """Return how many of the T keys come before the new tokens."""
        return self.key_ids.shape[1] - self.position_ids.shape[1]

    def state(self, logical_layer_idx: int) -> LayerState | None:
        """Return what the cache keeps for a layer; None without a cache."""
        return None if self.cache is None else self.cache.layers[logical_layer_idx]

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return make(), computed once per forward pass for all layers that ask for `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def blocks(self) -> list[Block]:
        """Return the queries in blocks, each with the keys in its reach: one block unless a window is set."""
        return self.shared("blocks", self._blocks)

    def _blocks(self):
        length, past, window = self.position_ids.shape[1], self.past, self.attention_window
        size = length if window is None else max(window, MIN_BLOCK)
        if self.keep_weights or size >= length:
            return [self._block(0, length, 0, past + length)]
        reach = window - 1 + self.inner_pads
        blocks = []
        for start in range(0, length, size):
            stop = min(start + size, length)
            last = past + (stop if self.is_causal else min(stop + reach, length))
            blocks.append(self._block(start, stop, max(past + start - reach, 0), last))
        return blocks

    def _block(self, start: int, stop: int, first: int, last: int) -> Block:
        visible = self._visible(start, stop, first, last)
        return Block(
            queries=slice(start, stop),
            keys=slice(first, last),
            query_ids=self.position_ids[:, start:stop],
            key_ids=self.key_ids[:, first:last],
            visible=visible,
            is_causal=self.is_causal and visible is None and stop - start > 1,
            is_contiguous=self.is_contiguous,
        )

    def _visible(self, start, stop, first, last):
        """(B or 1, 1, Lq, Lk) bool for queries start..stop and keys first..last, or None."""
        length, past, window = self.position_ids.shape[1], self.past, self.attention_window
        is_step = length == 1 and (window is None or self.inner_pads == 0)
        if self.key_mask is None and (is_step or (window is None and past == 0)):
            return None
        device = self.position_ids.device
        query = torch.arange(past + start, past + stop, device=device)[:, None]
        key = torch.arange(first, last, device=device)[None]
        visible = (key <= query if self.is_causal else torch.ones_like(key <= query))[None]
        if window is not None:
            rank = self.shared("rank", self._rank)
            distance = (rank[:, past + start : past + stop, None] - rank[:, None, first:last]).abs()
            visible = visible & (distance < window)
        if self.key_mask is not None:
            visible = visible & self.key_mask[:, None, first:last]
        return (visible | (key == query))[:, None]

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
    # `where` and not a product: NaN * 0 is NaN.
    return torch.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0.0)


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


def _positions(mask, length: int, device: torch.device, start: torch.Tensor | None) -> torch.Tensor:
    """Count real tokens from `start` (B or 1, 1); pads take the position of the real token before them."""
    counted = torch.arange(length, device=device)[None] if mask is None else mask.long().cumsum(1) - 1
    return counted.clamp_min(0) if start is None else (start + counted).clamp_min(0)


def _given_positions(position_ids, mask, batch_size: int, length: int) -> torch.Tensor:
    if position_ids.shape not in ((batch_size, length), (1, length)):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}, expected ({batch_size}, {length}) or (1, {length})."
        )
    return position_ids if mask is None else _settle_pads(position_ids, mask)


def _check_positions(position_ids: torch.Tensor, limit: int) -> None:
    needed = int(position_ids.max()) + 1
    if needed > limit:
        raise ValueError(
            f"The sequence needs {needed} positions but max_position_embeddings={limit}; truncate it: "
            "tokenizer(..., truncation=True), or feed it in windows."
        )


def _are_counted(position_ids: torch.Tensor, counted: torch.Tensor) -> bool:
    """Whether given positions are what counting gives, as those of generate() are; under compile nobody looks."""
    return not torch.compiler.is_compiling() and bool((position_ids == counted).all())


def _settle_pads(position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Give pads the position of the last real token before them (0 at the left), as counting would."""
    real = torch.where(mask, position_ids, 0)
    return torch.where(mask, real, real.cummax(1).values)


def _inner_pads(mask: torch.Tensor | None) -> int:
    if mask is None:
        return 0
    return int(((mask.cumsum(1) > 0) & ~mask).sum(1).max())
