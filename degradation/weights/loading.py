"""Loading a model for an experiment: any causal language model, dense or in 4 bits, with its processor for pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from frankenlm.modeling.packed_model import output_layer
from frankenlm.trainer_ext.common.opening import check_size, check_token_ids, reading

from ..configs import ExperimentConfig
from ..offloaded import computing_devices, input_device, is_offloaded
from .groups import unwrap
from .model_checks import (
    LoadOptions,
    auto_class,
    check_model,
    check_quantization,
    empty_group,
    empty_model,
    location,
    read_config,
    read_tokenizer,
    resolve_device,
)

__all__ = ["LoadOptions", "Loaded", "check_model", "load_model", "open_model", "short_name", "wrap_model"]


@dataclass
class Loaded:
    """A model ready for an experiment, in evaluation mode.

    name: as it was asked for. processor: None for text alone. device: where it takes its inputs.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    name: str
    device: torch.device

    @property
    def devices(self) -> str:
        """All devices that it computes on, in the model's order, joined by commas."""
        return ",".join(computing_devices(self.model))

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self.model.dtype


def short_name(name: str) -> str:
    """Return the last part of a model's name or path."""
    return Path(name).name or Path(name).resolve().name


def load_model(name: str, config: ExperimentConfig, options: LoadOptions) -> Loaded:
    """Load a model as an experiment wants it. Call `check_model` first: it finds mistakes before weights are read.

    Raises:
        ValueError: see `open_model`.
    """
    skipped: tuple[str, ...] = ()
    if config.load_4bit and config.quant_target_mode == "dense_original":
        found = read_config(name, options.trust_remote_code)
        group = empty_group(name, found, config, options.trust_remote_code)
        skipped = tuple(dict.fromkeys(target.name.rpartition(".")[0] for target in group.targets))
    return open_model(
        name,
        dtype=config.dtype,
        load_4bit=config.load_4bit,
        quant_type=config.quant_type,
        double_quant=config.double_quant,
        skip_modules=skipped,
        device=options.device,
        device_map=options.device_map,
        max_memory=options.max_memory,
        offload_folder=options.offload_folder,
        trust_remote_code=options.trust_remote_code,
        with_image=config.image is not None,
    )


def open_model(
    name: str,
    *,
    dtype: str = "bfloat16",
    load_4bit: bool = False,
    quant_type: str = "nf4",
    double_quant: bool = False,
    skip_modules: Sequence[str] = (),
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, str | int] | None = None,
    offload_folder: str | None = None,
    trust_remote_code: bool = False,
    with_image: bool = False,
) -> Loaded:
    """Load a model, its tokenizer and, `with_image`, its processor.

    Args:
        name: folder or hub name.
        dtype: of the weights and of the arithmetic; in 4 bits, of what stays dense and of the arithmetic.
        load_4bit: linear layers in 4 bits, except the output layer; `quant_type` nf4 or fp4, `double_quant` rounds the
            scales of the blocks too.
        skip_modules: linear layers that stay dense, by their names in the model.
        device: cpu, cuda, cuda:1; None: the GPU if there is one.
        device_map, max_memory, offload_folder: of transformers, for models that lie on several devices; in place of
            `device`.

    Raises:
        ValueError: no such model or device, or weights that are missing in the checkpoint.
    """
    place = resolve_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # the memory of this GPU is what limits the run, and no other is touched
    config = read_config(name, trust_remote_code)
    check_quantization(name, config, load_4bit)
    tokenizer, processor = read_tokenizer(name, with_image, trust_remote_code)
    compute = getattr(torch, dtype)
    arguments: dict[str, Any] = {"dtype": compute, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    if device_map is not None:
        placing = {"device_map": device_map, "max_memory": max_memory, "offload_folder": offload_folder}
        arguments |= {name: value for name, value in placing.items() if value is not None}
    elif load_4bit:
        arguments["device_map"] = {"": place}
    # a checkpoint that is stored in 4 bits says itself how
    if load_4bit and not config.to_dict().get("quantization_config"):
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=_with_head(config, skip_modules, trust_remote_code) if skip_modules else None,
        )
    with reading(f"model {name}", "weights"):
        check_size(auto_class(config), name, config, f"model {name}", trust_remote_code)
        model, report = auto_class(config).from_pretrained(location(name), config=config, **arguments)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
        check_token_ids(model, f"model {name}")
    if not load_4bit and device_map is None:
        model = model.to(place)
    return _ready(model, tokenizer, processor, name)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, processor: Any = None) -> Loaded:
    """Take a model that is loaded already.

    Raises:
        ValueError: neither a tokenizer nor a processor with one is given.
    """
    if tokenizer is None:
        if processor is None or not hasattr(processor, "tokenizer"):
            raise ValueError("a loaded model needs its tokenizer: give tokenizer=.")
        tokenizer = processor.tokenizer
    inner = unwrap(model)
    if any(each.is_meta and not is_offloaded(inner, name) for name, each in inner.named_parameters()):
        raise ValueError(f"the model given ({type(inner).__name__}) lies on the device meta: it has no weights.")
    return _ready(model, tokenizer, processor, inner.name_or_path or type(inner).__name__)


def _ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, processor: Any, name: str) -> Loaded:
    keep_4bit_weights_readable(model)
    keep_weights_as_saved(unwrap(model))
    return Loaded(model.eval(), tokenizer, processor, name, input_device(unwrap(model)))


def _with_head(config: Any, skip_modules: Sequence[str], trust_remote_code: bool) -> list[str]:
    """Add the output layer, which a list of one's own would otherwise quantise."""
    empty = empty_model(config, trust_remote_code)
    head = output_layer(empty)
    return [*skip_modules, *(path for path, module in empty.named_modules() if module is head)]


def keep_4bit_weights_readable(model: nn.Module) -> None:
    """Switch off bitsandbytes' fast path for CPUs with AVX512-BF16.

    It repacks each 4-bit weight at its first use (0.50.2): from then on dequantising gives garbage and saving the model
    breaks it, in both cases without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def keep_weights_as_saved(model: nn.Module) -> None:
    """Let no first pass change the weights: RWKV divides those of its later layers in place, by powers of two.

    It does so for the sake of float16, and halves the stream between those layers to make up for it; in 4 bits it
    rounds them anew. What is put back after damage would then be weights that this model no longer has. Without the
    setting it computes the same. A model that has divided them already, one that was given, stays as it is.
    """
    for module in model.modules():
        if vars(module).get("layers_are_rescaled") is False:
            module.config.rescale_every = 0
