"""What a slot memory remembers of each row of text; how it reads and writes is in slot_memory.py.

Shapes: B batch, S slots, W slot width, F = 2 W + 1 contents of a token (key, value, importance).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .row_state import RowState


@dataclass(frozen=True)
class SlotMemoryState(RowState):
    """What one memory layer remembers of each row; every tensor has the batch first and is never changed in place.

    Attributes:
        keys, values: (B, S, W).
        importance: (B, S) in (0, 1), faded by every write since its own; 0 in an empty slot.
        occupied: (B, S) bool.
        age: (B, S) writes of the row since the slot was written.
        access: (B, S) read mass the slot has received since then, from full segments, averaged over heads.
        open_access: (B, S) the same from the open segment.
        numerator: (B, F), denominator: (B, 1), maximum: (B, 1): pooling of the open segment as a running softmax; the
            pooled contents are numerator / denominator, both in units of exp(maximum).
        count: (B,) int64, real tokens in the open segment, less than a full one.
        overwrites: (B,) int64, occupied slots replaced so far.
        null_mass: (B,) sum over the real tokens so far of their read mass on the null slot.
        tokens_read: (B,) int64, real tokens so far.
    """

    keys: torch.Tensor
    values: torch.Tensor
    importance: torch.Tensor
    occupied: torch.Tensor
    age: torch.Tensor
    access: torch.Tensor
    open_access: torch.Tensor
    numerator: torch.Tensor
    denominator: torch.Tensor
    maximum: torch.Tensor
    count: torch.Tensor
    overwrites: torch.Tensor
    null_mass: torch.Tensor
    tokens_read: torch.Tensor

    @classmethod
    def empty(cls, batch_size: int, num_slots: int, width: int, like: torch.Tensor) -> "SlotMemoryState":
        """Return the state of rows that have read nothing, on the device and in the dtype of `like`."""
        slots, row = like.new_zeros(batch_size, num_slots), like.new_zeros(batch_size)
        whole = torch.zeros_like(row, dtype=torch.int64)
        return cls(
            keys=like.new_zeros(batch_size, num_slots, width),
            values=like.new_zeros(batch_size, num_slots, width),
            importance=slots,
            occupied=torch.zeros_like(slots, dtype=torch.bool),
            age=slots,
            access=slots,
            open_access=slots,
            numerator=like.new_zeros(batch_size, 2 * width + 1),
            denominator=row[:, None],
            maximum=torch.full_like(row[:, None], float("-inf")),
            count=whole,
            overwrites=whole,
            null_mass=row,
            tokens_read=whole,
        )

    @property
    def num_slots(self) -> int:
        """Return S."""
        return self.occupied.shape[1]

    def with_empty_slots(self, count: int) -> "SlotMemoryState":
        """Return the state with `count` empty slots behind its own."""
        if count == 0:
            return self
        slots = ("importance", "occupied", "age", "access", "open_access")
        per_slot = {name: F.pad(getattr(self, name), (0, count)) for name in slots}
        contents = {name: F.pad(getattr(self, name), (0, 0, 0, count)) for name in ("keys", "values")}
        return replace(self, **per_slot, **contents)

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return (B,) floats that describe the row so far: plain statistics of the memory's use.

        slots_used: occupied slots. mean_importance: over the occupied slots, 0 without any. rotation: occupied slots
        replaced, over all slots. null_mass: mean read mass on the null slot, over tokens and heads; a token that meets
        an empty memory counts with 1, and a row without tokens is given 0.
        """
        used = self.occupied.sum(1)
        return {
            "slots_used": used.to(self.importance.dtype),
            "mean_importance": self.importance.detach().sum(1) / used.clamp_min(1),
            "rotation": self.overwrites / self.occupied.shape[1],
            "null_mass": self.null_mass / self.tokens_read.clamp_min(1),
        }

    def check(self, name: str, batch_size: int, config, device: torch.device) -> None:
        """Raise ValueError unless the state fits a batch, a model of this configuration, and the device."""
        expected = (batch_size, config.memory_slots, config.memory_dim)
        if self.keys.device != device:
            raise ValueError(f"{name} lies on {self.keys.device}, the model on {device}: move it there.")
        count = int(self.count.max())
        if count >= config.memory_segment:
            raise ValueError(
                f"{name} has {count} tokens in its open segment, but memory_segment={config.memory_segment}: it comes "
                "from a model of another memory_segment."
            )
        if self.keys.shape != expected:
            raise ValueError(
                f"{name} holds keys of shape {tuple(self.keys.shape)}, expected (batch, memory_slots, memory_dim) = "
                f"{expected}: carry a state on with as many rows, and into a model of the same memory."
            )


torch.export.register_dataclass(SlotMemoryState)  # an exported program may take and return one
