"""The programs of a model: what is exported, with what goes in and comes out, and what they are compared with.

An encoder, and any head but that of a causal language model, is one program over a text. A causal language model of
ours is two: `prefill` reads a text and returns logits and the state, `step` goes on from a state by one token.
Shapes: B batch, L length, P columns of the past, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from frankenlm.modeling.attention_slots import AttentionWithSlots
from frankenlm.modeling.mixer_attention import TitanAttention
from frankenlm.modeling.slot_memory import SlotMemory
from frankenlm.trainer_ext.common.checkpoints import position_limit
from frankenlm.trainer_ext.common.cli import UserError

from .states import BATCH, PAST, cache_from_tensors, cache_to_tensors, moving_axes

LENGTH = "length"
EXAMPLE = (2, 7)
RESULTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


@dataclass(frozen=True)
class Program:
    """One program to export.

    Attributes:
        name: of its file.
        module: called with `inputs` in their order; returns a tuple in the order of `outputs`.
        inputs: example tensors by name.
        axes: for each input, which of its axes are of no fixed size, and what they count.
        outputs: names.
        output_axes: as `axes`.
        limits: the most that a kind of axis can count.
        sample: sample(batch, length) makes other inputs, with pads, to compare programs with.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    output_axes: dict[str, dict[int, str]]
    limits: dict[str, int | None]
    sample: Callable[[int, int], dict[str, torch.Tensor]]


class _Text(nn.Module):
    """(input_ids (B, L), attention_mask (B, L)) -> the model's results."""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids, attention_mask):
        results = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(results[name] for name in self.outputs)


class _Prefill(nn.Module):
    """(input_ids (B, L), attention_mask (B, L)) -> logits (B, L, V) and the state."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        results = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True)
        return (results.logits, *cache_to_tensors(results.cache).values())


class _Step(nn.Module):
    """(input_ids (B, 1), past_mask (B, P), the state) -> logits (B, 1, V) and the next state."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids, past_mask, *state):
        cache = cache_from_tensors(self.model, dict(zip(self.names, state, strict=True)), past_mask)
        results = self.model(input_ids=input_ids, cache=cache)
        return (results.logits, *cache_to_tensors(results.cache).values())


def programs_of(model: nn.Module) -> list[Program]:
    """Return the programs of a model in evaluation mode.

    Raises:
        UserError: it returns nothing that is known.
    """
    if hasattr(model, "new_cache") and model.config.is_decoder and model.config.attention_window is None:
        return [_prefill(model), _step(model)]
    return [_whole_text(model)]


def longest_text(model: nn.Module) -> int | None:
    """Return how many tokens a program can serve: by learned positions, by what one centre of hyperbolic positions
    serves, and by what a slot memory can hold without replacing anything; None when there is no limit."""
    limits = [position_limit(model.config)]
    for module in model.modules():
        if isinstance(module, TitanAttention) and module.use_hope:
            limits.append(module.rates(model.config.num_hidden_layers - 1).span)
        if isinstance(module, SlotMemory):
            limits.append((module.num_slots - 1) * module.segment)
        if isinstance(module, AttentionWithSlots):
            limits.append(model.config.attention_window + module.num_slots)
    return min((limit for limit in limits if limit is not None), default=None)


def texts(model: nn.Module) -> Callable[[int, int], dict[str, torch.Tensor]]:
    """Return what makes batches of random tokens, the first row with a pad at its left, the last with one at its
    right."""
    generator = torch.Generator().manual_seed(0)

    def sample(batch, length):
        ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if length > 2:
            mask[0, 0] = mask[-1, -1] = 0
        return {"input_ids": ids, "attention_mask": mask}

    return sample


def _whole_text(model):
    sample = texts(model)
    inputs = sample(*EXAMPLE)
    with torch.no_grad():
        results = model(**inputs)
    outputs = tuple(name for name in RESULTS if name in results)
    if not outputs:
        raise UserError(f"a {type(model).__name__} returns {', '.join(results)}, none of {', '.join(RESULTS)}.")
    per_text = {0: BATCH, 1: LENGTH}
    return Program(
        name="decoder" if model.config.is_decoder else "encoder",
        module=_Text(model, outputs),
        inputs=inputs,
        axes=dict.fromkeys(inputs, per_text),
        outputs=outputs,
        # a row's classes are (B, C)
        output_axes={name: per_text if results[name].shape[1] == EXAMPLE[1] else {0: BATCH} for name in outputs},
        limits={BATCH: None, LENGTH: longest_text(model)},
        sample=sample,
    )


def _prefill(model):
    sample = texts(model)
    inputs, names = sample(*EXAMPLE), _state_names(model)
    per_text = {0: BATCH, 1: LENGTH}
    axes = {name: {at: LENGTH if of == PAST else of for at, of in moving_axes(name).items()} for name in names}
    return Program(
        name="prefill",
        module=_Prefill(model),
        inputs=inputs,
        axes=dict.fromkeys(inputs, per_text),
        outputs=("logits", *(f"state.{name}" for name in names)),
        output_axes={"logits": per_text} | {f"state.{name}": axis for name, axis in axes.items()},
        limits={BATCH: None, LENGTH: longest_text(model)},
        sample=sample,
    )


def _step(model):
    sample, names = texts(model), _state_names(model)

    def continued(batch, length):
        text = sample(batch, length)
        with torch.no_grad():
            cache = model(**text, use_cache=True).cache
        token = sample(batch, 1)["input_ids"]
        state = {f"past.{name}": tensor.clone() for name, tensor in cache_to_tensors(cache).items()}
        return {"input_ids": token, "past_mask": text["attention_mask"]} | state

    axes = {name: moving_axes(name) for name in names}
    after = {name: {at: "past + 1" if of == PAST else of for at, of in axis.items()} for name, axis in axes.items()}
    longest = longest_text(model)
    return Program(
        name="step",
        module=_Step(model, names),
        inputs=continued(*EXAMPLE),
        axes={"input_ids": {0: BATCH}, "past_mask": {0: BATCH, 1: PAST}}
        | {f"past.{name}": axis for name, axis in axes.items()},
        outputs=("logits", *(f"state.{name}" for name in names)),
        output_axes={"logits": {0: BATCH}} | {f"state.{name}": axis for name, axis in after.items()},
        limits={BATCH: None, PAST: None if longest is None else longest - 1},
        sample=continued,
    )


def _state_names(model) -> tuple[str, ...]:
    with torch.no_grad():
        cache = model(torch.zeros(1, 2, dtype=torch.long), use_cache=True).cache
    return tuple(cache_to_tensors(cache))
