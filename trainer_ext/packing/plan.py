"""What becomes of each layer of a model of another library, decided before its weights are read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from frankenlm.modeling.bitnet_conversion import PER_BYTE
from frankenlm.modeling.checks import suggest
from frankenlm.modeling.packed_model import output_layer, tied_layers

from .stored import RenamedStore, StoredTensor, TensorStore


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a model by what is to be done with them; names as in the model.

    Attributes:
        ternary: they must be ternary.
        perhaps: the table and the head, which are packed if they are ternary and stay dense if not.
        bitnet: they lie in transformers' BitNet form; maps to whether they are packed ("offline") or not ("online").
        linear_class: of BitNet.
        int8: the table or the head in one byte a weight.
        tied: name of a layer -> the one whose weight it shares.
    """

    ternary: frozenset[str]
    perhaps: frozenset[str]
    bitnet: Mapping[str, bool]
    linear_class: str
    int8: frozenset[str]
    tied: Mapping[str, str]


def plan_layers(
    model: PreTrainedModel,
    store: TensorStore,
    bitnet: Mapping[str, Any],
    *,
    int8_embeddings: bool,
    int8_head: bool,
    left: Iterable[str],
) -> LayerPlan:
    """Return what is to be done.

    Args:
        model: without memory (meta tensors). store: of its tensors. bitnet: quantization_config of a BitNet, else {}.
        left: names of layers, or parts of names, that stay as they are.

    Raises:
        ValueError: a name that is no layer, or a model without linear layers.
    """
    linear = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    table, head = _names_of(model, model.get_input_embeddings()), _names_of(model, output_layer(model))
    kept = _matching(model, left)
    tied = dict(tied_layers(model))
    packed = _bitnet_layers(model, store, bitnet, linear)
    ends = {name for name in table + head if type(model.get_submodule(name)) in (nn.Linear, nn.Embedding)}
    int8 = {*(table if int8_embeddings else ()), *(head if int8_head else ())}
    ternary = set() if bitnet else set(linear) - set(head) - kept
    if not (ternary or packed):
        raise ValueError(f"{type(model).__name__} has no layer that could be ternary (nn.Linear).")
    perhaps = ends - kept - int8 - set(packed)
    perhaps = {name for name in perhaps if tied.get(name, name) in perhaps and _twins(name, tied) <= perhaps}
    return LayerPlan(
        frozenset(ternary),
        frozenset(perhaps),
        {name: online for name, online in packed.items() if name not in kept},
        bitnet.get("linear_class", "bitlinear"),
        frozenset(int8),
        tied,
    )


def _twins(name: str, tied: Mapping[str, str]) -> set[str]:
    return {target for target, source in tied.items() if source == name}


def _names_of(model: PreTrainedModel, layer: nn.Module | None) -> list[str]:
    return [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]


def _matching(model: PreTrainedModel, left: Iterable[str]) -> set[str]:
    """Return the layers that `left` names: in full, by one of their parents, or by parts of their name."""
    names = [name for name, _ in model.named_modules() if name]
    found = set()
    for given in left:
        matching = {name for name in names if f".{given}." in f".{name}."}
        if not matching:
            parts = {part for name in names for part in name.split(".")}
            known = {*names, *parts}
            raise ValueError(f"modules_to_not_convert: the model has no {given!r}.{suggest(given, known)}")
        found |= matching
    return found


def _bitnet_layers(
    model: PreTrainedModel, store: TensorStore, bitnet: Mapping[str, Any], linear: list[str]
) -> dict[str, bool]:
    """Return the ternary layers of a BitNet, and whether they are packed; the others are dense on purpose."""
    if not bitnet:
        return {}
    if bitnet.get("quantization_mode") != "online":
        return {name: True for name in linear if f"{name}.weight_scale" in store.tensors}
    # those that transformers would quantise at every call, chosen by its own rules
    kept = BitNetHfQuantizer.get_modules_to_not_convert(
        model, bitnet.get("modules_to_not_convert"), model._keep_in_fp32_modules
    )
    return {name: False for name in linear if should_convert_module(name, kept)}


def under_model_names(store: TensorStore, model: PreTrainedModel) -> RenamedStore:
    """Return a store of safetensors files under the names that transformers would load its tensors as.

    Raises:
        ValueError: two tensors for one name, or tensors that are put together while they are loaded.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    wanted = model.state_dict()
    names: dict[str, str] = {}
    for stored in store.tensors:
        name, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, wanted)
        if pattern is not None:
            raise ValueError(
                f"{stored}: transformers makes {name} of it and others while it loads a {type(model).__name__}, as of "
                "experts; such models cannot be packed."
            )
        if name in names:
            raise ValueError(f"{stored} and {names[name]} are both {name} in a {type(model).__name__}.")
        names[name] = stored
    return RenamedStore(store, names)


def check_tensors(model: PreTrainedModel, store: TensorStore, plan: LayerPlan) -> None:
    """Check that a store holds what a model needs and nothing else, in the shapes that its configuration asks for.

    Raises:
        ValueError: it does not; the message names the tensor.
    """
    wanted = model.state_dict()
    twins = {f"{target}.weight": f"{source}.weight" for target, source in plan.tied.items()}
    for name, tensor in wanted.items():
        stored = store.tensors.get(name)
        if stored is None and twins.get(name) in store.tensors:
            continue
        if stored is None and any(source == name and target in store.tensors for target, source in twins.items()):
            continue
        if stored is None:
            raise ValueError(f"the checkpoint lacks {name}.")
        _check_shape(name, tuple(tensor.shape), stored, plan)
    extra = [name for name in store.tensors if name not in wanted and not _may_be_there(name, model, plan)]
    if extra:
        raise ValueError(
            f"config.json describes a {type(model).__name__} with no place for {extra[0]}"
            f"{f' and {len(extra) - 1} other tensors' if extra[1:] else ''}."
        )


def _check_shape(name: str, shape: tuple[int, ...], stored: StoredTensor, plan: LayerPlan) -> None:
    if plan.bitnet.get(name.removesuffix(".weight")) and stored.stored == "U8":
        shape = (shape[0] // PER_BYTE, *shape[1:])
    if stored.shape != shape:
        raise ValueError(f"{name} is {stored.shape} in the checkpoint; its configuration asks for {shape}.")


def _may_be_there(name: str, model: PreTrainedModel, plan: LayerPlan) -> bool:
    """Whether a tensor without a place is usual: scales of BitNet's layers, and what transformers leaves out too."""
    if name.endswith(".weight_scale") and name.removesuffix(".weight_scale") in plan.bitnet:
        return True
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]
    return any(re.search(pattern, name) for pattern in ignored)
