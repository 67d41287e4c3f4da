"""A key-value cache whose rows are of different lengths and come and go: one slot for each row in flight.

Every slot's tokens lie from column 0 on, so a new token is written at its row's own length, a finished row's slot takes
the next row, and nothing is padded but the end. Attention sees columns up to the longest row, under an explicit mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

COLUMN_STEP = 16  # views grow in such steps: few different shapes, and little is read behind the longest row


@dataclass
class SlotTable:
    """What all layers share: how long each slot's row is, how many slots are read, and how far."""

    lengths: torch.Tensor  # int64 [slots]
    active: int = 0
    columns: int = 0
    capacity: int = 0
    places: dict[tuple[int, torch.device], torch.Tensor] = field(default_factory=dict)

    def new_places(self, heads: int, device: torch.device) -> torch.Tensor:
        """Return where the new tokens go, int64 [active * heads], in a table [slots * heads * capacity, head size]."""
        key = (heads, device)
        if key not in self.places:
            first = torch.arange(self.active * heads, device=self.lengths.device) * self.capacity
            self.places[key] = (first + self.lengths[: self.active].repeat_interleave(heads)).to(device)
        return self.places[key]


class SlotLayer(CacheLayerMixin):
    """Keys and values [slots, heads, columns, head size] of one layer."""

    is_sliding = False
    is_croppable = False

    def __init__(self, table: SlotTable):
        super().__init__()
        self.table = table

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("slots are laid out by SlotCache.reserve before they are written.")

    def reserve(self, like: "DynamicLayerStates", slots: int, columns: int) -> None:
        """Make room; zeros, because a mask does not hide NaN in columns that were never written."""
        self.keys = like.keys.new_zeros(slots, like.keys.shape[1], columns, like.keys.shape[3])
        self.values = like.values.new_zeros(slots, like.values.shape[1], columns, like.values.shape[3])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write one token a row, [active, heads, 1, head size]; return views of all rows in flight."""
        table = self.table
        places = table.new_places(self.keys.shape[1], self.keys.device)
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            kept.view(-1, kept.shape[3]).index_copy_(0, places, states.reshape(-1, states.shape[3]).to(kept.dtype))
        return self.keys[: table.active, :, : table.columns], self.values[: table.active, :, : table.columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.table.columns, 0

    def get_seq_length(self) -> int:
        return int(self.table.lengths[: self.table.active].max()) if self.table.active else 0

    def get_max_length(self) -> int:
        return -1 if self.keys is None else self.keys.shape[2]


DynamicLayerStates = CacheLayerMixin  # a layer whose keys and values are [rows, heads, tokens, head size]


class SlotCache(Cache):
    """The cache of all layers, for `slots` rows of at most `columns` tokens."""

    def __init__(self, slots: int, columns: int, device: torch.device):
        self.table = SlotTable(torch.zeros(slots, dtype=torch.long, device=device))
        self.slots = slots
        self.table.capacity = -(-columns // COLUMN_STEP) * COLUMN_STEP
        super().__init__(layers=[])

    @property
    def capacity(self) -> int:
        return self.table.capacity

    def take(self, slot: int, prefilled: DynamicCache, row: int, prefix: int, length: int) -> None:
        """Copy a prefilled row into a slot.

        Args:
            prefilled: its layers hold `prefix` shared columns, pads, and the row's own tokens at the end.
            length: tokens of the row, the shared ones included.
        """
        if not self.layers:
            self.layers = [SlotLayer(self.table) for _ in prefilled.layers]
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            if layer.keys is None:
                layer.reserve(source, self.slots, self.capacity)
            for target, states in ((layer.keys, source.keys), (layer.values, source.values)):
                target[slot, :, :prefix] = states[row, :, :prefix]
                target[slot, :, prefix:length] = states[row, :, states.shape[2] - (length - prefix) :]
        self.table.lengths[slot] = length

    def wipe(self, slot: int) -> None:
        """Make a slot as new: a mask does not hide the NaN of the row that was there from the one that comes."""
        for layer in self.layers:
            layer.keys[slot], layer.values[slot] = 0, 0

    def move(self, source: int, target: int) -> None:
        """Copy a row from one slot to another."""
        length = int(self.table.lengths[source])
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]
        self.table.lengths[target] = length

    def begin_step(self, active: int, columns: int | None = None) -> None:
        """Say which slots the next token is for: the first `active`; and how many columns are read, at least."""
        longest = int(self.table.lengths[:active].max()) + 1
        needed = -(-longest // COLUMN_STEP) * COLUMN_STEP if columns is None else columns
        self.table.active, self.table.columns = active, min(needed, self.capacity)
        self.table.places = {}

    def end_step(self) -> None:
        self.table.lengths[: self.table.active] += 1


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn booleans [b, queries, columns] into the mask attention adds to scores, [b, 1, queries, columns]."""
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)[:, None]


def visible_columns(positions: torch.Tensor, columns: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return which columns a query sees, bool [b, queries, columns].

    Args:
        positions: [b, queries], the query's place; columns: [b or 1, columns], the place of each column's token, -1
            where there is none; window: how many last tokens, itself included, a query sees; None: all.
    """
    places = columns[:, None, :]
    visible = (places >= 0) & (places <= positions[:, :, None])
    if window is not None:
        visible &= places > positions[:, :, None] - window
    return visible


def shared_beginning(prefix: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache in which `rows` rows have read the shared beginning of `prefix` (one row)."""
    cache = DynamicCache()
    for index, layer in enumerate(prefix.layers):
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return cache


def sequence_places(lengths: Sequence[int], padded: int, first: int, device: torch.device) -> torch.Tensor:
    """Return the places of left-padded rows, int64 [b, padded]: first, first + 1, ...; -1 for pads."""
    ends = torch.arange(padded, device=device)[None] - (padded - torch.tensor(lengths, device=device)[:, None])
    return torch.where(ends >= 0, ends + first, -1)
