"""BitLinear: a linear layer whose weights take two to four values and whose inputs take 256.

Paper: Ma et al. 2024, "The Era of 1-bit LLMs" (BitNet b1.58), arXiv:2402.17764.
Statistics run over the last axis only: a token's output never depends on another token.
Shapes: x (..., I), weight (O, I), y (..., O).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .norms import at_least_float32, rms_normalize
from .ternary import SCALE_FLOOR, quantize_weight


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, quantized):
        return quantized.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight_through(value: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Return exactly `quantized` in the forward pass, with the identity's gradient towards `value`.

    The usual `value + (quantized - value).detach()` rounds, and a ternary weight would then have more than 3 values.
    """
    return _StraightThrough.apply(value, quantized)


def quantize_activations(x: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Round each token to `2^bits` levels spanning its largest magnitude; returns the rounded values in x's dtype."""
    full = at_least_float32(x)
    top = 2 ** (bits - 1) - 1
    scale = top / full.abs().amax(-1, keepdim=True).clamp_min(SCALE_FLOOR)
    return ((full * scale).round().clamp(-top - 1, top) / scale).to(x.dtype)


class BitLinear(nn.Linear):
    """nn.Linear with quantised weights and activations, full-precision master weights, straight-through gradients.

    Subclasses nn.Linear so that LoRA, GaLore and weight-decay rules find it. `input_norm=False` drops the
    parameter-free RMS normalisation of the input (transformers' AutoBitLinear has none).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: str = "ternary_absmean",
        scale_axis: str = "tensor",
        activation_bits: int = 8,
        input_norm: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.scheme = scheme
        self.scale_axis = scale_axis
        self.activation_bits = activation_bits
        self.input_norm = input_norm

    def quantized_weight(self) -> torch.Tensor:
        """Return the weight (O, I) as the forward pass sees it, in the master weight's dtype, without gradient."""
        codes, scale = quantize_weight(self.weight.detach(), self.scheme, self.scale_axis)
        return (codes * scale).to(self.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.input_norm:
            x = rms_normalize(x)
        x = straight_through(x, quantize_activations(x, self.activation_bits))
        return F.linear(x, straight_through(self.weight, self.quantized_weight()), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme}, scale_axis={self.scale_axis}"
