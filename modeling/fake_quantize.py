"""Fake quantisation: values rounded to a quantiser's levels, kept in floating point, with straight-through gradients.

Sources: activations arXiv:2402.17764 (BitNet b1.58), section 2; straight-through estimator arXiv:1308.3432.
Rounding counts as the identity in the backward pass; the RMS normalisation before it is differentiated exactly.
Shapes: x (..., I), weight (O, I). Statistics run over the last axis of x only, in at least float32.
"""

import torch
from torch.autograd.function import once_differentiable

from .column_groups import spread
from .native_ops import native_code_runs
from .norms import at_least_float32, full_precision
from .packed_reference import inverse_rms
from .ternary import SCALE_FLOOR, quantize_weight

NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def _largest_magnitude(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))


def round_tokens(
    x: torch.Tensor, bits: int, norm_eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the rounded tokens (..., I) in `dtype`, and the factor (..., 1) that normalised them, if one did."""
    with full_precision(x.device.type):
        full = at_least_float32(x)
        magnitude, factor = _largest_magnitude(full), None
        if norm_eps > 0:
            factor = inverse_rms(full, norm_eps)
            full = full * factor
            magnitude = magnitude * factor
        # |full * levels| is at most the top level and two roundings more, so that no clamp is needed after rounding.
        levels = (2 ** (bits - 1) - 1) / magnitude.clamp_min(SCALE_FLOOR)
        return (full * levels).round_().div_(levels).to(dtype), factor


def normalization_gradient(gradient: torch.Tensor, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the gradient towards x (..., I) of x * factor, where factor = 1 / sqrt(mean(x^2) + eps) is (..., 1)."""
    with full_precision(x.device.type):
        full, gradient = at_least_float32(x), at_least_float32(gradient)
        shared = torch.linalg.vecdot(gradient, full).unsqueeze(-1) * factor.pow(3) / x.shape[-1]
        return (gradient * factor).addcmul_(full, shared, value=-1).to(x.dtype)


def _native_takes(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the operators take x and the other tensor's dtype. A compiler fuses the plain form by itself."""
    if x.device.type != "cpu" or x.dtype not in NATIVE_DTYPES or dtype not in NATIVE_DTYPES:
        return False
    return not torch.compiler.is_compiling() and native_code_runs()


class StartsUnrounded:
    """What layers inherit that can learn in full precision first and be rounded later (arXiv:2502.11895).

    Out of training they are always rounded: what is evaluated or saved early is what it would be used as.
    """

    trains_unrounded = False  # set by who trains

    @property
    def computes_unrounded(self) -> bool:
        """Whether a forward pass now would take weights and inputs as they are."""
        return self.training and self.trains_unrounded


class _FakeQuantizeActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, norm_eps, dtype):
        if _native_takes(x, dtype):
            rounded, factor = torch.ops.frankenlm.fake_quantize_activations(x, bits, norm_eps, dtype)
            factor = factor.unsqueeze(-1)
        else:
            rounded, factor = round_tokens(x, bits, norm_eps, dtype)
        ctx.dtype = x.dtype
        ctx.normalized = norm_eps > 0
        if ctx.normalized:
            ctx.save_for_backward(x, factor)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if not ctx.normalized:
            return gradient.to(ctx.dtype), None, None, None
        x, factor = ctx.saved_tensors
        native = _native_takes(x, gradient.dtype)
        backward = torch.ops.frankenlm.fake_quantize_activations_backward if native else normalization_gradient
        return backward(gradient, x, factor), None, None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scheme, scale_axis, group_size, dtype):
        ctx.dtype = weight.dtype
        codes, scale = quantize_weight(weight, scheme, scale_axis, group_size)
        return codes.mul_(spread(scale, weight.shape[1], group_size)).to(dtype)  # the codes are nobody else's

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.dtype), None, None, None, None


def fake_quantize_activations(
    x: torch.Tensor, bits: int = 8, norm_eps: float = -1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Round each token to `2^bits` levels that span its largest magnitude.

    Args:
        x: (..., I), any floating type.
        norm_eps: above 0, the token is first divided by sqrt(mean(x^2) + norm_eps), without a weight.
        dtype: of the result; None for x's.

    Returns:
        (..., I). A token that holds NaN or infinity becomes NaN throughout; no other token is touched.
        Its gradient can be taken once, not twice.
    """
    return _FakeQuantizeActivations.apply(x, bits, norm_eps, dtype or x.dtype)


def fake_quantize_weight(
    weight: torch.Tensor,
    scheme: str,
    scale_axis: str,
    dtype: torch.dtype | None = None,
    group_size: int | None = None,
) -> torch.Tensor:
    """Return weight (O, I) as `codes * scale` of `quantize_weight`, in `dtype` (None: the weight's)."""
    return _FakeQuantizeWeight.apply(weight, scheme, scale_axis, group_size, dtype or weight.dtype)
