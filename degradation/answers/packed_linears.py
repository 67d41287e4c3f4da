"""Linear layers whose weights are laid out once a cell, for the few rows of a decoding step on a CPU.

A matrix product of few rows spends much of its time on laying its weights out for the processor, anew in every call.
oneDNN can keep that layout, and between two damages the weights do not change. The sums are those of
`torch.nn.functional.linear` but for their rounding. What it takes is a second copy of those weights in main memory.
"""

import contextlib
import platform
from collections.abc import Iterator

import torch
from torch import nn

# rows of a product: of fewer, reading the weights is all; of more, as prompts have, their layout is a small part
FEWEST_ROWS, MOST_ROWS = 3, 256
LAID_OUT_FOR = 16  # rows; one number, so that no row's rounding hangs on which rows came first
MOST_BYTES = 2 << 30  # of all weights that are laid out anew: a model that has more stays as it is
MACHINES = ("x86_64", "AMD64")  # where oneDNN's own kernels run


@contextlib.contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Let the plain linear layers of a model keep their weights' layout until the block ends.

    The weights must not change meanwhile: each is laid out at its layer's first call with few rows. Layers of other
    classes (quantised, ternary), those whose `forward` somebody has replaced (offloaded weights), weights of other
    devices and of dtypes that oneDNN does not multiply on this processor stay as they are, and so do all where they
    hold more than MOST_BYTES.
    """
    layers = [module for module in model.modules() if can_be_packed(module)]
    if sum(layer.weight.nbytes for layer in layers) > MOST_BYTES:
        layers = []
    try:
        for layer in layers:
            layer.forward = _PackedForward(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_be_packed(module: nn.Module) -> bool:
    """Whether this layer's products can be taken by oneDNN from a layout of its own."""
    if type(module) is not nn.Linear or "forward" in vars(module) or module.weight.device.type != "cpu":
        return False
    if platform.machine() not in MACHINES or not torch.backends.mkldnn.is_available():
        return False
    if module.weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return module.weight.dtype == torch.float32


class _PackedForward:
    """The `forward` of one layer."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.packed: torch.Tensor | None = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., in] -> [..., out]"""
        layer = self.layer
        rows = input.numel() // max(1, layer.in_features)
        if not FEWEST_ROWS <= rows <= MOST_ROWS or input.dtype != layer.weight.dtype or torch.is_grad_enabled():
            return nn.functional.linear(input, layer.weight, layer.bias)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), LAID_OUT_FOR)
        product = torch.ops.mkldnn._linear_pointwise(
            input.reshape(rows, layer.in_features), self.packed, layer.bias, "none", [], ""
        )
        return product.view(*input.shape[:-1], layer.out_features)
