"""Random weights that make leaks visible.

Families begin near zero (0.02 and less, norms of residual branches at 0): what a layer adds is then a thousandth of
what passes it by, and a leak drowns. Here every matrix is drawn so that what it gives is as large as what it is given:
normal with variance 1 / inputs, embeddings with variance 1, so that a layer's output is comparable with its input.
Biases and weights that begin at 0 are drawn with 0.1, norms' ones are moved by a tenth, and what else a family sets by
design (decays, time constants, scales) stays where the family puts it.
"""

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

SMALL = 0.1  # of biases, and of what ones are moved by
AROUND_ZERO = 0.3  # a mean below so many standard deviations: drawn around zero, not set by design


def redraw(model: nn.Module, seed: int) -> None:
    """Draw the weights of a freshly made model again, in place; tied weights stay tied."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in done and weight.is_floating_point() and weight.numel():
                done.add(id(weight))
                weight.data.copy_(_drawn(module, name, weight.detach().float(), generator))


def _drawn(module: nn.Module, name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if isinstance(module, nn.Embedding):
        if module.padding_idx is not None:
            noise[module.padding_idx] = 0
        return noise
    if weight.ndim < 2:
        if bool((weight == 1).all()):
            return weight * (1 + SMALL * noise)
        return SMALL * noise if bool((weight == 0).all()) or not bool(weight.isfinite().all()) else weight
    if isinstance(module, (nn.Linear, nn.Conv1d, Conv1D)) or _is_drawn_around_zero(weight):
        return noise / math.sqrt(_inputs(module, weight))
    return weight


def _is_drawn_around_zero(weight: torch.Tensor) -> bool:
    """Whether a bare matrix was drawn, or is empty memory, or zeros: not set by design."""
    if not bool(weight.isfinite().all()):
        return True
    return bool(weight.mean().abs() <= AROUND_ZERO * weight.std())


def _inputs(module: nn.Module, weight: torch.Tensor) -> float:
    """How many numbers a row of a weight sums: of experts (E, in, out) or (E, out, in), the mean of both sides."""
    if isinstance(module, Conv1D):
        return weight.shape[0]
    if isinstance(module, (nn.Linear, nn.Conv1d)) or weight.ndim == 2:
        return weight[0].numel()
    return math.sqrt(weight.shape[-1] * weight.shape[-2])
