"""Opening a model of another library for packing: a folder or hub name with safetensors files, or a GGUF file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from frankenlm.modeling.packed_model import check_places, empty_layers, output_layer
from frankenlm.modeling.ternary_config import TernaryConfig

from ..common.cli import UserError
from ..common.opening import INDEX, WEIGHTS, location, reading
from .converting import Converter
from .gguf_header import GgufHeader, read_header
from .gguf_model import BITNETS, TIED_BITNET, check_gguf_package, check_not_rotated, gguf_config
from .gguf_store import GgufStore
from .plan import LayerPlan, check_tensors, plan_layers, under_model_names
from .stored import SafetensorsStore, TensorStore
from .writing import SHARD_BYTES

GGUF_SUFFIX = ".gguf"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class PackingOptions:
    """What of a model is packed; see `TernaryConfig`. `to` is the format of the output."""

    int8_embeddings: bool = False
    int8_head: bool = False
    modules_to_not_convert: tuple[str, ...] = ()
    to: str = "frankenlm"


@dataclass(frozen=True)
class ForeignModel:
    """A checkpoint that has passed the checks.

    Attributes:
        empty: its model without memory (meta tensors).
        store: its tensors under the model's names. plan: what becomes of them.
        linear_class: of a BitNet of transformers, else None.
        files: its weights. header: of a GGUF file, else None.
    """

    name: str
    config: PreTrainedConfig
    empty: PreTrainedModel
    store: TensorStore
    plan: LayerPlan
    linear_class: str | None
    files: list[Path]
    header: GgufHeader | None = None


def gguf_file(name: str) -> Path | None:
    """Return the GGUF file that a name means: a path, the only one in a folder, or USER/MODEL/FILE.gguf on the hub.

    Raises:
        UserError: it is not there, or a folder has several.
    """
    try:
        path = Path(location(name))
        is_folder = path.is_dir() and bool(name.strip())
    except (OSError, RuntimeError):  # too long a name, a home folder of nobody: said where a model's name is checked
        return None
    if is_folder:
        return None if (path / "config.json").is_file() else _only_gguf(name, path)
    if path.suffix.lower() != GGUF_SUFFIX:
        return None
    if path.is_file():
        return path
    if name.count("/") != 2 or name.startswith((".", "/", "~")):
        raise UserError(f"--model {name}: no such file.")
    repository, _, file = name.rpartition("/")
    with reading(f"--model {name}", "GGUF file"):
        return Path(cached_file(repository, file))


def _only_gguf(name: str, folder: Path) -> Path | None:
    files = [
        file for file in sorted(folder.glob(f"*{GGUF_SUFFIX}")) if "-of-" not in file.name or "-00001-of-" in file.name
    ]
    if len(files) > 1:
        raise UserError(f"--model {name}: holds {len(files)} GGUF files; name one, such as {files[0].name}.")
    return files[0] if files else None


def open_gguf(name: str, file: Path, options: PackingOptions) -> ForeignModel:
    """Read the header of a GGUF file and check, before its weights are read, that it can be packed.

    Raises:
        UserError: it cannot.
    """
    check_gguf_package(f"--model {name}")
    with reading(f"--model {name}", "GGUF file"):
        header = read_header(file)
        check_not_rotated(header)
        config = gguf_config(header)
        config.dtype = torch.bfloat16
        empty = _build(config)
        architecture = TIED_BITNET if header.architecture in BITNETS else header.architecture
        store = GgufStore(header, empty, architecture)
        files = sorted({tensor.path for tensor in header.tensors.values()})
    plan = _planned(name, empty, store, {}, options)
    return ForeignModel(name, config, empty, store, plan, None, files, header)


def open_checkpoint(
    name: str, config: PreTrainedConfig, bitnet: dict[str, Any], options: PackingOptions
) -> ForeignModel:
    """Check, before its weights are read, that a checkpoint of transformers can be packed.

    Args:
        bitnet: its quantization_config where it is a BitNet, else {}.

    Raises:
        UserError: it cannot.
    """
    with reading(f"--model {name}", "weights"):
        empty = _build(config)
        files = weight_files(name)
        store = under_model_names(SafetensorsStore(files), empty)
    plan = _planned(name, empty, store, bitnet, options)
    return ForeignModel(name, config, empty, store, plan, plan.linear_class if bitnet else None, files)


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _planned(
    name: str, empty: PreTrainedModel, store: TensorStore, bitnet: dict[str, Any], options: PackingOptions
) -> LayerPlan:
    int8 = {"int8_embeddings": options.int8_embeddings, "int8_head": options.int8_head}
    head = output_layer(empty)
    ends = [part for part, layer in empty.named_modules(remove_duplicate=False) if layer is head]
    try:
        plan = plan_layers(empty, store, bitnet, **int8, left=options.modules_to_not_convert)
        check_places(empty, TernaryConfig(**int8, modules_to_not_convert=ends, plain_layers=True).find_places(empty))
        check_tensors(empty, store, plan)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error
    return plan


def write_packed(model: ForeignModel, folder: Path, options: PackingOptions) -> tuple[PreTrainedModel, dict[str, int]]:
    """Write the packed checkpoint without its tokenizer.

    Returns:
        The packed model without memory, and the bytes of every tensor in its files.

    Raises:
        UserError: a layer that is not ternary, or a tensor that is damaged; the message names it.
    """
    converter = Converter(model.empty, model.store, model.plan)
    try:
        sizes = converter.write(folder, SHARD_BYTES)
    except ValueError as error:
        raise UserError(f"--model {model.name}: {error}") from error
    config = converter.config(options.int8_embeddings, options.int8_head, model.linear_class)
    packed = _build(model.config)
    empty_layers(packed, config.find_places(packed))
    packed.config.quantization_config = config
    packed.config.architectures = [type(packed).__name__]
    packed.config.save_pretrained(folder)
    generation = saved_generation_config(model.name) if model.header is None else None
    (generation or packed.generation_config).save_pretrained(folder)
    return packed, sizes


def saved_generation_config(name: str) -> GenerationConfig | None:
    """Return what a checkpoint says of generation, which its configuration knows nothing of; None where it does not."""
    if cached_file(location(name), GENERATION, _raise_exceptions_for_missing_entries=False) is None:
        return None
    return GenerationConfig.from_pretrained(location(name))


def weight_files(name: str) -> list[Path]:
    """Return the safetensors files of a checkpoint, by folder or hub name.

    Raises:
        OSError: it has none, or one of its shards is missing.
    """
    name = location(name)
    whole = cached_file(name, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    if whole is not None:
        return [Path(whole)]
    index = json.loads(Path(cached_file(name, INDEX)).read_text(encoding="utf-8"))
    return [Path(cached_file(name, file)) for file in sorted(set(index["weight_map"].values()))]
