"""Loading that says in one line what is wrong with a checkpoint, and where fewer bits were asked for in vain."""

import logging
from collections import Counter

from safetensors import SafetensorError
from torch import nn

logger = logging.getLogger(__name__)

FEW_BITS = "bitsandbytes"
PACKS_FOR_CPU = "support_avx512bf16_for_cpu"  # of a layer in 4 bits: whether it packs its weights for such CPUs
IN_FEW_BITS = ("Linear4bit", "Linear8bitLt")  # how bitsandbytes calls the layers it puts in place of nn.Linear


class MismatchError(ValueError, RuntimeError):
    """A checkpoint's tensors are not of the configuration's shapes (transformers raises a RuntimeError for it)."""


class LoadsClearly:
    """Stands before PreTrainedModel among a model's bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; a model that has no layer for bitsandbytes to quantise is told of in a warning.

        Raises:
            ValueError: weights that are damaged or cut short, or (unless ignore_mismatched_sizes=True) of other shapes
                than the configuration's; the message names the first.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        ignores = kwargs.pop("ignore_mismatched_sizes", False)
        options = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} are damaged or cut short ({error}). Copy or download "
                "them again."
            ) from error
        if info["mismatched_keys"] and not ignores:
            raise MismatchError(_describe(pretrained_model_name_or_path, info["mismatched_keys"]))
        _tell_of_few_bits(pretrained_model_name_or_path, model)
        return (model, info) if wants_info else model


def _describe(name, mismatched) -> str:
    key, found, expected = min(mismatched)
    others = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    return (
        f"{name}: {key} is {tuple(found)} in the checkpoint, but {tuple(expected)} by the configuration{others}. Load "
        "it with the configuration it was saved with; ignore_mismatched_sizes=True starts these tensors anew."
    )


def _tell_of_few_bits(name, model: nn.Module) -> None:
    """Warn where bitsandbytes was asked for and no layer is in 4 or 8 bits: the model is as large as it was."""
    if not hasattr(model.config, "quantization_config") or model.config.quantization_config.quant_method != FEW_BITS:
        return
    few = {name: layer for name, layer in model.named_modules() if type(layer).__name__ in IN_FEW_BITS}
    if few:
        _tell_of_odd_widths(name, few)
        return
    kinds = Counter(type(layer).__name__ for layer in model.modules() if isinstance(layer, nn.Linear))
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    is_rounded = any(hasattr(layer, "rounds_its_weight") for layer in model.modules())
    reason = (
        "ternary layers round their weights as they run. `frankenlm pack` stores them in two bits a weight"
        if is_rounded
        else "bitsandbytes takes plain nn.Linear layers alone, and not the output layer"
    )
    logger.warning(
        "%s: 0 layers were quantised by bitsandbytes, and it computes as without. Its linear layers are %s: %s.",
        name,
        layers,
        reason,
    )


def _tell_of_odd_widths(name, few: dict[str, nn.Module]) -> None:
    """Warn of layers in 4 bits that bitsandbytes cannot run on this CPU: it would end in an error about shapes."""
    odd = [
        f"{place} ({layer.in_features} to {layer.out_features})"
        for place, layer in few.items()
        if hasattr(layer, PACKS_FOR_CPU) and layer.support_avx512bf16_for_cpu and layer.weight.device.type == "cpu"
        if layer.in_features % 64 or layer.out_features % 32
    ]
    if odd:
        logger.warning(
            "%s: on this CPU bitsandbytes runs layers in 4 bits whose inputs are a multiple of 64 and outputs of 32; "
            "%d are not, such as %s. Name them in llm_int8_skip_modules, or take 8 bits.",
            name,
            len(odd),
            odd[0],
        )
