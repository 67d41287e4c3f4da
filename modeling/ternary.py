"""Weight quantisers: the one definition of every low-bit scheme.

A scheme maps a weight to `(codes, scale)` with `weight ~ codes * scale`; codes keep the weight's shape and dtype.
Sources: ternary_absmean arXiv:2402.17764 (BitNet b1.58); ternary_absmedian arXiv:2407.09527;
ternary_twn arXiv:1605.04711 (Ternary Weight Networks); binary arXiv:2310.11453 (BitNet).
Shapes: W (O, I); scale (1, 1) for a scale per tensor, (O, 1) for a scale per output row.
"""

import torch

from .checks import check_choice

SCALE_FLOOR = 1e-5
# Mean |w| of the unit Gaussian is sqrt(2/pi) = 0.798; these two factors place the int2 levels near their optimum on it.
INT2_MEAN_OVER_SCALE = 0.8
INT2_POW_SCALE_OVER_MEAN = 0.88
TWN_THRESHOLD_OVER_MEAN = 0.7


def _mean(w: torch.Tensor, per_row: bool) -> torch.Tensor:
    return w.mean(1, keepdim=True) if per_row else w.mean().reshape(1, 1)


def _median(w: torch.Tensor, per_row: bool) -> torch.Tensor:
    return w.median(1, keepdim=True).values if per_row else w.median().reshape(1, 1)


def _round_to_trits(w, magnitude):
    # The reciprocal is taken first, as transformers' BitLinear does: the two then agree to the last bit.
    inverse = 1.0 / magnitude.clamp_min(SCALE_FLOOR)
    return (w * inverse).round().clamp(-1, 1), 1.0 / inverse


def _binary(w, per_row):
    centred = w - _mean(w, per_row)
    return torch.where(centred >= 0, 1.0, -1.0).to(w.dtype), _mean(centred.abs(), per_row).clamp_min(SCALE_FLOOR)


def _ternary_absmean(w, per_row):
    return _round_to_trits(w, _mean(w.abs(), per_row))


def _ternary_absmedian(w, per_row):
    return _round_to_trits(w, _median(w.abs(), per_row))


def _ternary_twn(w, per_row):
    magnitude = w.abs()
    kept = (magnitude > TWN_THRESHOLD_OVER_MEAN * _mean(magnitude, per_row)).to(w.dtype)
    share = _mean(kept, per_row).clamp_min(torch.finfo(w.dtype).tiny)
    return kept * w.sign(), (_mean(magnitude * kept, per_row) / share).clamp_min(SCALE_FLOOR)


def _int2(w, per_row):
    scale = (_mean(w.abs(), per_row) / INT2_MEAN_OVER_SCALE).clamp_min(SCALE_FLOOR)
    return ((w / scale).floor() + 0.5).clamp(-1.5, 1.5), scale


def _int2_pow(w, per_row):
    scale = (INT2_POW_SCALE_OVER_MEAN * _mean(w.abs(), per_row)).clamp_min(SCALE_FLOOR)
    magnitude = torch.where(w.abs() > 1.5 * scale, 2.0, 1.0).to(w.dtype)
    return torch.where(w >= 0, magnitude, -magnitude), scale


SCHEMES = {
    "binary": _binary,
    "ternary_absmean": _ternary_absmean,
    "ternary_absmedian": _ternary_absmedian,
    "ternary_twn": _ternary_twn,
    "int2": _int2,
    "int2_pow": _int2_pow,
}
SCALE_AXES = ("tensor", "row")


def quantize_weight(
    weight: torch.Tensor, scheme: str = "ternary_absmean", scale_axis: str = "tensor"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a weight matrix.

    Args:
        weight: (O, I); statistics run in at least float32.
        scheme: a name of `SCHEMES`.
        scale_axis: "tensor" for one scale, "row" for one per output row.

    Returns:
        codes (O, I) and scale (1, 1) or (O, 1), both in at least float32. An all-zero ternary row gives zero codes.

    Raises:
        ValueError: unknown scheme or scale axis.
    """
    check_choice("w_scheme", scheme, SCHEMES)
    check_choice("scale_axis", scale_axis, SCALE_AXES)
    full = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return SCHEMES[scheme](full, scale_axis == "row")
