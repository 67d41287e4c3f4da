"""From a checkpoint with ternary layers to a packed one, and from a packed BitNet back to transformers.

Both are packed tensor by tensor (packing/): models of frankenlm by their own layers, others by a plan.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

import frankenlm.modeling
from frankenlm.modeling.bitnet_conversion import state_to_bitnet
from frankenlm.modeling.quantizer_ternary import check_packable_model, packed_layers
from frankenlm.modeling.ternary_config import QUANT_METHOD, TernaryConfig

from .cards import library_versions
from .common.cli import Interrupted, UserError, check_output_dir
from .common.files import write_json, write_text
from .common.flags import BITNET, FRANKENLM
from .common.logs import waiting
from .common.opening import location, read_config, read_tokenizer, read_weights, reading
from .common.redaction import public_name
from .common.signals import CaughtSignals
from .packing.foreign import (
    ForeignModel,
    PackingOptions,
    gguf_file,
    open_checkpoint,
    open_gguf,
    saved_generation_config,
    weight_files,
    write_packed,
)
from .packing.gguf_model import gguf_tokenizer
from .packing.own import write_own
from .packing.plan import under_model_names
from .packing.stored import SafetensorsStore

logger = logging.getLogger("frankenlm.pack")

REPORT = "packing.json"


@dataclass(frozen=True)
class TernarySource:
    """A checkpoint that has passed the checks; `empty` is its model without memory (meta tensors)."""

    name: str
    config: PreTrainedConfig
    empty: PreTrainedModel
    foreign: ForeignModel | None = None


def open_source(name: str, options: PackingOptions) -> TernarySource:
    """Read a checkpoint's configuration and check, before its weights are loaded, that it can be converted.

    Raises:
        UserError: no such model, packed already, or nothing in it can be packed as asked.
    """
    file = gguf_file(name)
    if file is not None:
        if options.to == BITNET:
            raise UserError(f"--model {name}: --to bitnet takes back what this command made of a BitNet checkpoint.")
        return _foreign(open_gguf(name, file, options))
    config = read_config(name)
    quantization = dict(getattr(config, "quantization_config", None) or {})
    method = quantization.get("quant_method")
    if options.to == BITNET:
        return _check_to_bitnet(name, config, quantization)
    if method == QUANT_METHOD:
        raise UserError(f"--model {name}: is packed already.")
    if method not in (BITNET, None):
        raise UserError(f"--model {name}: is quantized by {method!r}; only ternary layers can be packed.")
    if type(config).__module__.startswith("frankenlm."):
        return _check_ours(name, config, options)
    if method == BITNET:
        _check_bitnet(name, quantization, options)
        del config.quantization_config
    return _foreign(open_checkpoint(name, config, quantization, options))


def _foreign(model: ForeignModel) -> TernarySource:
    return TernarySource(model.name, model.config, model.empty, model)


def _check_ours(name: str, config: PreTrainedConfig, options: PackingOptions) -> TernarySource:
    architecture = (config.architectures or [""])[0]
    if not hasattr(frankenlm.modeling, architecture):
        raise UserError(f"--model {name}: is a {architecture or config.model_type}, which frankenlm does not have.")
    empty = _build_empty(getattr(frankenlm.modeling, architecture), name, config)
    try:
        check_packable_model(empty, options.int8_embeddings, options.int8_head, options.modules_to_not_convert)
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from error
    return TernarySource(name, config, empty)


def _check_bitnet(name: str, bitnet: dict, options: PackingOptions) -> None:
    if bitnet.get("use_rms_norm"):
        raise UserError(
            f"--model {name}: use_rms_norm=True puts a trained norm into each layer, which packed layers do not have."
        )
    if options.modules_to_not_convert:
        raise UserError("--modules_to_not_convert: a BitNet checkpoint says by itself which layers are ternary.")


def _check_to_bitnet(name: str, config: PreTrainedConfig, quantization: dict) -> TernarySource:
    if quantization.get("quant_method") != QUANT_METHOD or not quantization["bitnet_linear_class"]:
        raise UserError(
            f"--model {name}: --to bitnet takes back what this command made of a BitNet checkpoint; models of "
            "frankenlm normalise the inputs of their layers, which transformers' BitLinear does not."
        )
    if quantization["int8_embeddings"] or quantization["int8_head"]:
        raise UserError(f"--model {name}: --to bitnet has no int8 tables or heads; convert one packed without them.")
    if quantization.get("ternary_embeddings"):
        raise UserError(f"--model {name}: --to bitnet has no ternary token table, which this model has.")
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
    tokenizer = _find_tokenizer(source)
    with new_folder(output) as scratch:
        facts = _write(source, scratch, options)
        facts["tokenizer"] = tokenizer is not None
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        write_json(scratch / REPORT, facts)
        write_text(scratch / "README.md", packing_card(facts))
    return facts


def _write(source: TernarySource, scratch: Path, options: PackingOptions) -> dict[str, Any]:
    """Write weights, configuration and code; return the facts for packing.json."""
    if source.foreign is not None:
        with reading(f"--model {source.name}", "weights"):
            model, sizes = write_packed(source.foreign, scratch, options)
        return packing_facts(model, sizes, source.foreign.files, source, scratch, options)
    if options.to == BITNET:
        with reading(f"--model {source.name}", "weights"):
            model = read_weights(type(source.empty), source.name, source.config)
        with waiting("writing the weights"):
            return _write_bitnet(model, source, scratch)
    with reading(f"--model {source.name}", "weights"), waiting("packing"):
        files = weight_files(source.name)
        store = under_model_names(SafetensorsStore(files), source.empty)
        config = TernaryConfig(options.int8_embeddings, options.int8_head, options.modules_to_not_convert)
        model, sizes = write_own(source.empty, store, config, scratch, saved_generation_config(source.name))
    return packing_facts(model, sizes, files, source, scratch, options)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` to write to; it becomes `folder` at the end, or goes when an error is raised.

    Raises:
        Interrupted: SIGTERM came; as Ctrl-C does, it leaves nothing behind.
    """
    received = []

    def stop(signum, frame):
        received.append(signum)
        raise KeyboardInterrupt  # which the libraries that write catch nowhere

    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{secrets.token_hex(8)}"
    try:
        with CaughtSignals((signal.SIGTERM,), stop):
            scratch.mkdir()
            yield scratch
            scratch.replace(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                parent.rmdir()
        if received:
            raise Interrupted(received[0], f"{folder} is not written.") from error
        raise


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


def weight_bytes(folder: Path) -> int:
    """Return the size of a folder's safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def packing_facts(
    model: PreTrainedModel,
    sizes: dict[str, int],
    files: list[Path],
    source: TernarySource,
    output: Path,
    options: PackingOptions,
) -> dict[str, Any]:
    """What packing.json tells: counts, sizes and bits a weight.

    Args:
        model: packed, with or without memory. sizes: bytes of the tensors in its files. files: the source's.
    """
    layers = packed_layers(model)
    ternary = {name: layer for name, layer in layers if layer.weight_bits == 2}
    int8 = {name: layer for name, layer in layers if layer.weight_bits == 8}
    tiles, tables = _bytes_of(ternary, sizes), _bytes_of(int8, sizes)
    stored = [layer for name, layer in ternary.items() if f"{name}.weight" in sizes]  # one of a tied pair
    weights = sum(layer.num_weights for layer in stored)
    groups = {layer.group_size for layer in ternary.values()} - {None}
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
        "group_sizes": sorted(groups),
        "int8_bytes": tables,
        "other_bytes": sum(sizes.values()) - tiles - tables,
        "file_bytes": weight_bytes(output),
        "unpacked_file_bytes": sum(file.stat().st_size for file in files),
        "needs_frankenlm": source.foreign is not None,
        "versions": library_versions(),
    }


def _bytes_of(layers: Iterable[str], sizes: dict[str, int]) -> int:
    """Bytes of the weights and scales of layers, as far as they are stored under these names."""
    return sum(sizes.get(f"{name}.{part}", 0) for name in layers for part in ("weight", "weight_scale"))


def _find_tokenizer(source: TernarySource) -> PreTrainedTokenizerBase | None:
    """Return the checkpoint's tokenizer, to be saved with the output; say so where it has none."""
    if source.foreign is not None and source.foreign.header is not None:
        return gguf_tokenizer(source.foreign.header)
    if cached_file(location(source.name), "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is None:
        logger.warning("%s has no tokenizer; the packed checkpoint has none either.", source.name)
        return None
    return read_tokenizer(source.name)


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
The ternary weights of `{facts["model"]}` ({facts["architecture"]}) in two bits each; made by `frankenlm pack`. Layers
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
