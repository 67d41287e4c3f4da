"""How a norm scales: by its weight, or by one more than it (Gemma, Qwen3-Next); the layer itself is asked."""

import copy
import inspect

import torch
from torch import nn


@torch.no_grad()
def gain_offset(norm: nn.Module) -> float:
    """Return 1.0 if a norm scales by 1 + weight, 0.0 if by its weight: a copy with weight 0 is asked.

    Raises:
        ValueError: the layer cannot be called with a single tensor, or one and its gate.
    """
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    for parameter in probe.parameters():
        parameter.fill_(0.0)
    width, heads = norm._parameters["weight"].numel(), norm.__dict__.get("num_heads")
    # xLSTM's norm of a state takes its heads apart
    shape = (1, 1, heads, width // heads) if heads else (1, 1, width)
    values = torch.linspace(-1.0, 2.0, width).view(shape)
    gates = [torch.ones_like(values)] * _takes_gate(probe)
    try:
        response = probe(values, *gates)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"group 'norm': cannot tell how {type(norm).__name__} scales ({error}); set norm_gain=False."
        ) from error
    return 1.0 if response.abs().max() > 0 else 0.0


def _takes_gate(norm: nn.Module) -> bool:
    """Whether a norm is called with a gate too, as those behind a state are."""
    return "gate" in list(inspect.signature(norm.forward).parameters)[1:2]
