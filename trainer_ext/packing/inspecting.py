"""What a checkpoint is, layer by layer, for `frankenlm pack --inspect`; no model is loaded, weights are read in parts.

Kinds of layers: "tensor", "row" and "group-128" are ternary with a scale for each of those, "int8" has a byte a weight,
"dense" neither.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from frankenlm.modeling.bitnet_conversion import layer_from_bitnet
from frankenlm.modeling.group_scales import group_scale_shape
from frankenlm.modeling.packed_operators import PackedModule
from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.modeling.ternary import packed_shape, unpack_ternary

from .plan import LayerPlan
from .stored import TensorStore, look_at
from .ternary_values import NotTernaryError, TernaryWeight

DENSE, INT8 = "dense", "int8"
KEPT, REFUSED, PACKED = "stays dense", "refused", "packed"
MOST_REASONS = 3


@dataclass(frozen=True)
class InspectedLayer:
    """A linear layer or table: its kind, the share of its weights that are 0, and what pack does with it.

    bytes: of its weight as stored; packed_bytes: after packing. reason: why it is not ternary.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    kind: str
    zeros: float | None
    bytes: int
    packed_bytes: int
    pack: str
    reason: str = ""


def foreign_layers(model: PreTrainedModel, store: TensorStore, plan: LayerPlan) -> Iterator[InspectedLayer]:
    """Yield the layers of a model of another library, in their order."""
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Embedding)) or f"{name}.weight" not in store.tensors:
            continue
        if name in plan.bitnet:
            yield _bitnet_layer(name, layer, store, plan)
            continue
        if type(layer) not in (nn.Linear, nn.Embedding):
            yield _dense(name, store, KEPT)
            continue
        try:
            weight = look_at(store, f"{name}.weight")
        except NotTernaryError as error:
            yield _dense(name, store, REFUSED if name in plan.ternary else KEPT, str(error))
            continue
        taken = name in plan.ternary or name in plan.perhaps
        yield _ternary(name, store, weight, PACKED if taken else KEPT)


def _dense(name: str, store: TensorStore, pack: str, reason: str = "") -> InspectedLayer:
    stored = store.tensors[f"{name}.weight"]
    return InspectedLayer(name, stored.shape, stored.stored, DENSE, None, stored.nbytes, stored.nbytes, pack, reason)


def _ternary(name: str, store: TensorStore, weight: TernaryWeight, pack: str) -> InspectedLayer:
    stored = store.tensors[f"{name}.weight"]
    rows, columns = stored.shape
    packed = packed_size(rows, columns, weight.group_size) if pack == PACKED else stored.nbytes
    zeros = weight.zeros / max(rows * columns, 1)
    return InspectedLayer(name, stored.shape, stored.stored, weight.kind, zeros, stored.nbytes, packed, pack)


def _bitnet_layer(name: str, layer: nn.Linear, store: TensorStore, plan: LayerPlan) -> InspectedLayer:
    stored = store.tensors[f"{name}.weight"]
    scale = store.read(f"{name}.weight_scale") if plan.bitnet[name] else None
    shape = (layer.out_features, layer.in_features)
    try:
        tensors = layer_from_bitnet(store.read(f"{name}.weight"), scale, plan.linear_class)
        codes = unpack_ternary(tensors["weight"], *shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    size = packed_size(*shape, None)
    return InspectedLayer(name, shape, stored.stored, "tensor", _zeros(codes), stored.nbytes, size, PACKED)


def our_layers(model: PreTrainedModel, store: TensorStore) -> Iterator[InspectedLayer]:
    """Yield the layers of a model of frankenlm that is not packed: what its quantisers make of the weights."""
    for name, layer in model.named_modules():
        if f"{name}.weight" not in store.tensors or not isinstance(layer, (nn.Linear, nn.Embedding)):
            continue
        if not hasattr(layer, "empty_packed"):
            yield _dense(name, store, KEPT)
            continue
        stored = store.tensors[f"{name}.weight"]
        filled = copy.deepcopy(layer)
        filled.load_state_dict(
            {part: store.read(f"{name}.{part}") for part in layer.state_dict()}, strict=False, assign=True
        )
        packed = filled.pack()
        kind = layer.scale_axis if layer.group_size is None else f"group-{layer.group_size}"
        size = packed_size(*stored.shape, layer.group_size)
        zeros = _zeros(packed.codes())
        yield InspectedLayer(name, stored.shape, stored.stored, kind, zeros, stored.nbytes, size, PACKED)


def packed_model_layers(model: PreTrainedModel, store: TensorStore) -> Iterator[InspectedLayer]:
    """Yield the layers of a packed checkpoint; `model` has packed layers without memory."""
    packed = dict(packed_layers(model))
    for name, layer in model.named_modules():
        if f"{name}.weight" not in store.tensors:
            continue
        if name in packed:
            yield _packed_layer(name, packed[name], store)
        elif isinstance(layer, (nn.Linear, nn.Embedding)):
            yield _dense(name, store, KEPT)


def _packed_layer(name: str, layer: PackedModule, store: TensorStore) -> InspectedLayer:
    stored = store.tensors[f"{name}.weight"]
    size = stored.nbytes + store.tensors[f"{name}.weight_scale"].nbytes
    if layer.weight_bits != 2:
        return InspectedLayer(name, stored.shape, stored.stored, INT8, None, size, size, KEPT)
    table = hasattr(layer, "num_embeddings")
    shape = (layer.num_embeddings, layer.embedding_dim) if table else (layer.out_features, layer.in_features)
    codes = unpack_ternary(store.read(f"{name}.weight"), *shape)
    scale = store.read(f"{name}.weight_scale")
    kind = f"group-{layer.group_size}" if layer.group_size else "tensor" if (scale == scale[:1]).all() else "row"
    return InspectedLayer(name, shape, "2 bits", kind, _zeros(codes), size, size, PACKED)


def packed_size(rows: int, columns: int, group_size: int | None) -> int:
    """Return the bytes of a packed weight and its scales."""
    scales = 4 * rows if group_size is None else 2 * torch.Size(group_scale_shape(rows, columns, group_size)).numel()
    return torch.Size(packed_shape(rows, columns)).numel() + scales


def _zeros(codes: torch.Tensor) -> float:
    return (codes == 0).sum().item() / max(codes.numel(), 1)


def summary(layers: list[InspectedLayer], stored_bytes: int) -> dict[str, Any]:
    """Return the facts for --json: layers by kind, sizes, what pack would do."""
    refused = [layer for layer in layers if layer.pack == REFUSED]
    other = stored_bytes - sum(layer.bytes for layer in layers)
    return {
        "kinds": {kind: _of_kind([layer for layer in layers if layer.kind == kind]) for kind in _kinds(layers)},
        "layers": [asdict(layer) for layer in layers],
        "weight_bytes": stored_bytes,
        "other_bytes": other,
        "packed_bytes": other + sum(layer.packed_bytes for layer in layers),
        "refused": [layer.name for layer in refused],
    }


def _kinds(layers: list[InspectedLayer]) -> list[str]:
    return [kind for kind, _ in Counter(layer.kind for layer in layers).most_common()]


def _of_kind(layers: list[InspectedLayer]) -> dict[str, Any]:
    weights = sum(torch.Size(layer.shape).numel() for layer in layers)
    zeros = [layer.zeros * torch.Size(layer.shape).numel() for layer in layers if layer.zeros is not None]
    return {
        "layers": len(layers),
        "weights": weights,
        "bytes": sum(layer.bytes for layer in layers),
        "packed_bytes": sum(layer.packed_bytes for layer in layers),
        "zeros": sum(zeros) / max(weights, 1) if zeros else None,
        "stored": dict(Counter(layer.stored for layer in layers)),
    }


def text(facts: dict[str, Any]) -> str:
    """Return the report for people: what it is, a line for each kind of layer, and what pack would do."""
    lines = [
        f"{facts['model']}: {facts['format']}, {facts['architecture']} ({facts['model_type']})",
        f"{facts['files']} files, {facts['weight_bytes']:,} bytes of weights",
        "",
        f"{'layers':<12}{'number':>8}{'weights':>18}{'zeros':>8}{'bytes':>16}{'packed':>16}  stored as",
    ]
    for kind, each in facts["kinds"].items():
        zeros = "" if each["zeros"] is None else f"{100 * each['zeros']:.1f} %"
        stored = ", ".join(each["stored"])
        lines.append(
            f"{kind:<12}{each['layers']:>8}{each['weights']:>18,}{zeros:>8}{each['bytes']:>16,}"
            f"{each['packed_bytes']:>16,}  {stored}"
        )
    lines.append(f"{'others':<12}{'':>8}{'':>18}{'':>8}{facts['other_bytes']:>16,}{facts['other_bytes']:>16,}")
    return "\n".join([*lines, "", *_verdict(facts)])


def _verdict(facts: dict[str, Any]) -> list[str]:
    refused = facts["refused"]
    if facts["is_packed"]:
        return ["packed already"]
    if not refused:
        return [f"pack: {facts['packed_bytes']:,} bytes, {facts['packed_bytes'] / facts['weight_bytes']:.0%} of them"]
    reasons = [layer["reason"] for layer in facts["layers"] if layer["pack"] == REFUSED][:MOST_REASONS]
    return [
        f"pack: refused, {len(refused)} linear layers are not ternary; --modules_to_not_convert leaves those it names "
        "dense:",
        *reasons,
        *(["..."] if len(refused) > MOST_REASONS else []),
    ]
