"""The tensors of GGUF files, dequantised a few rows at a time, under the names and in the form that transformers has.

What the package `gguf` dequantises is dequantised by it; the other types are in gguf_types.py. llama.cpp's converter
renames tensors and reorders some; transformers undoes both while it loads a file, and here its own rules do the same,
to one tensor at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from .gguf_header import GgufHeader, GgufTensor
from .gguf_types import i2_s_values
from .stored import StoredTensor

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Change = Callable[[torch.Tensor], torch.Tensor]
FREQUENCIES = "rope_freqs.weight"
LARGE = 1 << 20  # values


class GgufStore:
    """A TensorStore of GGUF files for a model of transformers.

    Args:
        header: of the files.
        model: without memory (meta tensors).
        architecture: by whose rules transformers names and orders the tensors.

    Raises:
        ValueError: a tensor that the model has no place for.
    """

    def __init__(self, header: GgufHeader, model: PreTrainedModel, architecture: str):
        _check_frequencies(header)
        self._header = header
        self._sources: dict[str, GgufTensor] = {}
        self._changes: dict[str, Change | None] = {}
        for stored, (name, change) in _places(header, model, architecture).items():
            self._sources[name], self._changes[name] = header.tensors[stored], change
        self.tensors: Mapping[str, StoredTensor] = {
            name: StoredTensor(_changed_shape(source.shape, self._changes[name]), source.type_name, source.nbytes)
            for name, source in self._sources.items()
        }
        self._last: tuple[str, torch.Tensor] | None = None  # a tensor that had to be read whole

    def read(self, name: str) -> torch.Tensor:
        """As in TensorStore: floats as they are stored, else float32."""
        source, change = self._sources[name], self._changes[name]
        values = _values(source, 0, source.shape[0] if source.shape else 1)
        values = values if change is None else change(values)
        scale = self._header.tensors.get(source.name.removesuffix("weight") + "scale")
        if scale is not None and source.name.endswith(".weight"):
            values = values.float() * _values(scale, 0, scale.shape[0])  # llama.cpp multiplies the output by it
        return values

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """As in TensorStore."""
        source = self._sources[name]
        has_scale = source.name.removesuffix("weight") + "scale" in self._header.tensors
        if self._changes[name] is None and source.type_name != "I2_S" and not has_scale:
            return _values(source, first, last)
        if self._last is None or self._last[0] != name:
            self._last = name, self.read(name)
        part = self._last[1][first:last]
        if last >= source.shape[0]:
            self._last = None
        return part


def _check_frequencies(header: GgufHeader) -> None:
    """Raises ValueError for positions that transformers would not read: factors of the rotation's frequencies."""
    source = header.tensors.get(FREQUENCIES)
    if source is not None and not (_values(source, 0, source.shape[0]) == 1).all():
        raise ValueError(
            f"{FREQUENCIES} holds factors of the rotary frequencies (llama3's scaling), from which no configuration "
            "can be told. Pack the original checkpoint."
        )


def _changed_shape(shape: tuple[int, ...], change: Change | None) -> tuple[int, ...]:
    """Return a shape after a rule; those that change shapes are of tensors that are small."""
    if change is None or prod(shape) > LARGE:
        return shape
    return tuple(change(torch.full(shape, -1.0)).shape)


def _values(source: GgufTensor, first: int, last: int) -> torch.Tensor:
    """Return rows of a tensor as they are stored, before transformers' rules."""
    rows = source.shape[0] if source.shape else 1
    if source.type_name == "I2_S":  # one scale behind the whole
        data = np.fromfile(source.path, np.uint8, source.nbytes, offset=source.offset)
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(i2_s_values(data, source.shape))[first:last]
    each = source.nbytes // max(rows, 1)
    data = np.fromfile(source.path, np.uint8, (last - first) * each, offset=source.offset + first * each)
    shape = (last - first, *source.shape[1:]) if source.shape else ()
    if source.type_name in FLOATS:
        return torch.from_numpy(data).view(FLOATS[source.type_name]).reshape(shape)
    with np.errstate(invalid="ignore", over="ignore"):  # of scales that are no numbers, which are found later
        if source.block is not None:
            values = source.block.values(data.reshape(-1, source.block.bytes))
        else:
            values = _by_gguf(source, data.reshape(last - first, -1))
    return torch.from_numpy(values).reshape(shape)


def _by_gguf(source: GgufTensor, rows: np.ndarray) -> np.ndarray:
    from gguf import GGMLQuantizationType, dequantize

    try:
        return dequantize(rows, GGMLQuantizationType(source.type_id))
    except NotImplementedError as error:
        raise ValueError(f"{source.name} is of type {source.type_name}, which cannot be dequantised.") from error


def _places(header: GgufHeader, model: PreTrainedModel, architecture: str) -> dict[str, tuple[str, Change | None]]:
    """Return for each stored tensor its name in the model and what undoes llama.cpp's changes to it."""
    if is_gguf_arch_supported(architecture):
        known = dict(_by_conversions(header, model, architecture))
    else:
        known = dict(_by_processor(header, model, architecture))
    for name in header.tensors.keys() - known.keys():
        if name != FREQUENCIES and not name.endswith((".scale", ".input_scale")):
            raise ValueError(f"{name}: a {type(model).__name__} has no place for that tensor.")
    return known


def _by_processor(
    header: GgufHeader, model: PreTrainedModel, architecture: str
) -> Iterator[tuple[str, tuple[str, Change | None]]]:
    """The rules of transformers' older loader: a table of names, and a processor that works on numpy arrays."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    model_type = architecture if model.config.model_type == "bitnet" else None
    names = get_gguf_hf_weights_map(model, processor, model_type)
    if model_type is not None:  # gguf knows the names that its first BitNet had
        names |= {_gguf_sub_norm(name): name for name in model.state_dict() if "_sub_norm." in name}
        names.setdefault("output.weight", "lm_head.weight")
    for stored in header.tensors:
        if stored in names:
            change = None if type(processor) is TensorProcessor else _processed(processor, stored)
            if change is not None and _does_nothing(change, header.tensors[stored].shape):
                change = None
            yield stored, (names[stored], change)


def _gguf_sub_norm(name: str) -> str:
    """`model.layers.3.mlp.ffn_sub_norm.weight` is called `blk.3.ffn_sub_norm.weight`."""
    _, _, number, _, norm, part = name.split(".")
    return f"blk.{number}.{norm}.{part}"


def _does_nothing(change: Change, shape: tuple[int, ...]) -> bool:
    """Whether a rule leaves a tensor as it is: one that has other numbers in each row is tried, for it may be large."""
    probe = torch.arange(1.0, 1.0 + shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    try:
        return torch.equal(change(probe), probe)
    except ValueError:  # it wants all of the columns
        return False


def _processed(processor: TensorProcessor, stored: str) -> Change:
    def change(values: torch.Tensor) -> torch.Tensor:
        done = processor.process(weights=values.float().numpy(), name=stored)
        if done.name != stored:
            raise ValueError(f"{stored}: transformers puts it together with others, which cannot be packed.")
        return torch.from_numpy(np.ascontiguousarray(done.weights)).to(values.dtype)

    return change


def _by_conversions(
    header: GgufHeader, model: PreTrainedModel, architecture: str
) -> Iterator[tuple[str, tuple[str, Change | None]]]:
    """The rules of transformers' newer loader: renamings, then conversions of what has certain names."""
    mapping = get_gguf_conversion_mapping(architecture, model.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for stored in header.tensors:
        name, pattern = rename_source_key(stored, renamings, converters)
        change = None if pattern is None else _converted(by_pattern[pattern], name)
        yield stored, (name, change)


def _converted(converter: WeightConverter, name: str) -> Change:
    def change(values: torch.Tensor) -> torch.Tensor:
        found: Any = values
        for operation in converter.operations:
            found = operation.convert({name: found}, source_patterns=[name], target_patterns=[name])[name]
        return found

    return change
