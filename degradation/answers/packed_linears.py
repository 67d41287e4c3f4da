"""Linear layers whose weights are laid out once a cell, for the few rows of a decoding step on a CPU.

A matrix product of few rows spends much of its time on laying its weights out for the processor, anew in every call.
oneDNN can keep that layout, and between two damages the weights do not change. Layers that are given the same input, as
those of queries, keys and values are, become one product: a narrow one hardly pays for being begun. The sums are those
of `torch.nn.functional.linear` but for their rounding. What it takes is a second copy of those weights in main memory.
"""

import contextlib
import platform
from collections.abc import Collection, Iterator

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

    The weights must not change meanwhile: each is laid out at its layer's first calls with few rows. Layers of other
    classes (quantised, ternary), those whose `forward` somebody has replaced (offloaded weights), weights of other
    devices and of dtypes that oneDNN does not multiply on this processor stay as they are, and so do all where they
    hold more than MOST_BYTES.
    """
    layers = [module for module in model.modules() if can_be_packed(module)]
    if sum(layer.weight.nbytes for layer in layers) > MOST_BYTES:
        layers = []
    try:
        for siblings in _siblings(model, layers):
            for layer in siblings.layers:
                layer.forward = _PackedForward(layer, siblings)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_be_packed(module: nn.Module) -> bool:
    """Whether this layer's products can be taken by oneDNN from a layout of its own."""
    return _is_plain(module) and module.weight.device.type == "cpu" and _multiplies(module.weight.dtype)


def laid_out_bytes(model: nn.Module, dtype: torch.dtype, others: Collection[nn.Module] = ()) -> int:
    """Return the bytes that `packed_linears` adds at most, were the weights of `dtype` and on this machine's CPU.

    Args:
        model: on any device, with or without weights. others: layers that will be of another class by then.
    """
    layers = [module for module in model.modules() if _is_plain(module) and module not in others]
    total = sum(layer.weight.numel() for layer in layers) * dtype.itemsize
    return total if total <= MOST_BYTES and _multiplies(dtype) else 0


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module)


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN's own kernels multiply numbers of this dtype on this processor."""
    if platform.machine() not in MACHINES or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


class _PackedForward:
    """The `forward` of one layer."""

    def __init__(self, layer: nn.Linear, siblings: "_Siblings"):
        self.layer = layer
        # until it is known who is given the same input
        self.siblings: _Siblings | None = siblings if len(siblings.layers) > 1 else None
        self.together: _Together | None = None
        self.packed: torch.Tensor | None = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., in] -> [..., out]"""
        layer = self.layer
        rows = input.numel() // max(1, layer.in_features)
        if not FEWEST_ROWS <= rows <= MOST_ROWS or input.dtype != layer.weight.dtype or torch.is_grad_enabled():
            return nn.functional.linear(input, layer.weight, layer.bias)
        if self.siblings is not None:
            self.siblings.see(self, input)
        product = None if self.together is None else self.together.product(self, input)
        if product is None:
            if self.packed is None:
                self.packed = _lay_out(layer.weight)
            product = _multiply(input, self.packed, layer.bias)
        return product


class _Siblings:
    """Layers side by side in one module, until it has been seen which of them are given the same input."""

    def __init__(self, layers: list[nn.Linear]):
        self.layers = layers
        self.turns: list[tuple[torch.Tensor, torch.Tensor, list[_PackedForward]]] = []  # input, what it held, callers

    def see(self, caller: _PackedForward, input: torch.Tensor) -> None:
        """Note a call; when the first caller comes again, let those multiply together that were given the same."""
        if self.turns and caller is self.turns[0][2][0]:
            for layer in self.layers:
                layer.forward.siblings = None
            callers = [each for *_, turn in self.turns for each in turn]
            for *_, turn in self.turns:
                if len(turn) > 1 and all(callers.count(each) == 1 for each in turn):
                    _Together(turn)
            return
        if self.turns:
            last, contents, callers = self.turns[-1]
            if input is last and torch.equal(input, contents):  # not changed in place between the two
                callers.append(caller)
                return
        self.turns.append((input, input.clone(), [caller]))


class _Together:
    """Layers that are called one after the other with the same input: the first multiplies for all."""

    def __init__(self, members: list[_PackedForward]):
        layers = [member.layer for member in members]
        self.members = members
        self.widths = [layer.out_features for layer in layers]
        self.packed = _lay_out(torch.cat([layer.weight.detach() for layer in layers]))
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat(biases)
        self.input: torch.Tensor | None = None
        self.ready: dict[_PackedForward, torch.Tensor] = {}  # products of `input` that nobody has asked for yet
        for member in members:
            member.together, member.packed = self, None

    def product(self, caller: _PackedForward, input: torch.Tensor) -> torch.Tensor | None:
        """Return the product of the caller's weights, or None where the first was given another input."""
        if caller is self.members[0]:
            parts = _multiply(input, self.packed, self.bias).split(self.widths, dim=-1)
            self.input, self.ready = input, dict(zip(self.members, parts, strict=True))
        elif input is not self.input:
            return None
        part = self.ready.pop(caller, None)
        if not self.ready:
            self.input = None
        return None if part is None else part.contiguous()


def _siblings(model: nn.Module, layers: list[nn.Linear]) -> Iterator[_Siblings]:
    """Sort layers by the module that holds them, and by what products must share to become one."""
    chosen, seen = set(layers), set()
    for parent in model.modules():
        kinds: dict[tuple, list[nn.Linear]] = {}
        for child in (parent, *parent.children()):
            if child in chosen and child not in seen:
                seen.add(child)
                kinds.setdefault((child.in_features, child.weight.dtype, child.bias is None), []).append(child)
        yield from map(_Siblings, kinds.values())


def _lay_out(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), LAID_OUT_FOR)


def _multiply(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """input [..., in], weights laid out [out, in] -> [..., out]"""
    product = torch.ops.mkldnn._linear_pointwise(input.reshape(-1, input.shape[-1]), packed, bias, "none", [], "")
    return product.view(*input.shape[:-1], product.shape[-1])
