"""What is wrong with the gradients of a step, found in one pass over them and with one wait for the device."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class GradientReport:
    """The accumulated gradient of one step, after backward and before clipping.

    norm: the 2-norm over all parameters; nan or inf where an element is, or where finite ones overflow in the sum.
    bad: names of parameters whose gradient is not finite, the first few. zero: how many parameters have a gradient of
    zeros alone; absent: how many have none, which is no anomaly (an expert without tokens, a branch not taken).
    """

    norm: float
    has_nan: bool
    has_inf: bool
    bad: tuple[str, ...]
    zero: int
    absent: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.norm)


SHOWN = 5


@torch.no_grad()
def inspect_gradients(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    scale: float = 1.0,
    agree: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> GradientReport:
    """Look at the gradients of named parameters.

    The norm of each gradient tells all there is to know: it is nan where an element is, inf where one is or where it
    overflows, 0 where all are. A sum over nan and inf of different parameters is nan, so the flags come from the parts.

    Args:
        scale: what the loss was multiplied with (fp16); the norm is that of the gradients divided by it.
        agree: takes a float64 tensor of counts, [2], and returns its sum over all processes, for flags that are the
            same everywhere; None where there is one process.
    """
    named = [(name, parameter.grad) for name, parameter in parameters if parameter.requires_grad]
    present = [(name, grad.detach()) for name, grad in named if grad is not None]
    grads = [grad for _, grad in present]
    if not grads:
        grads = [torch.zeros(1)]  # the other processes wait for this one's flags
    narrow = any(grad.dtype in (torch.float16, torch.bfloat16) for grad in grads)
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(grads, 2, torch.float32 if narrow else None)])
    flags = torch.stack([norms.isnan().sum(), norms.isinf().sum()]).double()
    if agree is not None:
        flags = agree(flags)
    values = torch.cat([norms, flags]).tolist()  # the one wait
    each, (nan, inf) = values[:-2], values[-2:]
    bad = [name for (name, _), norm in zip(present, each, strict=False) if not math.isfinite(norm)]
    total = math.nan if nan else math.inf if inf else math.hypot(*each) / scale
    zero = sum(norm == 0 for norm in each[: len(present)])
    return GradientReport(total, nan > 0, inf > 0, tuple(bad[:SHOWN]), zero, len(named) - len(present))
