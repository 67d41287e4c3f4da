"""What happens to the codes of low-bit layers while they train: how many are zero, how many change in a step."""

import torch
from torch import nn
from transformers import TrainerCallback

from frankenlm.modeling.ternary import quantize_weight

from .callbacks import StepWindow, will_log


def low_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that quantise their own weight (BitLinear, BitEmbedding), by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "quantized_weight")}


@torch.no_grad()
def weight_codes(layer: nn.Module) -> torch.Tensor:
    """Return twice the codes of a low-bit layer, int8 (O, I): doubled, the halves of the int2 levels are integers."""
    codes, _ = quantize_weight(layer.weight.detach(), layer.scheme, layer.scale_axis, layer.group_size)
    return (2 * codes).to(torch.int8)


class LowBitProbe(TrainerCallback):
    """Compares the codes before and after each step that will be logged; other steps and other models pay nothing.

    zero_fraction: share of all codes that are zero after the step. flip_rate: share that this step has changed.
    unrounded: 1 where the step has computed with the weights as they are (--ternary_start); else it is left out.
    """

    def __init__(self, window: StepWindow):
        self.window = window
        self._before: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._before = {}
        if will_log(args, state):
            self._before = {name: weight_codes(layer) for name, layer in low_bit_layers(model).items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self._before:
            return
        total = sum(before.numel() for before in self._before.values())
        zeros = flips = 0
        for name, layer in low_bit_layers(model).items():
            after = weight_codes(layer)
            zeros += int((after == 0).sum())
            flips += int((after != self._before[name]).sum())
        self._before = {}
        self.window.low_bit = {"zero_fraction": zeros / total, "flip_rate": flips / total}
        if any(layer.trains_unrounded for layer in low_bit_layers(model).values()):
            self.window.low_bit["unrounded"] = 1.0
