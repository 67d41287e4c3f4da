"""What attention with slots remembers of each row of text; how it reads and writes is in scan_slots.py.

Shapes: B batch, H heads, S slots, K head width, R tokens of the window's past (the window less the token that asks).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .row_state import RowState

EMPTY, PROTECTED = float("-inf"), float("inf")


@dataclass(frozen=True)
class AttentionSlotsState(RowState):
    """What one layer remembers of each row; every tensor has the batch first and is never changed in place.

    Attributes:
        keys, values: (B, H, S, K), each a token's own.
        importance: (B, H, S), the logit of the token's learned importance.
        standing: (B, H, S), lowest is replaced first: -inf in an empty slot, inf in one written since the last ranking.
        age: (B, H, S) rankings since the slot was written.
        use: (B, H, S) read mass the slot has received since then.
        recent_keys, recent_values: (B, H, R, K), the tokens still in the window, the last one at the end.
        recent_importance: (B, H, R).
        recent_count: (B,) int64, how many of them there are.
        count: (B,) int64, tokens since the last ranking, less than a segment.
        overwrites: (B,) int64, occupied slots replaced so far, in each head.
        slot_mass: (B,) sum over the real tokens so far of their read mass on slots, averaged over heads.
        tokens_read: (B,) int64, real tokens so far.
    """

    keys: torch.Tensor
    values: torch.Tensor
    importance: torch.Tensor
    standing: torch.Tensor
    age: torch.Tensor
    use: torch.Tensor
    recent_keys: torch.Tensor
    recent_values: torch.Tensor
    recent_importance: torch.Tensor
    recent_count: torch.Tensor
    count: torch.Tensor
    overwrites: torch.Tensor
    slot_mass: torch.Tensor
    tokens_read: torch.Tensor

    @classmethod
    def empty(cls, keys: torch.Tensor, importance: torch.Tensor, num_slots: int) -> "AttentionSlotsState":
        """Return the state of rows that have read nothing, with no window yet, for keys (B, H, L, K) like these."""
        slots, row = importance.new_zeros(*keys.shape[:2], num_slots), importance.new_zeros(keys.shape[0])
        contents, nothing = keys.new_zeros(*slots.shape, keys.shape[3]), keys[:, :, :0].detach()
        whole = torch.zeros_like(row, dtype=torch.int64)
        return cls(
            keys=contents,
            values=contents,
            importance=slots,
            standing=torch.full_like(slots, EMPTY),
            age=slots,
            use=slots,
            recent_keys=nothing,
            recent_values=nothing,
            recent_importance=slots[..., :0],
            recent_count=whole,
            count=whole,
            overwrites=whole,
            slot_mass=row,
            tokens_read=whole,
        )

    def like(self, other: "AttentionSlotsState") -> "AttentionSlotsState":
        """Return an empty state with room for as long a window as the other's."""
        room = other.recent_keys.shape[2]
        recent = self.keys.new_zeros(*self.keys.shape[:2], room, self.keys.shape[3])
        importance = self.importance.new_zeros(*self.importance.shape[:2], room)
        return replace(self, recent_keys=recent, recent_values=recent, recent_importance=importance)

    def with_dtypes(self, keys: torch.dtype, values: torch.dtype) -> "AttentionSlotsState":
        """Return the state with its tokens' keys and values in these, as of the tokens that they are to stand beside:
        it may come from another precision, of weights or autocast. What slots are ranked by keeps its own."""
        if (self.keys.dtype, self.values.dtype) == (keys, values):
            return self
        return replace(
            self,
            keys=self.keys.to(keys),
            values=self.values.to(values),
            recent_keys=self.recent_keys.to(keys),
            recent_values=self.recent_values.to(values),
        )

    @property
    def num_slots(self) -> int:
        """Return S."""
        return self.standing.shape[2]

    @property
    def occupied(self) -> torch.Tensor:
        """Return (B, H, S) bool; every head of a row has equally many."""
        return self.standing > EMPTY

    def with_empty_slots(self, count: int) -> "AttentionSlotsState":
        """Return the state with `count` empty slots behind its own."""
        contents = {name: F.pad(getattr(self, name), (0, 0, 0, count)) for name in ("keys", "values")}
        per_slot = {name: F.pad(getattr(self, name), (0, count)) for name in ("importance", "age", "use")}
        return replace(self, **contents, **per_slot, standing=F.pad(self.standing, (0, count), value=EMPTY))

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return (B,) floats that describe the row so far: plain statistics of the memory's use, means over heads.

        slots_used: occupied slots. mean_importance: sigmoid of the occupied slots' logits, 0 without any. rotation:
        occupied slots replaced so far, over all slots. utilisation: how many slots the reads are spread over, as the
        exponential of the entropy of the slots' shares of use, over all slots; 0 without reads. slot_mass: mean share
        of a token's reads that falls on slots, the rest stays in the window.
        """
        occupied, importance = self.occupied, self.importance.detach().sigmoid()
        used = occupied.sum(2)
        total = self.use.sum(2, keepdim=True)
        shares = self.use / torch.where(total > 0, total, 1.0)
        spread = torch.where(total[..., 0] > 0, torch.special.entr(shares).sum(2).exp(), 0.0)  # (B, H)
        return {
            "slots_used": used[:, 0].to(importance.dtype),
            "mean_importance": (importance * occupied).sum((1, 2)) / used.sum(1).clamp_min(1),
            "rotation": self.overwrites.to(importance.dtype) / self.num_slots,
            "utilisation": spread.mean(1) / self.num_slots,
            "slot_mass": self.slot_mass / self.tokens_read.clamp_min(1),
        }

    def check(self, name: str, batch_size: int, config, device: torch.device) -> None:
        """Raise ValueError unless the state fits a batch, a model of this configuration, and the device."""
        if self.keys.device != device:
            raise ValueError(f"{name} lies on {self.keys.device}, the model on {device}: move it there.")
        heads = config.num_attention_heads
        expected = (batch_size, heads, config.memory_slots, config.hidden_size // heads)
        if self.keys.shape != expected:
            raise ValueError(
                f"{name} holds keys of shape {tuple(self.keys.shape)}, expected (batch, heads, memory_slots, head "
                f"width) = {expected}: carry a state on with as many rows, and into a model of the same memory."
            )
        count = int(self.count.max())
        if count >= config.memory_segment:
            raise ValueError(
                f"{name} has {count} tokens since its last ranking, but memory_segment={config.memory_segment}: it "
                "comes from a model of another memory_segment."
            )


torch.export.register_dataclass(AttentionSlotsState)  # a compiled or exported program may take and return one
