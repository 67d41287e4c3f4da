"""Damage of weights that bitsandbytes holds in 4 bits.

Packed codes cannot be damaged as numbers. What is done instead (`quant_target_mode`):

    dense_target    targeted layers become dense, in their compute type, with the dequantised values; the rest stays
                    packed. Undone by putting the packed layers back, which nobody has touched.
    requantise      dequantise, damage, quantise with the same block size and type. Requantising moves weights by about
                    a tenth of their norm once they are damaged at all, so small noise is refused.
    dense_original  targeted layers are not quantised when the model is loaded (see `loading`), so there is nothing to
                    do here; its undamaged model is another one than that of the other two modes.

Packed bytes are never made again in order to restore them: with double quantisation that would not give them back.
"""

import logging
import sys
import zlib
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)
QUANT_TARGET_MODES = ("dense_target", "requantise", "dense_original")
# below, requantisation does as much damage as the noise (measured on NF4 with blocks of 64)
LEAST_REQUANTISED_SIGMA = 0.2
CODES = 16


def is_4bit(module: nn.Module) -> bool:
    """Whether a layer holds its weight as packed 4-bit codes of bitsandbytes."""
    library = sys.modules.get("bitsandbytes")
    return library is not None and isinstance(module, library.nn.Linear4bit)


def dequantise(weight: nn.Parameter) -> torch.Tensor:
    """Return the packed weight of a 4-bit layer, dense, [outputs, inputs] in the type it was quantised from.

    Raises:
        RuntimeError: the layer's codes lie in the order of a fast CPU path, from which they cannot be read.
    """
    state = weight.quant_state
    # an attribute that only that fast path sets
    if vars(state).get("packing_format_for_cpu"):
        raise RuntimeError(
            "a 4-bit layer has been repacked for a fast CPU path and can no longer be read: load the model afresh "
            "with frankenlm.degradation.weights.loading.load_model, which switches that path off."
        )
    return sys.modules["bitsandbytes"].functional.dequantize_4bit(weight.data, state)


class DenseTarget(nn.Linear):
    """A dense layer in place of a 4-bit one: computes in the same type and returns the input's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., in_features] to [..., out_features], of x's type."""
        kind = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return F.linear(x.to(kind), self.weight, bias).to(x.dtype)


@torch.no_grad()
def make_dense(root: nn.Module, names: Iterable[str]) -> Callable[[], None]:
    """Replace 4-bit layers by dense ones with their dequantised weights; return the function that undoes it.

    Args:
        root: the model. names: paths of the layers in it. Biases and hooks are shared with the packed layers.
    """
    packed = {name: root.get_submodule(name) for name in names}
    dense = {name: _dense_twin(module) for name, module in packed.items()}  # may fail, with the model as it was
    for name, module in dense.items():
        _replace(root, name, module)

    def undo() -> None:
        for name, module in packed.items():
            _replace(root, name, module)

    return undo


def _dense_twin(module: nn.Module) -> DenseTarget:
    weight = dequantise(module.weight)
    weight = weight.to(module.compute_dtype or weight.dtype)
    dense = DenseTarget(module.in_features, module.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    dense.bias = module.bias
    dense.train(module.training)
    dense._forward_hooks, dense._forward_pre_hooks = module._forward_hooks, module._forward_pre_hooks
    return dense


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(root.get_submodule(parent), attribute, module)


@torch.no_grad()
def requantised(module: nn.Module, dense: torch.Tensor) -> nn.Parameter:
    """Return a fresh packed parameter for a 4-bit layer, quantised as its own one; the layer stays as it is.

    Args:
        dense: [outputs, inputs], of the type that `dequantise` returns.
    """
    library, old = sys.modules["bitsandbytes"], module.weight
    fresh = library.nn.Params4bit(
        dense.contiguous(),
        requires_grad=False,
        quant_type=old.quant_type,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_storage=old.quant_storage,
    )
    return fresh.to(old.device)


def check_blocks(name: str, weight: nn.Parameter) -> None:
    """Raise ValueError if quantising and dequantising a packed weight would not agree.

    bitsandbytes (0.50.2) on the CPU reads rows that do not end with a block as if they did.
    """
    state = weight.quant_state
    if weight.device.type == "cpu" and state.shape[-1] % state.blocksize:
        raise ValueError(
            f"quant_target_mode='requantise': {name} has {state.shape[-1]} inputs, no multiple of its blocks of "
            f"{state.blocksize}, which bitsandbytes misreads on the CPU; use quant_target_mode='dense_target'."
        )


def put_packed(module: nn.Module, weight: nn.Parameter) -> None:
    """Make `weight` the packed parameter of a 4-bit layer, with its own quantisation state."""
    module.weight = weight
    module.quant_state = weight.quant_state


def packed_crc(weight: nn.Parameter) -> int:
    """Return the CRC-32 of the packed bytes and of every tensor of the quantisation state."""
    state = weight.quant_state.as_dict(packed=True)
    tensors = [weight.data, *(state[name] for name in sorted(state))]
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def check_requantise(method: str, level: float | int | None, force: bool = False) -> None:
    """Say what requantisation would make of a level above the baseline.

    Raises:
        ValueError: the noise is smaller than what requantisation does by itself, and `force` is not set.
    """
    if level is None:
        return  # the baseline of uni_quant
    if method in ("mult_gauss", "add_gauss") and 0 < level < LEAST_REQUANTISED_SIGMA and not force:
        raise ValueError(
            f"quant_target_mode='requantise': at {method} {level} requantisation damages about as much as the noise; "
            f"take levels from {LEAST_REQUANTISED_SIGMA} on, or quant_target_mode='dense_target'."
        )
    if method == "uni_quant" and level > CODES:
        logger.warning("requantise: a 4-bit block has %d values, so uni_quant %s does little by itself", CODES, level)
