"""The decoders that `frankenlm::decode_layers` computes: which stacks of transformers they are, and what it is given.

A stack is known by its class, whose forward was read in transformers 5.24: Llama's, and those that differ from it by
norms, biases or the activation. A layer is

    x = x + o(sub(attention(turn(q_norm(q(n1(x)))), turn(k_norm(k(n1(x)))), v(n1(x)))))
    x = x + down(sub(act(gate(n2(x))) * up(n2(x))))

where q_norm, k_norm and the sub-norms may be missing.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import get_layer_types_and_kwargs

from .layer_calls import PlainCalls

FAMILIES = ("bitnet", "llama", "mistral", "qwen2", "qwen3")  # transformers' model types
ACTIVATIONS = {"SiLUActivation": 0, "ReLUSquaredActivation": 1}
PAST = 4  # the place of `past` among the operator's sizes


class NotThisShapeError(ValueError):
    """The stack is another one; the message says where."""


class LayerFacts(NamedTuple):
    """What all layers of a stack have in common; eps of a norm that they lack is 0."""

    heads: int
    kv_heads: int
    head_width: int
    feedforward: int
    activation: int
    head_norms: bool
    attention_subnorm: bool
    feedforward_subnorm: bool
    biases: int  # one bit for each of query, key, value, output, gate, up, down
    norm_eps: float
    head_norm_eps: float
    subnorm_eps: float
    input_eps: tuple[float, ...]  # of the packed layers' own norm: before attention, output, feed-forward, down
    scaling: float


class DecoderShape(NamedTuple):
    """A stack as the operator takes it.

    places: where each of its tensors is found, a module's dict and the key in it, in the operator's order. calls:
    whether the layers may still be computed without being called.
    """

    layers: int
    facts: LayerFacts
    last_eps: float
    parts: tuple[nn.Module, nn.Module]  # the stack's layers and last norm
    places: tuple[tuple[dict, str], ...]
    calls: PlainCalls

    def holds(self, stack: nn.Module) -> bool:
        """Whether the stack is still the one that was read."""
        layers, norm = self.parts
        same = stack.layers is layers and stack.norm is norm and stack.config.num_hidden_layers == self.layers
        return same and self.calls.hold()

    def tensors(self) -> list[torch.Tensor]:
        return [tensors[name] for tensors, name in self.places]

    def sizes(self) -> list[int]:
        """Return the operator's `sizes`, as decoder_binding.cpp numbers them, with 0 for `past`."""
        f = self.facts
        norms = (int(f.head_norms), int(f.attention_subnorm), int(f.feedforward_subnorm))
        return [f.heads, f.kv_heads, f.head_width, f.feedforward, 0, f.activation, *norms, f.biases]

    def settings(self) -> list[float]:
        """Return the operator's `settings`."""
        f = self.facts
        return [f.norm_eps, f.head_norm_eps, f.subnorm_eps, self.last_eps, *f.input_eps, f.scaling]


def read_shape(stack: nn.Module) -> DecoderShape:
    """Return the shape of a packed stack.

    Raises:
        NotThisShapeError: another model, a layer that is not packed, a window of attention, or layers that are hooked.
    """
    if not any(type(stack).__module__ == f"transformers.models.{name}.modeling_{name}" for name in FAMILIES):
        raise NotThisShapeError(f"{type(stack).__name__} is none of transformers' {', '.join(FAMILIES)}")
    _check_children(stack, "the stack", {"embed_tokens", "layers", "norm", "rotary_emb"})
    if set(get_layer_types_and_kwargs(stack.config)[0]) != {"full_attention"}:
        raise NotThisShapeError("some layers attend within a window")
    layers = list(stack.layers)
    if len(layers) != stack.config.num_hidden_layers or not layers:
        raise NotThisShapeError(f"it has {len(layers)} layers; num_hidden_layers={stack.config.num_hidden_layers}")
    facts = [_read_layer(layer, f"layer {number}") for number, layer in enumerate(layers)]
    for number, of_layer in enumerate(facts):
        if of_layer != facts[0]:
            raise NotThisShapeError(f"layer {number} is unlike layer 0")
    calls = PlainCalls(stack.norm, stack.layers)
    if not calls.hold():
        raise NotThisShapeError("its layers are hooked, or have another forward")
    places = [place for layer in layers for place in _places(layer)]
    places.append((stack.norm._parameters, "weight"))
    parts = stack.layers, stack.norm
    return DecoderShape(len(layers), facts[0], _eps([stack.norm]), parts, tuple(places), calls)


def _read_layer(layer: nn.Module, name: str) -> LayerFacts:
    attention, feedforward = layer.self_attn, layer.mlp
    _check_children(layer, name, {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
    optional = {"q_norm", "k_norm", "attn_sub_norm"}
    _check_children(attention, f"{name}.self_attn", {"q_proj", "k_proj", "v_proj", "o_proj"}, optional)
    _check_children(feedforward, f"{name}.mlp", {"gate_proj", "up_proj", "down_proj", "act_fn"}, {"ffn_sub_norm"})
    activation = type(feedforward.act_fn).__name__
    if activation not in ACTIVATIONS:
        raise NotThisShapeError(f"{name} has the activation {activation}")
    projections = _projections(layer)
    for projection in projections:
        if not is_packed(projection):
            raise NotThisShapeError(f"{name} has a {type(projection).__name__} where a packed layer is expected")
    query, key, value, output, gate, up, down = projections
    for sharing in ((query, key, value), (gate, up)):
        if len({(part.norm_eps, part.group_size) for part in sharing}) > 1:
            raise NotThisShapeError(f"{name}: projections of one input differ in its norm or in their groups")
    head_norms, subnorm = _norms(attention, "q_norm", "k_norm"), _norms(attention, "attn_sub_norm")
    inner = _norms(feedforward, "ffn_sub_norm")
    return LayerFacts(
        heads=query.out_features // attention.head_dim,
        kv_heads=key.out_features // attention.head_dim,
        head_width=attention.head_dim,
        feedforward=gate.out_features,
        activation=ACTIVATIONS[activation],
        head_norms=len(head_norms) == 2,
        attention_subnorm=bool(subnorm),
        feedforward_subnorm=bool(inner),
        biases=sum(1 << place for place, part in enumerate(projections) if part.bias is not None),
        norm_eps=_eps([layer.input_layernorm, layer.post_attention_layernorm]),
        head_norm_eps=_eps(head_norms),
        subnorm_eps=_eps([*subnorm, *inner]),
        input_eps=tuple(part.norm_eps for part in (query, output, gate, down)),
        scaling=attention.scaling,
    )


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer is a PackedBitLinear, whichever copy of the code it comes from."""
    return hasattr(layer, "is_packed_layer") and hasattr(layer, "apply_prepared")


def _check_children(module: nn.Module, name: str, needed: set[str], optional: frozenset | set = frozenset()) -> None:
    found = {child for child, _ in module.named_children()}
    odd = (needed - found) | (found - needed - optional)
    if odd:
        raise NotThisShapeError(f"{name} lacks or adds {', '.join(sorted(odd))}")


def _norms(module: nn.Module, *names: str) -> list[nn.Module]:
    children = dict(module.named_children())
    return [children[name] for name in names if name in children]


def _eps(norms: list[nn.Module]) -> float:
    """Return the one eps of some norms, 0 for none."""
    for norm in norms:
        if not type(norm).__name__.endswith("RMSNorm"):
            raise NotThisShapeError(f"one of its norms is a {type(norm).__name__}")
    found = {norm.variance_epsilon for norm in norms}
    if len(found) > 1:
        raise NotThisShapeError(f"norms of one kind have eps {sorted(found)}")
    return found.pop() if found else 0.0


def _projections(layer: nn.Module) -> list[nn.Module]:
    attention, feedforward = layer.self_attn, layer.mlp
    attended = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*attended, feedforward.gate_proj, feedforward.up_proj, feedforward.down_proj]


def _places(layer: nn.Module) -> Iterator[tuple[dict, str]]:
    """Where each tensor of a layer is, in the operator's order."""
    attention, feedforward = layer.self_attn, layer.mlp
    query, key, value, output, gate, up, down = _projections(layer)
    norms = (
        [layer.input_layernorm],
        _norms(attention, "q_norm", "k_norm", "attn_sub_norm"),
        [layer.post_attention_layernorm],
        _norms(feedforward, "ffn_sub_norm"),
        [],
    )
    packed = ((query, key, value), (output,), (gate, up), (down,), ())
    for some_norms, some_packed in zip(norms, packed, strict=True):
        for norm in some_norms:
            yield norm._parameters, "weight"
        for projection in some_packed:
            yield projection._parameters, "weight"
            yield projection._buffers, "weight_scale"
            if projection.bias is not None:
                yield projection._buffers, "bias"
