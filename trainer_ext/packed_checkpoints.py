"""From a checkpoint with ternary layers to a packed one, and to and from transformers' BitNet checkpoints."""

import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import cached_file

import frankenlm.modeling
from frankenlm.modeling.bitnet_conversion import state_from_bitnet, state_to_bitnet
from frankenlm.modeling.int8_layers import quantize_rows
from frankenlm.modeling.packed_model import INT8, check_places, empty_layers
from frankenlm.modeling.quantizer_ternary import (
    QUANT_METHOD,
    TernaryConfig,
    adopt,
    check_packable_model,
    pack_model,
    packed_layers,
)

from .cards import library_versions
from .common.cli import UserError, check_output_dir
from .common.files import write_json, write_text
from .common.flags import BITNET, FRANKENLM
from .common.logs import waiting
from .common.opening import INDEX, WEIGHTS, check_runs, location, read_config, read_tokenizer, read_weights, reading
from .common.redaction import public_name

logger = logging.getLogger("frankenlm.pack")

REPORT = "packing.json"


@dataclass(frozen=True)
class PackingOptions:
    """What of a model is packed; see `TernaryConfig`. `to` is the format of the output."""

    int8_embeddings: bool = False
    int8_head: bool = False
    modules_to_not_convert: tuple[str, ...] = ()
    to: str = FRANKENLM


@dataclass(frozen=True)
class TernarySource:
    """A checkpoint that has passed the checks; `empty` is its model without memory (meta tensors)."""

    name: str
    config: PreTrainedConfig
    empty: PreTrainedModel
    bitnet: dict[str, Any] = field(default_factory=dict)


def open_source(name: str, options: PackingOptions) -> TernarySource:
    """Read a checkpoint's configuration and check, before its weights are loaded, that it can be converted.

    Raises:
        UserError: no such model, of another family, packed already, or nothing in it can be packed as asked.
    """
    config = read_config(name)
    quantization = dict(getattr(config, "quantization_config", None) or {})
    method = quantization.get("quant_method")
    if options.to == BITNET:
        return _check_to_bitnet(name, config, quantization)
    if method == QUANT_METHOD:
        raise UserError(f"--model {name}: is packed already.")
    if method == BITNET:
        return _check_from_bitnet(name, config, quantization, options)
    if method is not None:
        raise UserError(f"--model {name}: is quantized by {method!r}; only ternary layers can be packed.")
    return _check_ours(name, config, options)


def _check_ours(name: str, config: PreTrainedConfig, options: PackingOptions) -> TernarySource:
    architecture = (config.architectures or [""])[0]
    if not type(config).__module__.startswith("frankenlm.") or not hasattr(frankenlm.modeling, architecture):
        raise UserError(
            f"--model {name}: is a {architecture or config.model_type}; only models of frankenlm, and transformers' "
            "BitNet checkpoints, can be packed."
        )
    empty = _build_empty(getattr(frankenlm.modeling, architecture), name, config)
    try:
        check_packable_model(empty, options.int8_embeddings, options.int8_head, options.modules_to_not_convert)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error
    return TernarySource(name, config, empty)


def _check_from_bitnet(name: str, config: PreTrainedConfig, bitnet: dict, options: PackingOptions) -> TernarySource:
    if bitnet.get("use_rms_norm"):
        raise UserError(
            f"--model {name}: use_rms_norm=True puts a trained norm into each layer, which packed layers do not have."
        )
    if options.modules_to_not_convert:
        raise UserError("--modules_to_not_convert: a BitNet checkpoint says by itself which layers are ternary.")
    del config.quantization_config
    return TernarySource(name, config, _build_empty(AutoModelForCausalLM.from_config, name, config), bitnet)


def _check_to_bitnet(name: str, config: PreTrainedConfig, quantization: dict) -> TernarySource:
    if quantization.get("quant_method") != QUANT_METHOD or not quantization["bitnet_linear_class"]:
        raise UserError(
            f"--model {name}: --to bitnet takes back what this command made of a BitNet checkpoint; models of "
            "frankenlm normalise the inputs of their layers, which transformers' BitLinear does not."
        )
    if quantization["int8_embeddings"] or quantization["int8_head"]:
        raise UserError(f"--model {name}: --to bitnet has no int8 tables or heads; convert one packed without them.")
    return TernarySource(name, config, _build_empty(AutoModelForCausalLM.from_config, name, config))


def _build_empty(build: Callable[[PreTrainedConfig], PreTrainedModel], name: str, config: PreTrainedConfig):
    """Return the model on the meta device, without memory.

    Raises:
        UserError: its configuration describes no model.
    """
    with reading(f"--model {name}", "config.json"), torch.device("meta"):
        return build(config)


def check_new_folder(output: str) -> None:
    """Make sure that the output can be written and that nothing lies there.

    Raises:
        UserError: the folder holds something, or cannot be made or written.
    """
    folder = Path(output)
    try:
        taken = os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"--output {output}: cannot be read: {error.strerror}.") from error
    if taken:
        raise UserError(f"--output {output}: exists already; name a new folder.")
    check_output_dir(output)


def pack_checkpoint(source: TernarySource, output: Path, options: PackingOptions) -> dict[str, Any]:
    """Write the converted checkpoint with tokenizer, code, card and packing.json; return the facts of the last.

    Raises:
        ValueError, OSError: weights that are missing, damaged or cannot be packed; the message names the layer.
    """
    tokenizer = _find_tokenizer(source.name)
    with reading(f"--model {source.name}", "weights"):
        model = _convert(source, options)
    with new_folder(output) as scratch, waiting("writing the packed weights"):
        if options.to == BITNET:
            facts = _write_bitnet(model, source, scratch)
        else:
            model.save_pretrained(scratch)
            facts = packing_facts(model, source, scratch, options)
        facts["tokenizer"] = tokenizer is not None
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        write_json(scratch / REPORT, facts)
        write_text(scratch / "README.md", packing_card(facts))
    return facts


def _convert(source: TernarySource, options: PackingOptions) -> PreTrainedModel:
    """Return the packed model; of one that goes back to BitNet, the model as it was packed."""
    if options.to == BITNET:
        return read_weights(type(source.empty), source.name, source.config)
    if not source.bitnet:
        return _from_ours(source, options)
    with waiting("packing"):
        return _from_bitnet(source, options)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` to write to; it becomes `folder` at the end, or goes when an error is raised."""
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{secrets.token_hex(8)}"
    try:
        scratch.mkdir()
        yield scratch
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                parent.rmdir()
        raise


def _from_ours(source: TernarySource, options: PackingOptions) -> PreTrainedModel:
    model = read_weights(type(source.empty), source.name, source.config)
    check_runs(model, source.name)
    with waiting("packing"):
        return pack_model(
            model,
            int8_embeddings=options.int8_embeddings,
            int8_head=options.int8_head,
            modules_to_not_convert=options.modules_to_not_convert,
        )


def _from_bitnet(source: TernarySource, options: PackingOptions) -> PreTrainedModel:
    """Fill packed layers with a BitNet checkpoint's tensors; the model can be saved, not run."""
    state = read_tensors(source.name)
    linear = [name for name, layer in source.empty.named_modules() if type(layer) is torch.nn.Linear]
    layers = [name for name in linear if f"{name}.weight_scale" in state]
    if source.bitnet.get("quantization_mode") == "online":
        layers = _online_layers(source, linear)
    linear_class = source.bitnet.get("linear_class", "bitlinear")
    kept = [name for name in linear if name not in layers]
    config = TernaryConfig(options.int8_embeddings, options.int8_head, kept, linear_class)
    places = config.find_places(source.empty)
    check_places(source.empty, places)
    state = state_from_bitnet(state, layers, linear_class)
    for place in places:
        if place.kind == INT8:
            _round_table(state, place.name, source.empty)
    empty_layers(source.empty, places)
    missing, unexpected = source.empty.load_state_dict(state, strict=False, assign=True)
    wrong = [name for name in missing if name not in source.empty.all_tied_weights_keys] + unexpected
    if wrong:
        raise ValueError(
            f"{source.name}: tensors that are missing, or that the model has no place for: {', '.join(wrong)}."
        )
    source.empty.tie_weights()
    return adopt(source.empty, config)


def _online_layers(source: TernarySource, linear: list[str]) -> list[str]:
    """The layers that transformers would quantise at every call, chosen by its own rules."""
    kept = BitNetHfQuantizer.get_modules_to_not_convert(
        source.empty, source.bitnet.get("modules_to_not_convert"), source.empty._keep_in_fp32_modules
    )
    return [name for name in linear if should_convert_module(name, kept)]


def _round_table(state: dict[str, torch.Tensor], name: str, model: PreTrainedModel) -> None:
    """Round one table of a state dict to int8; a tied one has its integers from its twin, and a scale of its own."""
    key = f"{name}.weight"
    source = key if key in state else model.all_tied_weights_keys[key]
    if state[source].dtype != torch.int8:
        state[source], state[f"{name}.weight_scale"] = quantize_rows(state[source])
    else:
        state[f"{name}.weight_scale"] = state[source.replace(".weight", ".weight_scale")].clone()


def _write_bitnet(model: PreTrainedModel, source: TernarySource, output: Path) -> dict[str, Any]:
    layers = {name: (layer.out_features, layer.in_features) for name, layer in packed_layers(model)}
    packing = model.config.quantization_config
    state = state_to_bitnet(model.state_dict(), layers, packing.bitnet_linear_class, model.dtype)
    model.hf_quantizer.remove_quantization_config(model)
    model.config.quantization_config = {
        "quant_method": BITNET,
        "linear_class": packing.bitnet_linear_class,
        "quantization_mode": "offline",
        "modules_to_not_convert": packing.modules_to_not_convert,
    }
    model.save_pretrained(output, state_dict=state)
    return {
        "model": public_name(source.name),
        "architecture": type(model).__name__,
        "format": BITNET,
        "ternary_layers": len(layers),
        "file_bytes": weight_bytes(output),
        "versions": library_versions(),
    }


def read_tensors(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's safetensors files, by folder or hub name.

    Raises:
        OSError: it has none.
    """
    tensors = {}
    for file in weight_files(name):
        with safe_open(file, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a mapping
    return tensors


def weight_files(name: str) -> list[Path]:
    """Return the safetensors files of a checkpoint."""
    name = location(name)
    whole = cached_file(name, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    if whole is not None:
        return [Path(whole)]
    index = json.loads(Path(cached_file(name, INDEX)).read_text(encoding="utf-8"))
    return [Path(cached_file(name, file)) for file in sorted(set(index["weight_map"].values()))]


def weight_bytes(folder: Path) -> int:
    """Return the size of a folder's safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def packing_facts(
    model: PreTrainedModel, source: TernarySource, output: Path, options: PackingOptions
) -> dict[str, Any]:
    """What packing.json tells: counts, sizes and bits a weight, of the tensors as they lie in the file."""
    layers = packed_layers(model)
    ternary = [layer for _, layer in layers if layer.weight_bits == 2]
    int8 = [layer for _, layer in layers if layer.weight_bits == 8]
    tiles = _bytes(tensor for layer in ternary for tensor in (layer.weight, layer.weight_scale))
    tables = _bytes(tensor for layer in int8 for tensor in (layer.weight, layer.weight_scale))
    everything = _bytes(tensor for _, tensor in model.state_dict().items())
    weights = sum(layer.num_weights for layer in ternary)
    return {
        "model": public_name(source.name),
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "format": FRANKENLM,
        "int8_embeddings": options.int8_embeddings,
        "int8_head": options.int8_head,
        "ternary_layers": len(ternary),
        "ternary_weights": weights,
        "ternary_bytes": tiles,
        "bits_per_ternary_weight": 8 * tiles / weights,
        "int8_bytes": tables,
        "other_bytes": everything - tiles - tables,
        "file_bytes": weight_bytes(output),
        "unpacked_file_bytes": sum(file.stat().st_size for file in weight_files(source.name)),
        "needs_frankenlm": bool(source.bitnet),
        "versions": library_versions(),
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct tensors; one that is tied counts once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _find_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Return the checkpoint's tokenizer, to be saved with the output; say so where it has none."""
    if cached_file(location(name), "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is None:
        logger.warning("%s has no tokenizer; the packed checkpoint has none either.", name)
        return None
    return read_tokenizer(name)


def packing_card(facts: dict[str, Any]) -> str:
    """Return the model card (README.md) of a converted checkpoint."""
    front = "---\nlibrary_name: transformers\ntags:\n- frankenlm\n- ternary\n---\n"
    title = f"# {facts['model'].rpartition('/')[2]}, packed\n"
    if facts["format"] == BITNET:
        return f"{front}\n{title}\nConverted from `{facts['model']}` to transformers' BitNet format.\n"
    if facts["needs_frankenlm"]:
        needs = "import frankenlm.modeling  # registers the quantizer"
    else:
        needs = "import frankenlm.modeling  # without frankenlm pass trust_remote_code=True below"
    rows = [
        ("ternary weights", f"{facts['ternary_weights']:,} in {facts['ternary_layers']} layers"),
        ("bits per ternary weight, scales included", f"{facts['bits_per_ternary_weight']:.3f}"),
        ("int8 tables and heads", f"{facts['int8_bytes']:,} bytes"),
        ("everything else", f"{facts['other_bytes']:,} bytes"),
        ("weights file", f"{facts['file_bytes']:,} bytes ({facts['unpacked_file_bytes']:,} before)"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""{front}
{title}
The ternary weights of `{facts["model"]}` ({facts["architecture"]}) in two bits each; made by `scripts/pack.py`. Layers
stay packed in memory: with frankenlm they run on its operator `ternary_linear`, elsewhere on plain PyTorch, slower.

| | |
|---|---|
{table}

```python
{needs}
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```

For inference: the packed weights cannot be trained.
"""
