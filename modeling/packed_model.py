"""Which layers of a model are packed, and putting the packed ones in their places.

Layers know by themselves how they are packed: `pack()` returns the packed form, `empty_packed()` one whose tensors a
checkpoint will fill. They are found by these methods, not by class: code that travels with a checkpoint is imported
twice, once for the configuration and once for the model, and each has classes of its own.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .checks import suggest
from .int8_layers import Int8Embedding, Int8Linear
from .packed_embedding import PackedBitEmbedding
from .packed_linear import PackedBitLinear
from .ternary import GROUP_SCALE_DTYPE

TERNARY, INT8 = "ternary", "int8"


class Place(NamedTuple):
    """A layer to be packed: its name, what becomes of it, and how."""

    name: str
    kind: str
    layer: nn.Module
    empty: Callable[[], nn.Module]
    filled: Callable[[], nn.Module]


@dataclass(frozen=True)
class PlainLayers:
    """What of a model of another library is packed: its nn.Linear layers, and how their scales lie.

    Args:
        embeddings: the token table, an nn.Embedding, is ternary too.
        group_size: inputs that share a scale, in all packed layers but those of `others`; None: a row has one.
        others: name of a layer -> its own group size.
        scale_dtype: of the groups' scales.
    """

    embeddings: bool = False
    group_size: int | None = None
    others: Mapping[str, int | None] = field(default_factory=dict)
    scale_dtype: torch.dtype = GROUP_SCALE_DTYPE

    def group_of(self, name: str, model: PreTrainedModel) -> int | None:
        """Return the group size of a layer; a stack without its head has shorter names."""
        for known in (name, f"{model.base_model_prefix}.{name}"):
            if known in self.others:
                return self.others[known]
        return self.group_size


def _is_named(name: str, model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Whether `names` hold a layer or one of its parents; a stack without its head has shorter names."""
    full = (f"{name}.", f"{model.base_model_prefix}.{name}.")
    return any(long.startswith(f"{given}.") for given in names for long in full)


def _ternary_places(model: PreTrainedModel, skipped: Iterable[str]) -> list[Place]:
    return [
        Place(name, TERNARY, layer, layer.empty_packed, layer.pack)
        for name, layer in model.named_modules(remove_duplicate=False)
        if hasattr(layer, "empty_packed") and not _is_named(name, model, skipped)
    ]


def _plain_places(model: PreTrainedModel, skipped: Iterable[str], plain: PlainLayers) -> list[Place]:
    """The layers of a model of another family; only a converter knows codes that could fill them."""
    table = model.get_input_embeddings() if plain.embeddings else None
    return [
        Place(
            name,
            TERNARY,
            layer,
            functools.partial(_empty_plain, layer, plain.group_of(name, model), plain.scale_dtype),
            functools.partial(_refuse_plain, name),
        )
        for name, layer in model.named_modules(remove_duplicate=False)
        if (type(layer) is nn.Linear or layer is table) and not _is_named(name, model, skipped)
    ]


def _empty_plain(
    layer: nn.Linear | nn.Embedding, group_size: int | None, scale_dtype: torch.dtype
) -> PackedBitLinear | PackedBitEmbedding:
    groups = {"group_size": group_size, "scale_dtype": scale_dtype, "device": layer.weight.device}
    if type(layer) is nn.Linear:
        return PackedBitLinear(
            layer.in_features, layer.out_features, layer.bias is not None, input_norm=False, **groups
        )
    if type(layer) is not nn.Embedding:
        raise ValueError(f"a {type(layer).__name__} is no plain nn.Embedding, and cannot be packed as a ternary table.")
    return PackedBitEmbedding(*layer.weight.shape, layer.padding_idx, dtype=layer.weight.dtype, **groups)


def _refuse_plain(name: str) -> nn.Module:
    raise ValueError(f"{name} is a layer of another library: its weights have no ternary codes to pack.")


def _int8_place(model: PreTrainedModel, option: str, layer: nn.Module | None, plain: type, packed: type) -> list[Place]:
    """The place of the token table or the output layer; none in a model that has no such layer."""
    if layer is None:
        return []
    if hasattr(layer, "empty_packed"):
        raise ValueError(f"{option}=True: that layer is ternary and is packed anyway; leave {option} out.")
    if type(layer) is not plain:
        raise ValueError(f"{option}=True: that layer is a {type(layer).__name__}, not a plain {plain.__name__}.")
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    return [Place(name, INT8, layer, lambda: packed.empty_of(layer), lambda: packed.of(layer)) for name in names]


def output_layer(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer that holds the output matrix; None in a model that has none.

    What `get_output_embeddings` returns may be a head around it, as with factorised and ternary ones of ours.
    """
    head = model.get_output_embeddings()
    return getattr(head, "decoder", head)


def find_places(
    model: PreTrainedModel,
    *,
    int8_embeddings: bool,
    int8_head: bool,
    modules_to_not_convert: Iterable[str] = (),
    plain: PlainLayers | None = None,
) -> list[Place]:
    """Return every layer of a model that is to be packed; arguments as in `TernaryConfig`.

    Args:
        plain: of a model of another library, how its layers are packed.

    Raises:
        ValueError: an int8 layer that is not plain.
    """
    if plain is None:
        places = _ternary_places(model, modules_to_not_convert)
    else:
        places = _plain_places(model, modules_to_not_convert, plain)
    if int8_embeddings:
        places += _int8_place(model, "int8_embeddings", model.get_input_embeddings(), nn.Embedding, Int8Embedding)
    if int8_head:
        places += _int8_place(model, "int8_head", output_layer(model), nn.Linear, Int8Linear)
    return places


def check_places(model: PreTrainedModel, places: list[Place], modules_to_not_convert: Iterable[str] = ()) -> None:
    """Check that a model can be packed; its weights may still be missing (meta tensors).

    Raises:
        ValueError: no ternary layer, a name that is no layer, levels other than -1, 0 and 1, activations of other than
            8 bits, or a shared table of which only one side would be int8.
    """
    known = {name for name, _ in model.named_modules()}
    for name in modules_to_not_convert:
        if name not in known:
            raise ValueError(f"modules_to_not_convert: the model has no {name!r}.{suggest(name, known)}")
    if not any(place.kind == TERNARY for place in places):
        raise ValueError(f"{type(model).__name__} has no ternary layer to pack (use_bitnet=True makes them).")
    for place in places:
        try:
            place.empty()
        except ValueError as error:
            raise ValueError(f"{place.name}: {error}") from error
    kinds = {place.name: place.kind for place in places}
    for target, source in tied_layers(model):
        if {kinds.get(target), kinds.get(source)} == {INT8, None}:
            raise ValueError(
                f"{target} and {source} share one table (tie_word_embeddings=True): int8_embeddings and int8_head go "
                "together."
            )


def tied_layers(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Return the (target, source) names of the layers that share a weight."""
    tied = model.all_tied_weights_keys.items()
    return [(target.rpartition(".")[0], source.rpartition(".")[0]) for target, source in tied]


def pack_layers(model: PreTrainedModel, places: list[Place]) -> None:
    """Replace layers by their packed forms; layers that share an int8 table go on sharing it.

    Where a ternary layer shared its weight, the sharing ends (`tie_word_embeddings` becomes False): its two bits are
    no longer what the other one reads.
    """
    kinds = {place.name: place.kind for place in places}
    _put(model, places, lambda place: place.filled())
    if end_ternary_ties(model, places):
        return
    for target, source in tied_layers(model):
        if kinds.get(target) == INT8:
            model.get_submodule(target).weight = model.get_submodule(source).weight


def end_ternary_ties(model: PreTrainedModel, places: list[Place]) -> bool:
    """Let layers share no weight any more where one of them is ternary, and return whether that was so."""
    kinds = {place.name: place.kind for place in places}
    ends = any(TERNARY in (kinds.get(target), kinds.get(source)) for target, source in tied_layers(model))
    if ends:
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    return ends


def empty_layers(model: PreTrainedModel, places: list[Place]) -> None:
    """Replace layers by packed ones whose tensors a checkpoint will fill."""
    _put(model, places, lambda place: place.empty())


def _put(model: PreTrainedModel, places: list[Place], make: Callable[[Place], nn.Module]) -> None:
    made: dict[int, nn.Module] = {}  # a layer that stands in two places becomes one packed layer
    for place in places:
        if id(place.layer) not in made:
            made[id(place.layer)] = make(place)
        model.set_submodule(place.name, made[id(place.layer)])
