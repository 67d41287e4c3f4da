"""The operators of packed layers: the native ones where they are to be had, plain PyTorch elsewhere.

BitLinear, whose weights are whole, has its inputs rounded by the first of them.

The native operators run on CPUs. Tensors of other devices, exported programs, and checkpoints that travel with their
code to where the package is not installed, take the reference, packed_reference.py: same functions, same arguments.
"""

import logging
from collections.abc import Callable

import torch

from .adapters import RoundsItsWeight
from .native_ops import native_path
from .packed_reference import int8_linear as reference_int8_linear
from .packed_reference import quantize_activations as reference_quantize_activations
from .packed_reference import ternary_linear as reference_ternary_linear
from .packed_reference import ternary_linear_quantized as reference_ternary_linear_quantized

logger = logging.getLogger("frankenlm.packed")
_said = False


@torch.compiler.assume_constant_result
def has_native_operators() -> bool:
    """Load the native operators at the first call and log, once, which they are: packed layers and BitLinear ask."""
    global _said
    path = native_path()
    if not _said:
        which = "plain PyTorch, without the package frankenlm" if path is None else f"frankenlm's, path {path}"
        logger.info("Low-bit operators: %s.", which)
        _said = True
    return path is not None


def _is_native(x: torch.Tensor, *others: torch.Tensor) -> bool:
    devices = {tensor.device.type for tensor in (x, *others)}
    runs = devices in ({"cpu"}, {"meta"})  # without memory they give shapes alone, which the reference cannot
    return runs and x.dtype != torch.float64 and not torch.compiler.is_exporting() and has_native_operators()


def quantize_activations(x: torch.Tensor, norm_eps: float = -1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As in packed_reference.py."""
    run = torch.ops.frankenlm.quantize_activations.default if _is_native(x) else reference_quantize_activations
    return run(x, norm_eps)


def ternary_linear(
    x, packed, scale, out_features: int, bias=None, norm_eps: float = -1.0, group_size: int = 0
) -> torch.Tensor:
    """As in packed_reference.py."""
    run = torch.ops.frankenlm.ternary_linear.default if _is_native(x, packed) else reference_ternary_linear
    return run(x, packed, scale, out_features, bias, norm_eps, group_size)


def ternary_linear_quantized(
    codes,
    x_scale,
    x_sum,
    packed,
    scale,
    out_features: int,
    bias=None,
    dtype: torch.dtype | None = None,
    group_size: int = 0,
) -> torch.Tensor:
    """As in packed_reference.py."""
    native = dtype != torch.float64 and _is_native(codes, packed)
    run = torch.ops.frankenlm.ternary_linear_quantized.default if native else reference_ternary_linear_quantized
    return run(codes, x_scale, x_sum, packed, scale, out_features, bias, dtype, group_size)


def int8_linear(x, weight, scale, bias=None) -> torch.Tensor:
    """As in packed_reference.py."""
    run = torch.ops.frankenlm.int8_linear.default if _is_native(x, weight) else reference_int8_linear
    return run(x, weight, scale, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, product, weight):
        ctx.weight = weight
        return product()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.weight(gradient.dtype), None, None


def with_input_gradient(
    x: torch.Tensor, product: Callable[[], torch.Tensor], weight: Callable[[torch.dtype], torch.Tensor]
) -> torch.Tensor:
    """Return `product()`, (..., N), whose gradient towards x (..., K) is that of x W^T, W = `weight(dtype)` (N, K).

    Frozen packed weights below trained adapters pass gradients on so; W exists only during its own backward step.
    """
    return _Product.apply(x, product, weight)


class PackedModule(RoundsItsWeight, torch.nn.Module):
    """What packed layers share: scales and biases keep their format whatever the model is cast to, and nothing trains.

    `dtype` is the number format of the model around the layer, which `model.to(dtype)` changes.
    """

    is_packed_layer = True  # how the quantizer knows one, whichever copy of the code it comes from

    def __init__(self, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype or torch.get_default_dtype()

    def hold(self, weight: torch.Tensor, **floats: torch.Tensor | None) -> None:
        """Register the tensors: the integers as a parameter, which tying needs, all else as buffers.

        A parameter of floats would come back from `from_pretrained` as trainable.
        """
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        for name, values in floats.items():
            self.register_buffer(name, values)

    def check_finite(self, name: str) -> None:
        """Raise ValueError where a scale or bias holds NaN or infinity; `name` is the layer's."""
        for part, values in self.named_buffers(recurse=False):
            if not values.isfinite().all():
                raise ValueError(f"{name}.{part} is damaged: it holds NaN or infinity.")

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        for name, values in before.items():
            if values is not None and self._buffers[name].dtype != values.dtype:
                self._buffers[name] = values.to(self._buffers[name].device)
        return self
