"""The parameters of a model under names that do not change with wrappers, model classes and library versions."""

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

from frankenlm.modeling.packed_embedding import PackedBitEmbedding
from frankenlm.modeling.packed_linear import PackedBitLinear

from ..layouts.usual_names import LISTS

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "base_layer"})
_TEXT_ROOTS = frozenset(
    {"model", "language_model", "text_model", "transformer", "backbone", "decoder"}
    | {"gpt_neox", "bert", "roberta", "rwkv"}
)
_OTHER_ROOTS = {
    "vision_tower": "vision",
    "vision_model": "vision",
    "visual": "vision",
    "image_embed": "vision",
    "audio_tower": "audio",
    "audio_embed": "audio",
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "connector": "projector",
}
_LAYER_INDEX = re.compile(rf"\w+/(?:\w+\.)*?{LISTS}\.(\d+)\.")


def canonical_name(name: str) -> str:
    """Return the name of a parameter without what changes between wrappers, model classes and library versions.

    `model.language_model.layers.3.mlp.up_proj.weight` and `module.model.layers.3.mlp.up_proj.weight` are both
    `text/layers.3.mlp.up_proj.weight`; parts of a vision tower begin with `vision/`, of a projector with `projector/`.
    """
    parts = [part for part in name.removeprefix("base_model.model.").split(".") if part not in _WRAPPERS]
    for index, part in enumerate(parts[:-1]):
        if part in _OTHER_ROOTS:
            rest = parts[index + 1 :]
            return f"{_OTHER_ROOTS[part]}/{'.'.join(rest[1:] if rest[0] == 'vision_model' else rest)}"
    while len(parts) > 1 and parts[0] in _TEXT_ROOTS:
        parts = parts[1:]
    return f"text/{'.'.join(parts)}"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, torch.compile and adapters."""
    while True:
        inside = next((model._modules[name] for name in ("module", "_orig_mod") if name in model._modules), None)
        if inside is None:
            return model.get_base_model() if hasattr(model, "get_base_model") else model
        model = inside


@dataclass(frozen=True)
class Entry:
    """One parameter: its name in the model, its canonical name, the module it hangs on, and its `logical_shape`."""

    name: str
    canonical: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]

    @property
    def layer(self) -> int | None:
        match = _LAYER_INDEX.match(self.canonical)
        return int(match[1]) if match else None

    @property
    def modality(self) -> str:
        return self.canonical.partition("/")[0]


def index_parameters(model: nn.Module) -> list[Entry]:
    """Return every parameter in the model's order, each storage once; of a tied token table the name is the table's.

    Raises:
        ValueError: the model has packed ternary layers, or two parameters get one canonical name.
    """
    entries, seen = [], set()
    # some models hold their head before the table
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for path, module in model.named_modules():
        if isinstance(module, (PackedBitLinear, PackedBitEmbedding)):
            raise ValueError(
                f"{path} holds packed ternary weights, which cannot be damaged: load the checkpoint that was packed."
            )
        for attribute, parameter in module._parameters.items():
            if parameter is None or (id(parameter) in tables and not isinstance(module, nn.Embedding)):
                continue
            # on the meta device nothing has an address
            key = id(parameter) if parameter.device.type == "meta" else (parameter.device, parameter.data_ptr())
            if key in seen and parameter.numel():
                continue
            seen.add(key)
            name = f"{path}.{attribute}" if path else attribute
            entries.append(Entry(name, canonical_name(name), module, attribute, logical_shape(module, attribute)))
    twice = [name for name, count in Counter(entry.canonical for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"two parameters share the canonical name {twice[0]!r}.")
    return entries


def logical_shape(module: nn.Module, attribute: str) -> tuple[int, ...]:
    """Return the shape a parameter computes with: a 4-bit layer stores two weights a byte in one long column."""
    if isinstance(module, nn.Linear) and attribute == "weight":
        return module.out_features, module.in_features
    return tuple(module._parameters[attribute].shape)
