"""A model under test: called in one way, whatever its class is called and names its arguments.

Shapes: B batch, L tokens, V what the model gives a token: logits, or the last hidden states of one without a head.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

# What the state that a model carries from call to call is named: by transformers, in older models, by RWKV.
CACHES = ("cache", "past_key_values", "cache_params", "state")


class CannotBeTold(Exception):
    """A promise that cannot be tried on this model; the message says why."""


class Refused(Exception):
    """The model says that it cannot do what is asked; the message is its own, on one line."""


@dataclass
class ModelUnderTest:
    """A model in evaluation mode, and what has to be known to call it.

    start: the position of a document's first token (RoBERTa and its kin count from their pad's id + 1).
    """

    model: PreTrainedModel
    is_decoder: bool
    vocabulary: int
    start: int = 0

    def __post_init__(self):
        parameters = inspect.signature(self.model.forward).parameters
        self.takes = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
        self.swallows = any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def call(self, ids: torch.Tensor, **inputs):
        """Return the model's own output; `use_cache` is off, if not given, where the model knows it."""
        if "use_cache" in self.takes or self.swallows:
            inputs.setdefault("use_cache", False)
        placed = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        return self.model(input_ids=ids.to(self.device), **placed, return_dict=True)

    def outputs(self, ids: torch.Tensor, **inputs) -> torch.Tensor:
        """Return (B, L, V) float64: what the model gives each token."""
        with torch.no_grad():
            return readable(self.call(ids, **inputs))

    def continued(self, ids: torch.Tensor, cache, **inputs):
        """Return what comes after `cache` (None: nothing was before): (B, L, V) float64, and the cache after it."""
        given = {} if cache is None else {self.cache_name: cache}
        with torch.no_grad():
            output = self.call(ids, use_cache=True, **given, **inputs)
        after = output.get(self.cache_name)
        if after is None:
            raise CannotBeTold("it returns no cache")
        return readable(output), after

    @property
    def cache_name(self) -> str | None:
        """What the model calls the cache that it takes; None where it takes none."""
        return next((name for name in CACHES if name in self.takes), None)

    def positions(self, lengths: list[int]) -> dict[str, torch.Tensor]:
        """Return (1, L) position_ids that begin again with each of the lengths."""
        return {"position_ids": torch.cat([torch.arange(size) for size in lengths])[None] + self.start}

    def in_dtype(self, dtype: torch.dtype) -> "ModelUnderTest":
        """Return the same model in another number format, as from_pretrained would open it."""
        return ModelUnderTest(in_dtype(copy.deepcopy(self.model), dtype), self.is_decoder, self.vocabulary, self.start)

    def beside(self, model: PreTrainedModel) -> "ModelUnderTest":
        """Return another model of the same kind, made ready as this one is."""
        model = in_dtype(model.eval(), self.dtype).to(self.device)
        return ModelUnderTest(model, self.is_decoder, self.vocabulary, self.start)

    @contextmanager
    def embedded(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Within the block, let `change` have the (B, L, C) embeddings of tokens on their way into the model.

        Raises:
            CannotBeTold: there is no layer that gives them.
        """
        embedding = self.model.get_input_embeddings()
        if not isinstance(embedding, nn.Module):
            raise CannotBeTold("it has no input embeddings to look at")

        def look(module, inputs, output):
            if not torch.is_tensor(output):
                raise CannotBeTold("its embeddings give more than a tensor")
            return change(output)

        handle = embedding.register_forward_hook(look)
        try:
            yield
        finally:
            handle.remove()


def readable(output) -> torch.Tensor:
    """Return (B, L, V) float64 of a model's output: its logits, or its last hidden states."""
    values = output.get("logits")
    if values is None:
        values = output.get("last_hidden_state")
    if values is None or values.ndim != 3:
        raise CannotBeTold("it gives neither logits nor hidden states for each token")
    return values.double() if not values.requires_grad else values


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the weights of a model, but for those that its class keeps in float32, as from_pretrained does.

    Buffers, such as frequencies of rotary positions and tables of decays, stay as they are: rounded one by one, they
    would no longer fit together, and the wider twin would have them from here.
    """
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    narrow = dtype in (torch.float16, torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            wide = narrow and not kept.isdisjoint(name.split("."))
            weight.data = weight.data.to(torch.float32 if wide else dtype)
    model.config.dtype = dtype
    return model
