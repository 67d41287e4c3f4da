"""The memories of an Infinito: which layers have one, what state they start from, what the cache keeps of it.

A memory of type "slots" is a part of its own at a layer's input (slot_memory.py); one of type "attention_slots" is in
the layer's attention (attention_slots.py). Each has its kind of state, which is carried alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

import torch
from torch import nn

from .attention_slots import AttentionWithSlots, MemoryRead
from .attention_slots_state import AttentionSlotsState
from .cache import StateCache
from .configuration_infinito import InfinitoConfig
from .context import SequenceContext
from .mixer_attention import StandardAttention
from .slot_memory import SlotMemory
from .slot_memory_state import SlotMemoryState

MemoryState = SlotMemoryState | AttentionSlotsState
STATES = {"slots": SlotMemoryState, "attention_slots": AttentionSlotsState}


def make_attention(config: InfinitoConfig, layer_idx: int) -> StandardAttention:
    """Return a layer's attention, with slots where the configuration says so."""
    options = {
        "position_type": config.position_type,
        "attention_dropout": config.attention_dropout,
        "use_bias": config.use_bias,
    }
    if config.memory_type != "attention_slots" or layer_idx not in config.memory_layers:
        return StandardAttention(config.hidden_size, config.num_attention_heads, **options)
    return AttentionWithSlots(
        config.hidden_size,
        config.num_attention_heads,
        num_slots=config.memory_slots,
        segment=config.memory_segment,
        decay=config.memory_decay,
        **options,
    )


def make_memories(config: InfinitoConfig) -> nn.ModuleDict:
    """Return the memories that are parts of their own, by the layer they act on."""
    if config.memory_type == "attention_slots":
        return nn.ModuleDict()
    return nn.ModuleDict(
        {
            str(layer): SlotMemory(
                config.hidden_size,
                num_slots=config.memory_slots,
                width=config.memory_dim,
                num_heads=config.memory_heads,
                segment=config.memory_segment,
                decay=config.memory_decay,
            )
            for layer in sorted(config.memory_layers)
        }
    )


def starting_states(
    config: InfinitoConfig,
    use_memory: bool | None,
    memory_state: Sequence[MemoryState] | None,
    cache: StateCache | None,
    batch_size: int,
    device: torch.device,
) -> dict[int, MemoryState | None]:
    """Return the state of each memory in use before the new tokens, by layer; None where a text starts.

    Raises:
        ValueError: a `memory_state` that does not fit, beside a filled cache, or without memory; a cache filled with
            the memory switched the other way.
    """
    layers = sorted(config.memory_layers)
    is_on = bool(layers) and (use_memory is None or use_memory)
    is_continued = cache is not None and cache.seen_tokens is not None
    if memory_state is not None:
        if not is_on:
            raise ValueError("memory_state is given, but the memory is off: use_memory=False, or no memory_layers.")
        if is_continued:
            raise ValueError(
                "memory_state is given beside a filled cache, which holds the memory's state already: leave one of "
                "them out."
            )
        return _checked_states(config, memory_state, batch_size, device)
    states = {layer: _recall(cache, layer, config.memory_type) if is_continued else None for layer in layers}
    if is_continued and any((states[layer] is None) == is_on for layer in layers):
        raise ValueError(
            f"use_memory={is_on} differs from the calls that filled the cache: it stays the same for all the tokens of "
            "a text."
        )
    return states if is_on else {}


def _checked_states(config, memory_state, batch_size, device):
    kind = STATES[config.memory_type]
    names = {field.name for field in fields(kind)}
    if not isinstance(memory_state, Sequence) or any(
        not hasattr(state, "tensors") or set(state.tensors()) != names for state in memory_state
    ):
        given = type(memory_state[0] if isinstance(memory_state, (list, tuple)) and memory_state else memory_state)
        raise ValueError(
            f"memory_state is of {given.__name__}, expected a {kind.__name__} per memory layer, as "
            f"memory_type={config.memory_type!r} has: pass output.memory_state as it came."
        )
    if len(memory_state) != len(config.memory_layers):
        raise ValueError(
            f"memory_state holds {len(memory_state)} states, but memory_layers={config.memory_layers} needs "
            f"{len(config.memory_layers)}: pass output.memory_state as it came."
        )
    for index, state in enumerate(memory_state):
        state.check(f"memory_state[{index}]", batch_size, config, device)
    return dict(zip(sorted(config.memory_layers), memory_state, strict=True))


def read_apart(
    memory: SlotMemory, x: torch.Tensor, context: SequenceContext, read: MemoryRead
) -> tuple[torch.Tensor, MemoryRead]:
    """Read and write a memory that is a part of its own: return x (B, L, D) with what was read, and what came of it."""
    x, state, reads = memory(
        x,
        context.mask,
        read.state,
        shuffle=read.shuffle,
        keep_reads=read.keep_reads,
        document_ids=context.document_ids,
    )
    return x, replace(read, state=state, reads=reads)


def check_shuffling(has_memory: bool, batch_size: int) -> None:
    """Raise ValueError where there is no memory to exchange, or no other row."""
    if not has_memory:
        raise ValueError("shuffle_memory=True needs the memory: leave out use_memory=False, or set memory_layers.")
    if batch_size < 2:
        raise ValueError("shuffle_memory=True lets each row read another row's memory: give at least two rows.")


def remember(state: MemoryState | None, context: SequenceContext, layer_idx: int) -> None:
    """Put a memory's state into the layer's entry of the cache, if there is one."""
    entry = context.state(layer_idx)
    if entry is not None and state is not None:
        entry.tensors = {f"memory.{name}": tensor for name, tensor in state.tensors().items()}


def _recall(cache: StateCache, layer_idx: int, memory_type: str) -> MemoryState | None:
    """Return the state that a layer's entry holds; None when it was filled without memory."""
    tensors = cache.layers[layer_idx].tensors
    if not tensors:
        return None
    return STATES[memory_type](**{name.removeprefix("memory."): tensor for name, tensor in tensors.items()})


def summarise_memories(states: Iterable[MemoryState]) -> dict[str, torch.Tensor] | None:
    """Return the statistics of the memories, each (B,), mean over memories; None without any. The first says where."""
    statistics = [state.statistics() for state in states]
    if len(statistics) < 2:
        return statistics[0] if statistics else None
    places = {name: value.device for name, value in statistics[0].items()}
    return {name: torch.stack([each[name].to(place) for each in statistics]).mean(0) for name, place in places.items()}
