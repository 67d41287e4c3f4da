"""What a causal model remembers between calls: one cache for generate(), one entry per logical layer.

An attention keeps keys and values, a recurrence its state, a convolution its last inputs, an ODE block one pair of
keys and values per evaluation of its field. Shapes: B batch, H heads, T columns kept, K head width, C channels.
"""

import torch
import torch.nn.functional as F
from transformers import Cache


class KeyValues:
    """Keys and values of one attention, (B, H, T, K) each.

    They lie in a buffer that doubles when it is full, so that a new token costs no copy of the old ones; under a window
    the buffer has a fixed size. What the first call brings is kept as it is, for callers that never come back.
    """

    def __init__(self):
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.start = 0
        self.end = 0

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, past: int, capacity: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last `past` columns kept so far and the new ones, and keep them.

        Args:
            keys, values: (B, H, L, K) of the new tokens.
            past: columns of the past that the new tokens may see.
            capacity: columns of the buffer under a window; None without one.
        """
        self.start = self.end - past
        length = keys.shape[2]
        if self.keys is None and capacity is None:
            self.keys, self.values, self.end = keys, values, length
            return keys, values
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self._join(keys, values)  # writing into what a graph has seen would break its backward pass
        if capacity is not None and past + length > capacity:
            everything = self._join(keys, values)
            self._keep_tail(capacity)
            return everything
        self._make_room(keys, values, past + length, capacity)
        self.keys.narrow(2, self.end, length).copy_(keys)
        self.values.narrow(2, self.end, length).copy_(values)
        self.end += length
        return self.view()

    def view(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the columns in use."""
        length = self.end - self.start
        return self.keys.narrow(2, self.start, length), self.values.narrow(2, self.start, length)

    def _join(self, keys, values):
        if self.keys is not None:
            past_keys, past_values = (past.to(keys.dtype) for past in self.view())  # of another precision, it may be
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        self.keys, self.values, self.start, self.end = keys, values, 0, keys.shape[2]
        return keys, values

    def _keep_tail(self, capacity):
        """Move the newest half of a windowed buffer's worth into a buffer of its own size."""
        keys, values = self.view()
        kept = min(capacity // 2, keys.shape[2])
        tails = keys[:, :, -kept:], values[:, :, -kept:]
        self.keys, self.values = (tail.new_zeros(*tail.shape[:2], capacity, tail.shape[3]) for tail in tails)
        self.keys[:, :, :kept], self.values[:, :, :kept] = tails
        self.start, self.end = 0, kept

    def _make_room(self, keys, values, needed, capacity):
        fits = (
            self.keys is not None and self.keys.dtype == keys.dtype and self.end + keys.shape[2] <= self.keys.shape[2]
        )
        if fits and (torch.is_inference_mode_enabled() or not self.keys.is_inference()):
            return
        old = self.view() if self.keys is not None else None
        size = capacity or 2 * needed
        self.keys, self.values = (x.new_zeros(*x.shape[:2], size, x.shape[3]) for x in (keys, values))
        kept = self.end - self.start
        if old is not None:
            self.keys[:, :, :kept], self.values[:, :, :kept] = old
        self.start, self.end = 0, kept

    def select(self, rows: torch.Tensor) -> None:
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def drop(self, columns: int) -> None:
        self.end -= columns


class LayerState:
    """What one logical layer remembers.

    tensors: named tensors with the batch first, such as a recurrent state. The layer owns them: a step may replace
        them or, without gradients, write over them.
    key_values: one store per attention the layer evaluates.
    """

    def __init__(self, cache: "StateCache"):
        self._cache = cache
        self.tensors: dict[str, torch.Tensor] = {}
        self.key_values: list[KeyValues] = []

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, evaluation: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values (B, H, L, K) of the new tokens; return them behind those of the past they may see.

        `evaluation` tells apart the attentions of one layer: the stages of an ODE block have keys of their own.
        """
        if evaluation == len(self.key_values):
            self.key_values.append(KeyValues())
        return self.key_values[evaluation].append(keys, values, self._cache.past_columns, self._cache.capacity)

    @property
    def is_croppable(self) -> bool:
        return not self.tensors

    def select(self, rows: torch.Tensor) -> None:
        self.tensors = {name: part.index_select(0, rows.to(part.device)) for name, part in self.tensors.items()}
        for store in self.key_values:
            store.select(rows)


class StateCache(Cache):
    """The cache of a causal model: `layers` (one LayerState per logical layer) and `embedding`.

    Attributes:
        seen_tokens: (B,) int64, real tokens of each row's last document so far: the position of the next one. None
            before the first call.
        is_contiguous: False once a caller has given position ids other than the count of real tokens.
        key_positions: (B or 1, T) position ids of the columns kept, counted from the start of the last document.
        key_mask: (B, T) bool, or None without pads; earlier documents are as pads.
        has_pads: True once a row has had a pad.
        left_behind: columns before the last document of any row, which no token will see again.
        inner_pads: the most pads that any row has had after its first real token.
        past_columns: how many columns of the past the tokens of the current call may see.

    Only attention can forget its last tokens: `crop` raises where a recurrent state or a window is kept.
    """

    def __init__(self, num_layers: int, attention_window: int | None = None):
        super().__init__(layers=[])
        self.num_layers = num_layers
        self.attention_window = attention_window
        self.reset()

    def reset(self) -> None:
        self.layers = [LayerState(self) for _ in range(self.num_layers)]
        self.embedding = LayerState(self)
        self.seen_tokens: torch.Tensor | None = None
        self.is_contiguous = True
        self.key_positions: torch.Tensor | None = None
        self.key_mask: torch.Tensor | None = None
        self.past_columns = 0
        self.has_pads = False
        self.left_behind = 0
        self.inner_pads = 0
        self._inner_pads: torch.Tensor | None = None
        self._seq_length = 0

    def __repr__(self) -> str:
        return f"StateCache(num_layers={self.num_layers}, columns={self._seq_length})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many columns have been fed, pads included."""
        return self._seq_length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit but the memory's."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past_columns + query_length, 0

    @property
    def batch_size(self) -> int:
        return -1 if self.seen_tokens is None else self.seen_tokens.shape[0]

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.seen_tokens is not None

    @property
    def is_croppable(self) -> bool:
        entries = [self.embedding, *self.layers]
        return self.attention_window is None and all(entry.is_croppable for entry in entries)

    @property
    def capacity(self) -> int | None:
        """Return the columns of a windowed store: twice what it must keep, so that it moves them every other time."""
        return None if self.attention_window is None else 2 * (self.attention_window + self.inner_pads)

    def next_positions(self) -> torch.Tensor | None:
        """Return the position of each row's next token, (B, 1), or (1, 1) when all are alike; None at the start."""
        if self.seen_tokens is None:
            return None
        return (self.seen_tokens if self.has_pads else self.seen_tokens[:1])[:, None]

    def has_past(self) -> torch.Tensor | None:
        """Return (B,) bool, the rows of which real tokens are remembered; None before the first call."""
        return None if self.seen_tokens is None else self.seen_tokens > 0

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError unless the rows are as many as those remembered."""
        if self.seen_tokens is not None and self.seen_tokens.shape[0] != batch_size:
            raise ValueError(
                f"cache holds {len(self.seen_tokens)} rows but the input has {batch_size}; "
                "start with a new cache, or select its rows with batch_select_indices."
            )

    def book(
        self, position_ids: torch.Tensor, mask: torch.Tensor | None, batch_size: int, is_contiguous: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take note of new tokens: position_ids (B or 1, L), mask (B, L) bool or None. Called once per forward pass.

        Returns the position ids (B or 1, past + L) and the mask (B, past + L) or None of the keys they may see.
        """
        length = position_ids.shape[1]
        if self.seen_tokens is None:
            self.seen_tokens = torch.zeros(batch_size, dtype=torch.int64, device=position_ids.device)
        kept = self.key_positions.shape[1] if self._keeps_keys() else 0
        if self.attention_window is not None:
            kept = min(kept, self.attention_window - 1 + self.inner_pads)
        key_mask = _join_masks(self.key_mask, mask, kept, batch_size, length)
        key_positions = _join_rows(self.key_positions, position_ids, kept)
        self.past_columns = kept
        self.is_contiguous = self.is_contiguous and is_contiguous
        self._count_inner_pads(mask)
        self.seen_tokens = self.seen_tokens + (length if mask is None else mask.sum(1))
        self._seq_length += length
        self.key_positions, self.key_mask = self._windowed(key_positions), self._windowed(key_mask)
        return key_positions, key_mask

    def begin_documents(self, ids: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Leave all but the last document of each row behind: to the tokens that follow, the others are as pads.

        Called after `book`, in a call that begins documents.

        Args:
            ids: (B or 1, L) int64, the document of each new token; 0 is that of what was kept before.
            position_ids: (B or 1, L), from 0 in each document.
            mask: (B, L) bool or None, as given to `book`.
        """
        batch_size, length = self.seen_tokens.shape[0], ids.shape[1]
        ids = ids.expand(batch_size, -1)
        last = ids[:, -1:]
        is_last = ids == last
        tokens = (is_last if mask is None else is_last & mask).sum(1)
        begins_here = last[:, 0] > 0
        self.seen_tokens = torch.where(begins_here, tokens, self.seen_tokens)
        kept = self.key_positions.shape[1]
        columns = F.pad(ids, (max(kept - length, 0), 0))  # what was kept before is of document 0
        still_seen = columns[:, columns.shape[1] - kept :] == last
        self.key_mask = still_seen if self.key_mask is None else still_seen & self.key_mask
        self.key_positions = self.key_positions - (self.key_positions[:, -1:] - position_ids[:, -1:])
        self.has_pads = True
        if bool(begins_here.any()):
            self.left_behind = self._seq_length - int(torch.where(begins_here, is_last.sum(1), length).min())

    def _windowed(self, columns):
        if columns is None or self.attention_window is None:
            return columns
        kept = self.attention_window - 1 + self.inner_pads
        return columns[:, max(columns.shape[1] - kept, 0) :].clone()

    def _count_inner_pads(self, mask):
        if mask is None:
            return
        self.has_pads = True
        started = (self.seen_tokens > 0)[:, None] | (mask.cumsum(1) > 0)
        pads = (started & ~mask).sum(1)
        self._inner_pads = pads if self._inner_pads is None else self._inner_pads + pads
        if not torch.compiler.is_exporting():  # nobody looks: windows, which alone ask, are not cut then
            self.inner_pads = int(self._inner_pads.max())

    def _keeps_keys(self) -> bool:
        return any(entry.key_values for entry in self.layers)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make row i what row beam_idx[i] was, everywhere."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`, in that order; a row may come more than once."""
        if self.seen_tokens is None:
            return
        indices = torch.arange(self.batch_size, device=self.seen_tokens.device)[indices.to(self.seen_tokens.device)]
        for entry in (self.embedding, *self.layers):
            entry.select(indices)
        self.seen_tokens = self.seen_tokens[indices]
        if self._inner_pads is not None:
            self._inner_pads = self._inner_pads[indices]
        if self.key_mask is not None:
            self.key_mask = self.key_mask[indices]
        if len(self.key_positions) > 1:
            self.key_positions = self.key_positions[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if self.seen_tokens is not None:
            rows = torch.arange(self.batch_size, device=self.seen_tokens.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove columns (the number is negative, as in transformers).

        Raises:
            ValueError: a positive number, or more than there are; or a layer keeps a recurrent state, a convolution its
                inputs, or attention a window: none of them can go back.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give how many tokens to remove as a negative number.")
        columns = -tokens_to_remove
        if columns == 0 or self.seen_tokens is None:
            return
        if columns > self._seq_length:
            raise ValueError(f"crop({tokens_to_remove}): the cache holds {self._seq_length} columns.")
        if not self.is_croppable:
            raise ValueError(
                "this cache cannot be cropped: a recurrent state, a convolution or an attention window has already "
                "left the past behind. Generate without assisted or prompt-lookup decoding."
            )
        if self._seq_length - columns < self.left_behind:
            raise ValueError(
                f"crop({tokens_to_remove}): the last document of a row begins at column {self.left_behind} of "
                f"{self._seq_length}, and what came before it is left behind."
            )
        mask = None if self.key_mask is None else self.key_mask[:, -columns:]
        self.seen_tokens = self.seen_tokens - (columns if mask is None else mask.sum(1))
        self.key_positions = self.key_positions[:, :-columns]
        self.key_mask = None if self.key_mask is None else self.key_mask[:, :-columns]
        self._seq_length -= columns
        for entry in self.layers:
            for store in entry.key_values:
                store.drop(columns)


def _join_masks(past, new, kept, batch_size, length):
    if past is None and new is None:
        return None
    if past is None:
        past = torch.ones(batch_size, kept, dtype=torch.bool, device=new.device)
    if new is None:
        new = torch.ones(batch_size, length, dtype=torch.bool, device=past.device)
    return torch.cat([past[:, past.shape[1] - kept :], new], dim=1)


def _join_rows(past, new, kept):
    if past is None or kept == 0:
        return new
    past = past[:, past.shape[1] - kept :]
    rows = max(past.shape[0], new.shape[0])
    return torch.cat([past.expand(rows, -1), new.expand(rows, -1)], dim=1)


def slide_window(
    x: torch.Tensor,
    window: torch.Tensor | None,
    width: int,
    mask: torch.Tensor | None,
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the last inputs of a causal convolution before the new ones.

    Args:
        x: (B, L, C), zero at pads.
        window: (B, width, C) from the last call, or None at the start.
        mask: (B, L) bool, True at real tokens, or None.
        document_ids: (B or 1, L) int64, `window` being of document 0, or None.

    Returns:
        (B, width + L, C), and the window for the next call: the last `width` inputs up to each row's last real token,
        zero where they are of an earlier document.
    """
    if window is None:
        window = x.new_zeros(x.shape[0], width, x.shape[2])
    joined = torch.cat([window.to(x.dtype), x], dim=1)
    if document_ids is not None:
        is_last = F.pad(document_ids, (width, 0)) == document_ids[:, -1:]
        return joined, _last_window(torch.where(is_last[..., None], joined, 0.0), width, mask)
    return joined, _last_window(joined, width, mask)


def _last_window(joined: torch.Tensor, width: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Return (B, width, C), the last of joined (B, width + L, C) up to each row's last real token."""
    if mask is None:
        return joined[:, joined.shape[1] - width :].clone()  # a view would keep all of it alive
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    end = torch.where(mask, places, 0).amax(1)  # 0 for a row without real tokens: its window stays
    columns = end[:, None] + torch.arange(width, device=mask.device)
    return joined.gather(1, columns[..., None].expand(-1, -1, joined.shape[2]))
