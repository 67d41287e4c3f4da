"""`frankenlm pack --inspect`: the facts of a checkpoint, whatever its form, without loading its model."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

import frankenlm.modeling
from frankenlm.modeling.packed_model import empty_layers
from frankenlm.modeling.ternary_config import QUANT_METHOD, TernaryConfig

from ..common.cli import UserError
from ..common.opening import read_config, reading
from ..common.redaction import public_name
from ..packed_checkpoints import open_source
from ..packing.foreign import PackingOptions, gguf_file, weight_files
from ..packing.inspecting import foreign_layers, our_layers, packed_model_layers, summary
from ..packing.plan import under_model_names
from ..packing.stored import SafetensorsStore


def inspect_checkpoint(name: str, options: PackingOptions) -> dict[str, Any]:
    """Return the facts of a checkpoint.

    Raises:
        UserError: it is none, or is damaged.
    """
    if gguf_file(name) is None:
        config = read_config(name)
        method = dict(getattr(config, "quantization_config", None) or {}).get("quant_method")
        if method == QUANT_METHOD:
            return _of_packed(name, config)
    source = open_source(name, options)
    with reading(f"--model {name}", "weights"):
        if source.foreign is None:
            files = weight_files(name)
            store = under_model_names(SafetensorsStore(files), source.empty)
            layers, form = list(our_layers(source.empty, store)), "safetensors of frankenlm"
        else:
            foreign = source.foreign
            files, store = foreign.files, foreign.store
            layers = list(foreign_layers(source.empty, store, foreign.plan))
            form = "GGUF" if foreign.header is not None else "BitNet" if foreign.linear_class else "safetensors"
    return _facts(name, form, type(source.empty).__name__, source.config, files, store, layers)


def _of_packed(name: str, config: PreTrainedConfig) -> dict[str, Any]:
    packing = TernaryConfig(**config.quantization_config)
    architecture = (config.architectures or [""])[0]
    build = getattr(frankenlm.modeling, architecture, None) or AutoModelForCausalLM.from_config
    with reading(f"--model {name}", "weights"):
        with torch.device("meta"):
            model = build(config)
        empty_layers(model, packing.find_places(model))
        files = weight_files(name)
        store = under_model_names(SafetensorsStore(files), model)
        layers = list(packed_model_layers(model, store))
    if not layers:
        raise UserError(f"--model {name}: holds none of the layers that its configuration describes.")
    return _facts(name, f"packed, format {packing.format}", architecture, config, files, store, layers, is_packed=True)


def _facts(name, form, architecture, config, files, store, layers, is_packed: bool = False) -> dict[str, Any]:
    sizes = sum(stored.nbytes for stored in store.tensors.values())
    return {
        "model": public_name(name),
        "format": form,
        "architecture": architecture,
        "model_type": config.model_type,
        "files": len(files),
        "is_packed": is_packed,
        **summary(layers, sizes),
    }
