"""The parameters and the optimizer's state as they were before the last step, kept in buffers that are used again."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class RollingCopy:
    """A copy that is taken before every healthy step, and changes places with what is there when that step poisoned it.

    It costs the memory of the parameters and the optimizers' states once more, and a pass over both in a step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizers: Sequence[Optimizer]):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizers = optimizers
        self.taken = False
        self._weights: list[torch.Tensor] = []
        self._states: list[dict[nn.Parameter, dict[str, Any]]] = [{} for _ in optimizers]

    @torch.no_grad()
    def take(self) -> None:
        """Remember what is there now."""
        if not self._weights:
            self._weights = [torch.empty_like(parameter) for parameter in self.parameters]
        torch._foreach_copy_(self._weights, self.parameters)
        for optimizer, kept in zip(self.optimizers, self._states, strict=True):
            for parameter in kept.keys() - optimizer.state.keys():
                del kept[parameter]
            for parameter, state in optimizer.state.items():
                _copy_state(state, kept.setdefault(parameter, {}))
        self.taken = True

    @torch.no_grad()
    def swap(self) -> None:
        """Let what is remembered and what is there change places; doing it twice changes nothing."""
        if not self.taken:
            raise ValueError("nothing has been remembered yet: call take() first.")
        for parameter, weight in zip(self.parameters, self._weights, strict=True):
            now = parameter.clone()
            parameter.copy_(weight)
            weight.copy_(now)
        for index, optimizer in enumerate(self.optimizers):
            now = dict(optimizer.state)
            optimizer.state.clear()
            optimizer.state.update(self._states[index])
            self._states[index] = now


def all_finite(parameters: Iterable[nn.Parameter], optimizers: Iterable[Optimizer]) -> bool:
    """Whether parameters and the optimizers' states hold finite numbers alone."""
    return math.isfinite(largest(parameters, optimizers))


@torch.no_grad()
def largest(parameters: Iterable[nn.Parameter], optimizers: Iterable[Optimizer]) -> float:
    """The largest magnitude in parameters and the optimizers' states; NaN where there is one, 0 for nothing at all.

    Of sharded tensors, that of this process's shards.
    """
    tensors = [parameter.detach() for parameter in parameters]
    tensors += [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    tensors = [value.to_local() if hasattr(value, "to_local") else value for value in tensors]
    floating = [value for value in tensors if torch.is_tensor(value) and value.is_floating_point() and value.numel()]
    norms = torch._foreach_norm(floating, float("inf")) if floating else []  # nan where an element is
    return torch.stack([norm.double() for norm in norms]).max().item() if norms else 0.0


def _copy_state(state: dict[str, Any], kept: dict[str, Any]) -> None:
    """Make `kept` a copy of `state`, in the tensors that it has already."""
    for name in kept.keys() - state.keys():
        del kept[name]
    for name, value in state.items():
        if not torch.is_tensor(value):
            kept[name] = value
        elif name in kept and kept[name].shape == value.shape and kept[name].dtype == value.dtype:
            kept[name].copy_(value)
        else:
            kept[name] = value.clone()
