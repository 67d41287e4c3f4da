"""A model on two devices: each layer is handed what it needs on its own one, by accelerate's hooks.

There is one device here; the meta device, whose operators refuse tensors of another, stands for the second. What asks
for values (documents, experts) cannot run there.
"""

from dataclasses import fields, is_dataclass

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from accelerate.utils import send_to_device

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.attention_slots import MemoryRead
from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.feedforward import RouterStatistics, summarize_routers
from frankenlm.modeling.infinito_memories import summarise_memories
from tiny_infinito import ATTENTION_SLOTS, VOCAB, tiny_infinito

OTHER = torch.device("meta")
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
HYBRID = SIZES | {"num_hidden_layers": 4, "num_loops": 2, "is_decoder": True, "mamba_head_dim": 8}
PATTERNS = {"retnet": {}, "mamba": {}, "standard_attn": {}, "ode": {}, "titan_attn": {"use_titan_memory": True}}
MODELS = {
    "slots": lambda: InfinitoForCausalLM(tiny_infinito()),
    "attention_slots": lambda: InfinitoForCausalLM(tiny_infinito(**ATTENTION_SLOTS)),
    "legacy-1bit": lambda: Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES)),
    **{
        name: lambda name=name, more=more: FrankensteinForCausalLM(
            FrankensteinConfig(**HYBRID | {"position_type": "learned", "layer_pattern": [name] * 2, **more})
        )
        for name, more in PATTERNS.items()
    },
}


def split(model):
    """Put all behind the embedding on the other device, with accelerate's hooks."""
    stack = model.model
    memories = stack.memories.values() if hasattr(stack, "memories") else []
    for part in (*stack.layers, *memories, stack.norm_f, model.lm_head):
        part.to(OTHER)
        add_hook_to_module(part, AlignDevicesHook(execution_device=OTHER))
        attach_execution_device_hook(part, OTHER)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_gets_what_it_needs_on_its_device(name):
    model, ids = split(MODELS[name]().eval()), torch.arange(3, 37).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        output = model(ids, attention_mask=mask, use_cache=True)
        assert output.logits.device == OTHER and output.cache.seen_tokens.device == ids.device
        output.cache.batch_select_indices(torch.tensor([1, 0, 1]))  # as beams do
        if name != "slots":  # a step that asks whether a segment is full
            assert model(ids[:1, :1].expand(3, 1), cache=output.cache).logits.shape == (3, 1, VOCAB)
    if output.get("memory_state") is not None:
        assert all(tensors_of(state) == {OTHER} for state in output.memory_state)
    if name == "legacy-1bit":
        return  # its rounding looks at its weights when it learns
    loss = model.train()(ids, attention_mask=mask, labels=ids).loss
    assert loss.device == OTHER


def tensors_of(value) -> set[torch.device]:
    """The devices of all tensors in it."""
    if isinstance(value, torch.Tensor):
        return {value.device}
    if is_dataclass(value):
        return set().union(*(tensors_of(getattr(value, field.name)) for field in fields(value)))
    return set()


@pytest.mark.parametrize("fields_of", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])
def test_nothing_is_left_behind(fields_of):
    model, ids = InfinitoForCausalLM(tiny_infinito(**fields_of)).eval(), torch.arange(3, 20)[None]
    starts = torch.tensor([[*range(6), *range(11)]])
    context = SequenceContext.build(
        batch_size=1,
        length=17,
        device=ids.device,
        is_causal=True,
        attention_mask=torch.tensor([[0] + [1] * 16]),
        position_ids=starts,
        cache=model.new_cache(),
    )
    assert context.mask is not None and context.documents is not None and context.key_mask is not None
    read = MemoryRead(model(ids).memory_state[0], keep_reads=True)
    moved = send_to_device({"context": context, "memory": read}, OTHER)
    assert tensors_of(moved["context"]) == tensors_of(moved["memory"]) == {OTHER}
    assert context.to(OTHER) is moved["context"] and context.to("cpu") is context  # once for all layers there
    assert moved["context"].cache is context.cache and moved["memory"].keep_reads
    assert moved["context"].shared("x", lambda: 1) == 1 and context.shared("x", lambda: 2) == 2
    states = [MemoryRead(state).to(OTHER).state for state in model(ids).memory_state]
    assert tensors_of(states[0]) == {OTHER}


def test_what_layers_tell_is_brought_together():
    states = InfinitoForCausalLM(tiny_infinito()).eval()(torch.arange(3, 20)[None]).memory_state
    told = summarise_memories([states[0].to(OTHER), states[1]])
    assert {value.device for value in told.values()} == {OTHER}
    here, there = (RouterStatistics(*(torch.ones(shape, device=place) for shape in ((), (), (2,)))) for place in
                   ("cpu", OTHER))  # fmt: skip
    assert {value.device for value in summarize_routers([there, here]).values()} == {OTHER}
