"""Packing a model of frankenlm a layer at a time: each ternary layer packs itself, its weights alone in memory."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from frankenlm.modeling.int8_layers import quantize_rows
from frankenlm.modeling.packed_model import TERNARY, empty_layers, end_ternary_ties, tied_layers
from frankenlm.modeling.quantizer_ternary import packed_layers
from frankenlm.modeling.ternary_config import TernaryConfig

from ..common.opening import WEIGHTS, check_unused
from .stored import TensorStore, parts
from .writing import SHARD_BYTES, ShardWriter

Output = tuple[str, torch.dtype, tuple[int, ...], Iterator[torch.Tensor]]


class OwnLayers:
    """Reads the tensors of a model of frankenlm in order and yields what becomes of them.

    Args:
        model: without memory (meta tensors). store: its tensors, under its names. config: what is packed.
    """

    def __init__(self, model: PreTrainedModel, store: TensorStore, config: TernaryConfig):
        self._model, self._store = model, store
        self._source_of = dict(tied_layers(model))
        self._twin_of = {source: target for target, source in self._source_of.items()}
        places = config.find_places(model)
        self._kinds = {place.name: place.kind for place in places}
        self._layers = {place.name: place.layer for place in places}

    def check(self, wanted: dict[str, torch.Tensor]) -> None:
        """Check that the checkpoint holds what the model needs, in its shapes, and not mostly something else.

        Raises:
            ValueError: it does not; the message names the tensor.
        """
        for name, tensor in wanted.items():
            stored = self._store.tensors.get(self._stored(name))
            if stored is None:
                raise ValueError(f"the checkpoint lacks {name}.")
            if stored.shape != tuple(tensor.shape):
                raise ValueError(
                    f"{name} is {stored.shape} in the checkpoint; its configuration asks for {tuple(tensor.shape)}."
                )
        unused = sorted(self._store.tensors.keys() - wanted.keys())
        check_unused(unused, len(self._store.tensors), "the checkpoint")

    def outputs(self, name: str) -> Iterator[Output]:
        """Yield (name, dtype, shape, parts) of the tensors that become of one of the model's.

        Raises:
            ValueError: it is damaged; the message names it.
        """
        layer, _, part = name.rpartition(".")
        if self._kinds.get(layer) == TERNARY:
            if part == "weight":
                yield from self._packed(layer)
        elif layer in self._kinds:
            yield from self._int8(layer, part)
        elif not (part == "weight" and self._is_shared(layer)):
            stored = self._stored(name)
            first = self._store.rows(stored, 0, 1) if len(self._store.tensors[stored].shape) == 2 else None
            dtype = self._store.read(stored).dtype if first is None else first.dtype
            yield name, dtype, self._store.tensors[stored].shape, self._checked(stored)

    def _is_shared(self, layer: str) -> bool:
        """Whether a layer's dense weight is written with the one that it shares."""
        source = self._source_of.get(layer)
        return source is not None and self._kinds.get(source) != TERNARY

    def _stored(self, name: str) -> str:
        """Of a weight that two layers share, whichever name the checkpoint has."""
        if name in self._store.tensors:
            return name
        layer, _, part = name.rpartition(".")
        twin = self._source_of.get(layer) or self._twin_of.get(layer)
        return name if twin is None or part != "weight" else f"{twin}.weight"

    def _checked(self, stored: str) -> Iterator[torch.Tensor]:
        for tensor in parts(self._store, stored):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{stored} holds NaN or infinity: it is damaged, or its training broke down.")
            yield tensor

    def _packed(self, layer: str) -> Iterator[Output]:
        filled = copy.deepcopy(self._layers[layer])
        names = {part: self._stored(f"{layer}.{part}") for part in filled.state_dict()}
        for stored in names.values():
            if not self._store.read(stored).isfinite().all():
                raise ValueError(f"{stored} holds NaN or infinity: it is damaged, or its training broke down.")
        filled.load_state_dict({part: self._store.read(stored) for part, stored in names.items()}, assign=True)
        for part, tensor in filled.pack().state_dict().items():
            yield f"{layer}.{part}", tensor.dtype, tuple(tensor.shape), iter([tensor])

    def _int8(self, layer: str, part: str) -> Iterator[Output]:
        if part == "bias":
            bias = self._store.read(f"{layer}.bias").float()
            yield f"{layer}.bias", bias.dtype, tuple(bias.shape), iter([bias])
        elif part == "weight" and not self._is_shared(layer):
            scales: list[torch.Tensor] = []
            stored = self._stored(f"{layer}.weight")

            def codes() -> Iterator[torch.Tensor]:
                for rows in self._checked(stored):
                    rounded, scale = quantize_rows(rows)
                    scales.append(scale)
                    yield rounded

            yield f"{layer}.weight", torch.int8, self._store.tensors[stored].shape, codes()
            for name in filter(None, (layer, self._twin_of.get(layer))):
                scale = torch.cat(scales)
                yield f"{name}.weight_scale", scale.dtype, tuple(scale.shape), iter([scale])


def write_own(
    empty: PreTrainedModel, store: TensorStore, config: TernaryConfig, folder: Path, generation: GenerationConfig | None
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Write a packed checkpoint of a model of frankenlm, with its code, and without its tokenizer.

    Args:
        empty: its model without memory, which becomes the packed one. generation: the checkpoint's own, if it has one.

    Returns:
        The packed model without memory, and the bytes of every tensor in its files.

    Raises:
        ValueError: a tensor that is damaged; the message names it.
    """
    layers = OwnLayers(empty, store, config)
    wanted = empty.state_dict()
    layers.check(wanted)
    names = [f"{name}{suffix}" for name in wanted for suffix in ("", "_scale")]
    sizes: dict[str, int] = {}
    partial = folder / "weights"
    partial.mkdir()
    with ShardWriter(partial, names, SHARD_BYTES) as writer:
        for name in wanted:
            for output, dtype, shape, tensors in layers.outputs(name):
                writer.add(output, dtype, shape, tensors)
                sizes[output] = dtype.itemsize * torch.Size(shape).numel()
    _save_around(empty, config, folder, generation)
    (folder / WEIGHTS).unlink()
    for file in list(partial.iterdir()):
        file.replace(folder / file.name)
    partial.rmdir()
    return empty, sizes


def _save_around(model: nn.Module, config: TernaryConfig, folder: Path, generation: GenerationConfig | None) -> None:
    """Write configuration and code as `save_pretrained` does, with one number for weights."""
    places = config.find_places(model)
    empty_layers(model, places)
    end_ternary_ties(model, places)
    model.to(model.config.dtype or torch.float32)
    if generation is not None:
        model.generation_config = generation
    config.note_groups(layer.group_size for _, layer in packed_layers(model) if layer.weight_bits == 2)
    model.config.quantization_config = config
    model.save_pretrained(folder, state_dict={"none": torch.zeros(1)})
