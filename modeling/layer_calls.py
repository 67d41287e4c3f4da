"""Whether a layer may be computed without being called.

A layer's call is where hooks, adapters, offloading and 4-bit layers do their work. Code that reads `layer.weight` in
another module's forward goes past all of them, so every layer is called; the few places that compute several layers at
once, because it is faster, ask here first.
"""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_plainly_called(layer: nn.Module) -> bool:
    """Whether nobody would notice if `layer.forward` ran without the call around it: no hooks, no replaced forward."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return not hooks and "forward" not in layer.__dict__ and not _has_any_global_hook()
