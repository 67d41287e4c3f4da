"""What Infinito's models return: the usual fields of transformers, and what their memories hold and were asked.

Shapes: B batch, L length, D hidden, V vocabulary, H heads, T keys, S memory slots.
"""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .cache import StateCache
from .infinito_memories import MemoryState


@dataclass
class InfinitoModelOutput(ModelOutput):
    """
    last_hidden_state: (B, L, D), zero at pads.
    cache: the cache, when one is kept; it holds the memory's state too.
    hidden_states: layers + 1 tensors (B, L, D): the embedding, each layer's output, the last one normalised.
    attentions: (B, H, L, T) of each layer, for eager attention; None for a layer whose attention reads slots.
    memory_state: one SlotMemoryState or AttentionSlotsState per memory layer, to be passed back as `memory_state`; None
        without memory, from an exported program with attention slots, and from a replica of nn.DataParallel. In
        training it hangs on the graph (detach() it to cut it off), otherwise it is detached. Under gradient
        checkpointing with use_reentrant=True, which sees tensors of a block but not those in a state, attention slots
        are cut off in training too: the gradients within a call are whole, but none goes through the state into an
        earlier one.
    memory_stats: (B,) floats without gradient, mean over memory layers: slots_used, mean_importance, rotation, and
        null_mass or utilisation and slot_mass (see `statistics` of the state); None without memory.
    memory_reads: when asked for, (B, L, S + 1) per memory layer: each token's read mass per slot, averaged over heads,
        what no slot gets last (the null slot, or the window); zero at pads.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cache: StateCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    memory_state: tuple[MemoryState, ...] | None = None
    memory_stats: dict[str, torch.FloatTensor] | None = None
    memory_reads: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class InfinitoCausalLMOutput(ModelOutput):
    """
    loss: scalar, mean cross-entropy of the labelled tokens.
    logits: (B, L, V).
    The other fields are those of InfinitoModelOutput.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: StateCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    memory_state: tuple[MemoryState, ...] | None = None
    memory_stats: dict[str, torch.FloatTensor] | None = None
    memory_reads: tuple[torch.FloatTensor, ...] | None = None
