"""Loading and saving packed checkpoints the way transformers does it: quant_method "frankenlm_ternary".

`from_pretrained` builds the model without memory, this quantizer puts packed layers in place, and the file's tensors
fill them: no weight is ever unpacked. Importing this file registers the quantizer, once a process; the modeling files
import it, so it comes along with a checkpoint that carries its code.
"""

from collections.abc import Iterable

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from .native_decoder import install as install_native_decoder
from .packed_model import check_places, empty_layers, pack_layers
from .packed_operators import PackedModule
from .ternary_config import QUANT_METHOD, TernaryConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 64  # bytes; the kernels read whole cache lines
SAFETENSORS_DTYPES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


class TernaryHfQuantizer(HfQuantizer):
    """Puts packed layers in place before the weights are loaded, and checks them afterwards."""

    quantization_config: TernaryConfig

    def validate_environment(self, *args, **kwargs):
        if not self.pre_quantized:
            raise ValueError(
                f"quant_method={QUANT_METHOD!r} loads checkpoints that are packed already; `frankenlm pack`, or "
                "pack_model() on a loaded model, makes them."
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if dtype not in DTYPES:
            names = ", ".join(str(known) for known in DTYPES)
            raise ValueError(f"dtype={dtype}: packed layers compute in one of {names}.")
        return dtype

    def _process_model_before_weight_loading(self, model: PreTrainedModel, checkpoint_files=None, **kwargs):
        places = self.quantization_config.find_places(model)
        if not places:
            raise ValueError(
                f"config.json says that the checkpoint is packed (quant_method={QUANT_METHOD!r}), but "
                f"{type(model).__name__} as configured has no ternary layer."
            )
        empty_layers(model, places)
        if checkpoint_files is not None:
            check_files(model, checkpoint_files)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs):
        let_go_of_files(model)
        for name, layer in packed_layers(model):
            if layer.weight.device.type != "meta":  # it is not offloaded to the disk
                layer.check(name)
        install_native_decoder(model.base_model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def packed_layers(model: PreTrainedModel) -> list[tuple[str, PackedModule]]:
    """Return the packed layers of a model with their names."""
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "is_packed_layer")]


def pack_model(
    model: PreTrainedModel,
    *,
    int8_embeddings: bool = False,
    int8_head: bool = False,
    modules_to_not_convert: Iterable[str] = (),
) -> PreTrainedModel:
    """Pack the ternary layers of a model where they stand; `save_pretrained` then writes a packed checkpoint.

    Args:
        model: with BitLinear layers, in memory; it is changed and returned.
        int8_embeddings, int8_head: round the token table, or the output layer, to int8 by rows.
        modules_to_not_convert: names of ternary layers, or of their parents, to leave as they are.

    Raises:
        ValueError: packed already, nothing to pack, or a layer that cannot be; the message names it.
    """
    check_packable_model(model, int8_embeddings, int8_head, modules_to_not_convert)
    config = TernaryConfig(int8_embeddings, int8_head, modules_to_not_convert)
    pack_layers(model, config.find_places(model))
    return adopt(model, config)


def adopt(model: PreTrainedModel, config: TernaryConfig) -> PreTrainedModel:
    """Give a model whose layers are packed already its quantizer, as `from_pretrained` would; return it."""
    config.note_groups(layer.group_size for _, layer in packed_layers(model) if layer.weight_bits == 2)
    quantizer = TernaryHfQuantizer(config, pre_quantized=True)
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD
    quantizer.postprocess_model(model)
    return model.eval()


def check_packable_model(
    model: PreTrainedModel, int8_embeddings: bool, int8_head: bool, modules_to_not_convert: Iterable[str] = ()
) -> None:
    """Check that `pack_model` can pack a model, whose weights may be missing still (meta tensors).

    Raises:
        ValueError: as `pack_model`.
    """
    if hasattr(model.config, "quantization_config"):
        method = dict(model.config.quantization_config).get("quant_method")
        raise ValueError(f"the model is quantized already (quant_method={method!r}).")
    config = TernaryConfig(int8_embeddings, int8_head, modules_to_not_convert)
    check_places(model, config.find_places(model), config.modules_to_not_convert)


def check_files(model: PreTrainedModel, files: Iterable[str]) -> None:
    """Check, before anything is loaded, that the files hold every tensor of the packed layers in its shape.

    Raises:
        ValueError: a file that is cut short or no safetensors file; a tensor that is missing or of another shape or
            number format. The message names it.
    """
    found = {}
    for file in files:
        found |= _read_header(file)
    prefix = f"{model.base_model_prefix}."
    shared = set(model.all_tied_weights_keys)
    for layer_name, layer in packed_layers(model):
        for part, tensor in layer.state_dict().items():
            name = f"{layer_name}.{part}"
            # A stack is loaded from the checkpoint of a model with a head, and the other way round.
            entry = found.get(name) or found.get(prefix + name) or found.get(name.removeprefix(prefix))
            if entry is None and name in shared:
                continue
            _check_entry(name, entry, tensor)


def _read_header(file: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and number format of every tensor in a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}). Copy or download it again.") from error


def _check_entry(name: str, entry: tuple | None, tensor: torch.Tensor) -> None:
    expected = (tuple(tensor.shape), SAFETENSORS_DTYPES[tensor.dtype])
    if entry is None:
        raise ValueError(f"the checkpoint lacks {name}, which config.json says is packed.")
    if entry != expected:
        raise ValueError(
            f"{name} is {entry[1]} {entry[0]} in the checkpoint; config.json asks for {expected[1]} {expected[0]}."
        )


@torch.no_grad()
def let_go_of_files(model: PreTrainedModel) -> None:
    """Move tensors that lie in a mapped file into memory of their own, aligned to cache lines.

    Tensors of a safetensors file begin anywhere in it, and one that stays behind keeps the whole file mapped.
    """
    if all(tensor.data_ptr() % ALIGNMENT == 0 for _, layer in packed_layers(model) for tensor in layer.parameters()):
        return
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                module._buffers[name] = buffer.clone()


def register() -> None:
    """Make the quantizer known to transformers, unless this or another copy of the file has done so."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(TernaryConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(TernaryHfQuantizer)


register()
