"""A checkpoint of another library into a packed one, a tensor at a time."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from frankenlm.modeling.bitnet_conversion import bias_from_bitnet, layer_from_bitnet
from frankenlm.modeling.group_scales import pack_group_scales
from frankenlm.modeling.int8_layers import quantize_rows
from frankenlm.modeling.packed_model import tied_layers
from frankenlm.modeling.ternary_config import SCALE_DTYPES, TernaryConfig

from .plan import LayerPlan
from .stored import TensorStore, look_at, parts
from .ternary_values import NotTernaryError, TernaryWeight
from .writing import FORMATS, ShardWriter

logger = logging.getLogger("frankenlm.pack")

COARSEST = 2**-8  # relative rounding of a group's scale that is let pass: bfloat16's


@dataclass
class Converted:
    """What came of the layers.

    Attributes:
        group_sizes: packed layer -> its group size, None for a scale a row.
        kinds: packed layer -> "tensor", "row", "group-128", ...
        dense: linear layers that are not ternary.
        scale_dtype: of the groups' scales, "float16" or "bfloat16", where there are any.
        rounding: the largest relative rounding of a group's scale.
    """

    group_sizes: dict[str, int | None] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    scale_dtype: str | None = None
    rounding: float = 0.0


class Converter:
    """Reads the tensors of a model in order and writes what becomes of them.

    Args:
        model: without memory (meta tensors). store: checked tensors under its names. plan: for its layers.
    """

    def __init__(self, model: PreTrainedModel, store: TensorStore, plan: LayerPlan):
        self._model, self._store, self._plan = model, store, plan
        self._twin_of = {source: target for target, source in tied_layers(model)}
        # of layers with groups, until all are seen and one format is chosen: their names and their scales
        self._group_scales: list[tuple[list[str], torch.Tensor]] = []
        self.done = Converted()

    def write(self, folder: Path, shard_bytes: int) -> dict[str, int]:
        """Write the safetensors files; return the bytes of every tensor in them.

        Raises:
            ValueError: a layer that is not ternary, or a tensor that is damaged; the message names it.
        """
        wanted = self._model.state_dict()
        names = [f"{name}{suffix}" for name in wanted for suffix in ("", "_scale")]
        sizes: dict[str, int] = {}
        total = sum(stored.nbytes for stored in self._store.tensors.values())
        with (
            ShardWriter(folder, names, shard_bytes) as writer,
            tqdm(total=total, unit="B", unit_scale=True, desc="packing", disable=None, leave=False) as bar,
        ):

            def add(output: str, dtype: torch.dtype, shape: tuple[int, ...], tensors: Iterator[torch.Tensor]) -> None:
                writer.add(output, dtype, shape, tensors)
                sizes[output] = dtype.itemsize * torch.Size(shape).numel()

            for name in wanted:
                for output in self._outputs(name):
                    add(*output)
                bar.update(self._store.tensors[name].nbytes if name in self._store.tensors else 0)
            for output in self._packed_group_scales():
                add(*output)
        self._say_what_stayed(sizes)
        if self.done.rounding:
            logger.warning(
                "scales of groups were rounded to %s, by up to 1 in %d.", self.done.scale_dtype, 1 / self.done.rounding
            )
        return sizes

    def _say_what_stayed(self, sizes: dict[str, int]) -> None:
        """Matrices that are no layers of their own, such as experts that lie side by side, are not packed."""
        wanted = self._model.state_dict()
        several = [name for name in sizes if name in wanted and wanted[name].dim() > 2 and min(wanted[name].shape) > 1]
        if several:
            size = sum(sizes[name] for name in several)
            logger.warning(
                "%d tensors of several matrices (%s bytes), such as %s, stay dense.",
                len(several),
                f"{size:,}",
                several[0],
            )

    def config(self, int8_embeddings: bool, int8_head: bool, linear_class: str | None) -> TernaryConfig:
        """Return what config.json has to say, after `write`."""
        sizes = list(self.done.group_sizes.values())
        usual = max(dict.fromkeys(sizes), key=sizes.count)
        table = self._model.get_input_embeddings()
        return TernaryConfig(
            int8_embeddings,
            int8_head,
            self.done.dense,
            linear_class,
            plain_layers=linear_class is None,
            ternary_embeddings=any(self._model.get_submodule(name) is table for name in self.done.group_sizes),
            group_size=usual,
            other_group_sizes={name: size for name, size in self.done.group_sizes.items() if size != usual},
            scale_dtype=self.done.scale_dtype,
        )

    def _outputs(self, name: str) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], Iterator[torch.Tensor]]]:
        """Yield (name, dtype, shape, parts) of the tensors that become of one of the model's."""
        layer, _, part = name.rpartition(".")
        if layer in self._plan.tied and part == "weight":
            self._check_same(name, f"{self._plan.tied[layer]}.weight")
            return  # written with the one that it shares
        packed = layer in self._plan.ternary or layer in self._plan.bitnet
        if part == "weight" and layer in self._plan.int8:
            yield from self._int8(layer)
        elif part == "weight" and (packed or layer in self._plan.perhaps):
            yield from self._ternary(layer)
        elif part == "bias" and layer in self.done.group_sizes:
            yield _whole(name, self._bias(name, layer))
        elif part == "bias" and layer in self._plan.int8:
            yield _whole(name, self._store.read(name).float())
        else:
            yield self._dense(name)

    def _check_same(self, name: str, source: str) -> None:
        """Raises ValueError where two layers share a weight, and the checkpoint has two."""
        if name in self._store.tensors and source in self._store.tensors:
            both = zip(parts(self._store, name), parts(self._store, source), strict=True)
            if not all(torch.equal(one, other) for one, other in both):
                raise ValueError(
                    f"{name} and {source} differ, and tie_word_embeddings=True in the configuration says that they "
                    "are one: set it to false."
                )

    def _stored_name(self, layer: str) -> str:
        """Of a weight that two layers share, whichever name the checkpoint has."""
        name = f"{layer}.weight"
        return name if name in self._store.tensors else f"{self._twin_of[layer]}.weight"

    def _ternary(self, layer: str) -> Iterator:
        try:
            weight = self._look(layer)
        except NotTernaryError as error:
            if layer not in self._plan.perhaps:
                raise NotTernaryError(
                    f"{error} --modules_to_not_convert leaves layers dense, --inspect shows all of them."
                ) from error
            yield self._dense(f"{layer}.weight")
            return
        names = [layer, *self._twins(layer)]
        self.done.group_sizes |= dict.fromkeys(names, weight.group_size)
        self.done.kinds |= dict.fromkeys(names, weight.kind)
        yield _whole(f"{layer}.weight", weight.tiles)
        if weight.group_size is not None:
            self._group_scales.append((names, _narrowed(weight.scale)))
            return
        for name in names:
            yield _whole(f"{name}.weight_scale", weight.scale)

    def _leave(self, layer: str) -> None:
        """Note the linear layers that a weight belongs to as not ternary."""
        for name in (layer, *self._twins(layer)):
            if type(self._model.get_submodule(name)) is nn.Linear:
                self.done.dense.append(name)

    def _twins(self, layer: str) -> list[str]:
        return [self._twin_of[layer]] if layer in self._twin_of else []

    def _look(self, layer: str) -> TernaryWeight:
        if layer not in self._plan.bitnet:
            return look_at(self._store, self._stored_name(layer))
        try:
            offline = self._plan.bitnet[layer]
            scale = self._store.read(f"{layer}.weight_scale") if offline else None
            tensors = layer_from_bitnet(self._store.read(f"{layer}.weight"), scale, self._plan.linear_class)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
        return TernaryWeight(tensors["weight"], tensors["weight_scale"], None, "tensor", 0)

    def _bias(self, name: str, layer: str) -> torch.Tensor:
        bias = self._store.read(name)
        if layer not in self._plan.bitnet:
            return bias.float()
        scale = self._store.read(f"{layer}.weight_scale") if self._plan.bitnet[layer] else None
        return bias_from_bitnet(bias, scale, self._plan.linear_class)

    def _packed_group_scales(self) -> Iterator:
        """In the checkpoint's one format: bfloat16 where it is exact, else the one that rounds the worst less."""
        if not self._group_scales:
            return
        worst = {
            name: max((_rounding(scale.float(), SCALE_DTYPES[name]), layers[0]) for layers, scale in self._group_scales)
            for name in ("bfloat16", "float16")
        }
        coarse, fine = worst["bfloat16"][0], worst["float16"][0]
        chosen = "bfloat16" if coarse == 0 or coarse < fine else "float16"
        self.done.scale_dtype, (self.done.rounding, layer) = chosen, worst[chosen]
        if self.done.rounding > COARSEST:
            scale = next(scale for layers, scale in self._group_scales if layers[0] == layer).float()
            raise ValueError(
                f"{layer}.weight: its scales from {scale[scale > 0].min():g} to {scale.max():g} fit into neither "
                f"bfloat16 nor float16; --modules_to_not_convert {layer} leaves it dense."
            )
        for layers, scale in self._group_scales:
            packed = pack_group_scales(scale.float(), SCALE_DTYPES[chosen])
            for name in layers:
                yield _whole(f"{name}.weight_scale", packed)

    def _int8(self, layer: str) -> Iterator:
        """The codes go to the file as they are made; the scales follow."""
        source, scales = self._stored_name(layer), []
        self._check_not_ternary(layer, source)
        shape = self._store.tensors[source].shape

        def codes() -> Iterator[torch.Tensor]:
            for rows in parts(self._store, source):
                try:
                    rounded, scale = quantize_rows(rows)
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from error
                scales.append(scale)
                yield rounded

        self._leave(layer)  # no ternary layer, that is
        yield f"{layer}.weight", torch.int8, shape, codes()
        for name in (layer, *self._twins(layer)):
            yield _whole(f"{name}.weight_scale", torch.cat(scales))

    def _check_not_ternary(self, layer: str, source: str) -> None:
        """Raises ValueError where a table is ternary, which int8 would take more room for, and round."""
        try:
            look_at(self._store, source)
        except NotTernaryError:
            return
        raise ValueError(
            f"{layer} is ternary and is packed in two bits anyway: leave --int8_embeddings and --int8_head out."
        )

    def _dense(self, name: str) -> tuple:
        """As it is stored, and what a GGUF file holds in blocks as float32: 16 bits would move logits by some 5e-4."""
        layer, _, part = name.rpartition(".")
        source = self._stored_name(layer) if part == "weight" else name
        stored = self._store.tensors[source]
        if part == "weight":
            self._leave(layer)

        kept = {text: dtype for dtype, text in FORMATS.items()}.get(stored.stored)
        dtype = torch.float32 if kept is None else kept

        def checked() -> Iterator[torch.Tensor]:
            for tensor in parts(self._store, source):
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise ValueError(f"{source} ({stored.stored}) holds NaN or infinity.")
                yield tensor.to(dtype)

        return name, dtype, stored.shape, checked()


def _whole(name: str, tensor: torch.Tensor) -> tuple:
    return name, tensor.dtype, tuple(tensor.shape), iter([tensor])


def _narrowed(scale: torch.Tensor) -> torch.Tensor:
    """Return scales in the first format that holds them exactly: those of a whole model wait in memory."""
    formats = (torch.bfloat16, torch.float16)
    return next((scale.to(dtype) for dtype in formats if _rounding(scale, dtype) == 0), scale)


def _rounding(scale: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the largest relative error of scales in a narrower format; infinite where one is beyond it."""
    some = scale[scale > 0]
    return 0.0 if some.numel() == 0 else ((some.to(dtype).float() - some).abs() / some).max().item()
