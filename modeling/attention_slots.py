"""Softmax attention with slots: what leaves its window stays in reach of the same softmax, as far as slots go.

The recurrence, with its sources, is in scan_slots.py; the layer adds a learned importance for each token and head.
Shapes: B batch, L length, D hidden, H heads, K head width, S slots.
"""

from dataclasses import dataclass, replace

import torch
from transformers import initialization as init

from .attention_slots_state import AttentionSlotsState
from .context import SequenceContext
from .document_rows import bring_back, group_documents
from .full_linear import FullPrecisionLinear
from .mixer_attention import StandardAttention
from .norms import full_precision
from .scan_slots import SlotOptions, slot_attention, slot_step

IMPORTANCE_BIAS = 2.0  # a token starts at an importance of 0.88, where a tenth of the gradient passes the sigmoid


class ImportanceVote(FullPrecisionLinear):
    """The importance of a token in each head, (B, L, D) -> (B, L, H), before its sigmoid.

    Its weights start as all others do: tokens of equal importance would be forgotten in their order, and no slot would
    hold anything older than S tokens from which it could be learned that this was worth keeping.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__(hidden_size, num_heads)
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        init.constant_(self.bias, IMPORTANCE_BIAS)


@dataclass(frozen=True)
class MemoryRead:
    """How a layer's memory is read, and afterwards what came of it.

    Attributes:
        state: before the tokens of the call, None at the start of a text; afterwards behind them.
        shuffle: row b reads the slots of row b + 1 (the last row those of the first), segment for segment.
        keep_reads: whether `reads` are asked for.
        reads: (B, L, S + 1), afterwards: each token's read mass per slot, mean over heads, that on the window last.
    """

    state: AttentionSlotsState | None
    shuffle: bool = False
    keep_reads: bool = False
    reads: torch.Tensor | None = None

    def to(self, device: torch.device | str | int) -> "MemoryRead":
        """Return the same with the state on a device, that of the layer which reads it."""
        return self if self.state is None else replace(self, state=self.state.to(device))


class AttentionWithSlots(StandardAttention):
    """StandardAttention under a window, and with slots for what has left it.

    Args:
        num_slots: S, in each head.
        segment: tokens between two rankings of the slots, and how many are computed at once.
        decay: factor on a slot's importance at each ranking.
        attention_options: StandardAttention's. Positions that turn queries and keys are those at their own time.
    """

    keeps_keys_only = False

    def __init__(
        self, hidden_size: int, num_heads: int, *, num_slots: int, segment: int, decay: float, **attention_options
    ):
        super().__init__(hidden_size, num_heads, **attention_options)
        self.num_slots = num_slots
        self.segment = segment
        self.decay = decay
        self.importance = ImportanceVote(hidden_size, num_heads)

    def forward(self, x, context, logical_layer_idx, memory: MemoryRead | None = None):
        """As a mixer; without `memory` the attention alone. With it, returns what to add to the stream (B, L, D), and
        the memory as it is then: a call reads from its state, and writes what leaves the window.

        With documents, `memory.state` is that of document 0, and the one returned that of each row's last document.
        An exported program, which serves texts in which no slot is replaced, returns none.

        Raises:
            ValueError: rows that read each other's slots, but hold several documents.
        """
        if memory is None:
            return super().forward(x, context, logical_layer_idx)
        if memory.shuffle and context.documents is not None:
            raise ValueError("shuffle_memory=True reads another row's memory, but these rows hold several documents.")
        q, k, v = self.heads(x)
        importance = self.importance(x).transpose(1, 2)  # (B, H, L)
        q, k = self.rotate(q, k, context)
        if torch.compiler.is_exporting() and memory.state is None and context.documents is None:
            return self.merge(self.attend_to_all(q, k, v, context)), memory
        with full_precision(x.device.type):
            heads, state, reads = self.recall(q, k, v, importance, context, memory)
        return self.merge(heads), replace(memory, state=state, reads=reads)

    def recall(self, q, k, v, importance, context: SequenceContext, memory: MemoryRead):
        """Return the heads (B, H, L, K), the next state and the reads."""
        state = None if memory.state is None else memory.state.with_dtypes(k.dtype, v.dtype)
        options = SlotOptions(
            window=context.attention_window,
            segment=self.segment,
            decay=self.decay,
            scale=self.scale,
            dropout=self.attention_dropout if self.training else 0.0,
            shuffle=memory.shuffle,
            keep_reads=memory.keep_reads,
        )
        if context.documents is not None:
            return self.recall_apart(q, k, v, importance, context, state, options)
        looks_closer = memory.shuffle or memory.keep_reads
        if state is not None and q.shape[2] == 1 and context.mask is None and not looks_closer:
            return *slot_step(q, k, v, importance, state, options), None
        before = AttentionSlotsState.empty(k, importance, self.num_slots) if state is None else state
        return slot_attention(q, k, v, importance, context.mask, before, options, is_fresh=state is None)

    def attend_to_all(self, q, k, v, context: SequenceContext) -> torch.Tensor:
        """Return the heads (B, H, L, K) of a text of which no slot is replaced: attention over everything."""
        torch._check(k.shape[2] <= context.attention_window + self.num_slots)
        everything = replace(context, attention_window=None, _shared={})
        return self.attend_block(q, k, v, everything.blocks()[0], everything, 0)[0]

    @torch.compiler.disable  # documents are of any number and length
    def recall_apart(self, q, k, v, importance, context: SequenceContext, state, options: SlotOptions):
        """As `slot_attention`, with each document as a row of its own."""
        shape = (q.shape[0], q.shape[2])
        ids = context.document_ids.expand(shape)
        groups, outputs, masses, states, rows = group_documents(ids), [], [], [], []
        for group in groups:
            inputs = [_to_heads(group.take(_from_heads(x)), self.num_heads) for x in (q, k, v)]
            vote = group.take(importance.transpose(1, 2)).transpose(1, 2)
            slots = self.num_slots if state is not None else self.slots_for(group.inside.shape[1])
            before = AttentionSlotsState.empty(inputs[1], vote, slots)
            if state is not None:
                before = state.select(group.rows).where(group.numbers == 0, before.like(state))
            heads, after, mass = slot_attention(
                *inputs, vote, group.mask(context.mask), before, options, is_fresh=state is None
            )
            outputs.append(_from_heads(heads))
            missing = self.num_slots - slots
            if options.keep_reads:
                pads = mass.new_zeros(*mass.shape[:2], missing)
                masses.append(torch.cat([mass[..., :-1], pads, mass[..., -1:]], dim=2))
            last = (group.numbers == ids[group.rows, -1]).nonzero().flatten()  # each row has one, in one of the groups
            states.append(after.select(last).with_empty_slots(missing))
            rows.append(group.rows[last])
        state = AttentionSlotsState.join(states).select(torch.cat(rows).argsort())
        reads = bring_back(groups, masses, shape) if options.keep_reads else None
        return _to_heads(bring_back(groups, outputs, shape), self.num_heads), state, reads

    def slots_for(self, length: int) -> int:
        """Return how many slots a document of this length can fill from nothing: short ones need little memory."""
        return min(max(length, self.segment), self.num_slots)


def _from_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, L, K) -> (B, L, H K)."""
    return x.transpose(1, 2).flatten(2)


def _to_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, L, H K) -> (B, H, L, K)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)
