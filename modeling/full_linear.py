"""Linear layers that keep their precision: UnroundedLinear keeps its weights', FullPrecisionLinear its outputs' too.

Shapes: x (..., I), weight (O, I), y (..., O).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .layer_calls import is_plainly_called
from .norms import at_least_float32, full_precision


class UnroundedLinear(nn.Linear):
    """nn.Linear by another name: loading in 4 or 8 bits, which replaces plain nn.Linear layers, leaves it as it is."""


class FullPrecisionLinear(UnroundedLinear):
    """nn.Linear in at least float32, whatever the model's type and also under autocast.

    Routers and gates are made of it: rounded to bfloat16 they choose other experts, and a gate of 0.999 is 1. They are
    layers like any other, called and never read past, since hooks, adapters and offloading live in the call.
    """

    decides = True  # how adapters know one, whichever copy of the code it comes from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(x, self.weight, self.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    with full_precision(x.device.type):
        full = at_least_float32(x)
        return F.linear(full, weight.to(full.dtype), None if bias is None else bias.to(full.dtype))


def apply_full_together(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Apply several small layers to one input, in one product if each is a FullPrecisionLinear that is plainly called.

    Args:
        x: (..., I).

    Returns:
        `tuple(at_least_float32(layer(x)) for layer in layers)`.
    """
    if not all(type(layer) is FullPrecisionLinear and is_plainly_called(layer) for layer in layers):
        return tuple([at_least_float32(layer(x)) for layer in layers])
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    together = _product(x, torch.cat([layer.weight for layer in layers]), torch.cat(biases))
    return together.split([layer.out_features for layer in layers], dim=-1)
