"""Whether a layer may be computed without being called.

A layer's call is where hooks, adapters, offloading and 4-bit layers do their work. Code that reads `layer.weight` in
another module's forward goes past all of them, so every layer is called; the few places that compute several layers at
once, because it is faster, ask here first.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

CAPTURING = "transformers.utils.output_capturing"


def is_plainly_called(layer: nn.Module) -> bool:
    """Whether nobody would notice if `layer.forward` ran without the call around it: no hooks, no replaced forward."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return not hooks and "forward" not in layer.__dict__ and not _has_any_global_hook()


class PlainCalls:
    """Whether modules may go on being computed without being called, asked before every time.

    What transformers hangs into a model once somebody has asked for hidden states or attentions does not count: it
    does nothing while nobody asks.
    """

    def __init__(self, *trees: nn.Module):
        modules = [module for tree in trees for module in tree.modules()]
        self._parents = [(m._modules, list(m._modules.values())) for m in modules if m._modules]
        self._attributes = [m.__dict__ for m in modules]
        self._hooks = [
            hooks
            for m in modules
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]

    def hold(self) -> bool:
        """Whether every module still has the parts it had and its own forward, and nobody listens to it."""
        if any(list(children.values()) != before for children, before in self._parents):
            return False
        if _has_any_global_hook() or any("forward" in attributes for attributes in self._attributes):
            return False
        return not any(self._hooks) or all(_is_silent(hook) for hooks in self._hooks for hook in hooks.values())


def _is_silent(hook: Callable) -> bool:
    return getattr(hook, "__module__", None) == CAPTURING
