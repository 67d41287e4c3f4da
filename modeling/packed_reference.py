"""The arithmetic of packed layers in plain PyTorch: the reference of `frankenlm::*`, and what runs without them.

Integer sums are exact, and every float operation is one correctly rounded float32 operation in a fixed order, so that
the native paths can equal this file to the last bit.
Sources: activations arXiv:2402.17764 (BitNet b1.58), section 2; the packed layout is `ternary.py`'s.
Shapes: x (..., K), packed (ceil(N/16), ceil(K/16), 64), y (..., N); scale (N,), or of groups of inputs
(ceil(N/16), G, 16) as `group_scales.py` packs them.
"""

from collections.abc import Callable

import torch

from .column_groups import column_ranges
from .group_scales import check_group_scales, unpack_group_scales
from .ternary import SCALE_FLOOR, unpack_ternary

CODE_LIMIT = 127


def inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) over the last axis, (..., 1), in x's dtype, float32 or float64.

    The sum runs in float64, where squares of float32 are exact: rounded to float32 it no longer depends on the order of
    the additions, so that every implementation of the quantiser finds the same codes.
    """
    return (x.double().square().mean(-1, keepdim=True).to(x.dtype) + eps).rsqrt()


def quantize_activations(x: torch.Tensor, norm_eps: float = -1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round each token to int8 codes that span its largest magnitude.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        norm_eps: above 0, the token is first divided by sqrt(mean(x^2) + norm_eps), without a weight.

    Returns:
        codes int8 (..., K); scale float32 (...), the step, x ~ codes * scale; sum int32 (...) of the codes.
        A token that holds NaN or infinity gets codes 0, sum 0 and scale NaN: its outputs are NaN, no other's.
    """
    x = x.float()
    if norm_eps > 0:
        x = x * inverse_rms(x, norm_eps)
    magnitude = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    finite = magnitude.isfinite()
    multiplier = CODE_LIMIT / magnitude.clamp_min(SCALE_FLOOR)
    rounded = (x * multiplier).round().clamp(-CODE_LIMIT - 1, CODE_LIMIT)
    codes = torch.where(finite, rounded, 0.0).to(torch.int8)
    scale = torch.where(finite, 1.0 / multiplier, float("nan"))
    return codes, scale.squeeze(-1), codes.sum(-1, dtype=torch.int32)


def _integer_product(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return codes (M, K) int8 times weight (N, K) int8, exactly, as int32 (M, N)."""
    return (codes.double() @ weight.double().t()).to(torch.int32)  # every sum is below 2^53


def sum_of_groups(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, group_size: int, product: Callable
) -> torch.Tensor:
    """Return x (..., K) times weight (N, K) whose groups of inputs have scales (N, G): float32 (..., N).

    Each group's product is a whole number below 2^24; it is scaled, rounded to float32, and added in the groups' order.

    Args:
        product: takes parts of x and weight and returns their product, exactly.
    """
    total = torch.zeros(*x.shape[:-1], weight.shape[0], device=x.device)
    for group, (first, last) in enumerate(column_ranges(x.shape[-1], group_size)):
        part = product(x[..., first:last], weight[:, first:last]).float()
        total = total + part * scale[:, group].float()
    return total


def _scaled(product, x_scale, scale, bias, dtype):
    y = product.float() * (x_scale.unsqueeze(-1) * scale)
    return (y if bias is None else y + bias.float()).to(dtype)


def ternary_linear_quantized(
    codes: torch.Tensor,
    x_scale: torch.Tensor,
    x_sum: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    group_size: int = 0,
) -> torch.Tensor:
    """Multiply already quantised activations with packed ternary weights; arguments as `quantize_activations` returns.

    `x_sum` is what the native paths correct their unsigned codes with; here nothing needs it. `group_size`: how many
    inputs share a scale; 0 for one float32 per output.
    """
    columns = codes.shape[-1]
    flat = codes.reshape(-1, columns)
    weight, dtype = unpack_ternary(packed, out_features, columns), dtype or torch.float32
    if group_size:
        check_group_scales(scale, out_features, columns, group_size)
        total = sum_of_groups(flat, weight, unpack_group_scales(scale, out_features), group_size, _integer_product)
        y = total.reshape(*codes.shape[:-1], out_features) * x_scale.unsqueeze(-1)
        return (y if bias is None else y + bias.float()).to(dtype)
    product = _integer_product(flat, weight).reshape(*codes.shape[:-1], out_features)
    return _scaled(product, x_scale, scale, bias, dtype)


def ternary_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    bias: torch.Tensor | None = None,
    norm_eps: float = -1.0,
    group_size: int = 0,
) -> torch.Tensor:
    """Return x (..., K) times the packed ternary weight, (..., N) in x's dtype."""
    codes, x_scale, x_sum = quantize_activations(x, norm_eps)
    return ternary_linear_quantized(codes, x_scale, x_sum, packed, scale, out_features, bias, x.dtype, group_size)


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x (..., K) times weight int8 (N, K) with scale float32 (N,) per row, (..., N) in x's dtype."""
    codes, x_scale, _ = quantize_activations(x)
    product = _integer_product(codes.reshape(-1, codes.shape[-1]), weight)
    return _scaled(product.reshape(*codes.shape[:-1], weight.shape[0]), x_scale, scale, bias, x.dtype)
