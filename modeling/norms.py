"""Point-wise "norms" and the statistical ones they replace.

Derf: arXiv:2512.10938.  DynamicTanh: arXiv:2503.10622.  RMSNorm: arXiv:1910.07467.
All act on each token by itself, so padding and causality hold by construction.
Shapes: x (..., D); D features.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .checks import check_choice
from .native_ops import normalizes_natively, rms_norm_step

RMS_EPS = 1e-6
SATURATION_BOUND = 2.0  # |argument| where erf and tanh still pass about 2 % and 7 % of their peak gradient


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32, or in float64 when it already is: statistics never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Return a context in which autocast, if it is on, lets computations run in the precision of their inputs."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()  # switching off what is off would cost a decoding step more than some of its ops


def rms_normalize(x: torch.Tensor, eps: float = RMS_EPS) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, in x's dtype, without parameters."""
    return F.rms_norm(at_least_float32(x), x.shape[-1:], eps=eps).to(x.dtype)


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + 1e-6)."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            if normalizes_natively(x):
                return rms_norm_step(x, self.weight, RMS_EPS)
            return F.rms_norm(x, self.weight.shape, self.weight, RMS_EPS)  # the same in one call
        return self.weight * rms_normalize(x)


class _PointwiseNorm(nn.Module):
    """What Derf and DynamicTanh share: a scalar slope, a per-feature gain and offset, and a view on saturation."""

    def __init__(self, size: int, alpha: float):
        super().__init__()
        self.initial_alpha = alpha
        self.alpha = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def initialize_parameters(self) -> None:
        init.constant_(self.alpha, self.initial_alpha)
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def argument(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * x

    @torch.no_grad()
    def saturation(self, x: torch.Tensor) -> torch.Tensor:
        """Return the share of inputs, a scalar in [0, 1], at which the curve is flat (|argument| > 2)."""
        return (self.argument(x).abs() > SATURATION_BOUND).float().mean()


class Derf(_PointwiseNorm):
    """y = weight * erf(alpha * x + shift) + bias, with scalar alpha and shift."""

    def __init__(self, size: int, alpha: float = 0.5):
        super().__init__(size, alpha)
        self.shift = nn.Parameter(torch.empty(()))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        super().initialize_parameters()
        init.zeros_(self.shift)

    def argument(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * x + self.shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.erf(self.argument(x)) + self.bias


class DynamicTanh(_PointwiseNorm):
    """y = weight * tanh(alpha * x) + bias, with scalar alpha. No mean and no variance is computed."""

    def __init__(self, size: int, alpha: float = 0.5):
        super().__init__(size, alpha)
        self.initialize_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.tanh(self.argument(x)) + self.bias


NORMS = {
    "derf": lambda size, alpha, eps: Derf(size, alpha),
    "dynamic_tanh": lambda size, alpha, eps: DynamicTanh(size, alpha),
    "layer_norm": lambda size, alpha, eps: nn.LayerNorm(size, eps=eps),
    "rms_norm": lambda size, alpha, eps: RMSNorm(size),
}


def build_norm(name: str, size: int, *, alpha: float = 0.5, eps: float = 1e-5) -> nn.Module:
    """Build a norm by name. `alpha` matters to derf and dynamic_tanh only, `eps` to layer_norm only."""
    check_choice("norm_type", name, NORMS)
    return NORMS[name](size, alpha, eps)
