"""PackedBitLinear: BitLinear with its weights in two bits each, for inference.

Weights are those of arXiv:2402.17764 (BitNet b1.58) as `ternary.py` quantises and packs them; activations are rounded
to int8 token by token, and the products summed as integers.
Shapes: x (..., K), codes (N, K), weight (ceil(N/16), ceil(K/16), 64), scale (N,) or, of G groups of inputs, (N, G),
y (..., N).
"""

from typing import NamedTuple

import torch

from .column_groups import count_groups, spread
from .group_scales import check_group_scales, group_scale_shape, pack_group_scales, unpack_group_scales
from .norms import RMS_EPS, rms_normalize
from .packed_operators import (
    PackedModule,
    quantize_activations,
    ternary_linear,
    ternary_linear_quantized,
    with_input_gradient,
)
from .ternary import GROUP_SCALE_DTYPE, check_packed, pack_ternary, packed_shape, unpack_ternary

ACTIVATION_BITS = 8
NO_NORM = -1.0
PACKABLE_SCHEMES = ("binary", "ternary_absmean", "ternary_absmedian", "ternary_twn")


def check_packable(scheme: str, activation_bits: int = ACTIVATION_BITS) -> None:
    """Check that what a quantised layer computes can be packed.

    Raises:
        ValueError: a scheme with other levels than -1, 0 and 1, or activations of other than 8 bits.
    """
    if scheme not in PACKABLE_SCHEMES:
        raise ValueError(
            f"w_scheme={scheme!r} cannot be packed: two packed bits stand for -1, 0 and 1. Packable: "
            f"{', '.join(PACKABLE_SCHEMES)}."
        )
    if activation_bits != ACTIVATION_BITS:
        raise ValueError(
            f"activation_bits={activation_bits} cannot be packed: packed layers round their inputs to "
            f"{ACTIVATION_BITS} bits. Train with activation_bits={ACTIVATION_BITS}."
        )


def expand_scale(scale: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a scale of any one-value or one-per-row shape as float32 (rows,).

    Raises:
        ValueError: another number of values, or one that is not finite.
    """
    if scale.numel() not in (1, rows):
        raise ValueError(f"scale has shape {tuple(scale.shape)}; give one value, or one for each of the {rows} rows.")
    flat = scale.detach().float().reshape(-1)
    if not flat.isfinite().all():
        raise ValueError("scale holds NaN or infinity: the weights it belongs to are not finite.")
    return flat.expand(rows).contiguous()


def empty_scale(
    rows: int, columns: int, group_size: int | None, dtype: torch.dtype = GROUP_SCALE_DTYPE, device=None
) -> torch.Tensor:
    """Return the memory of a packed layer's scale: float32 (rows,), or `dtype` in the form of `group_scales.py`."""
    if group_size is None:
        return torch.empty(rows, dtype=torch.float32, device=device)
    return torch.empty(group_scale_shape(rows, columns, group_size), dtype=dtype, device=device)


def packed_scale(
    scale: torch.Tensor, rows: int, columns: int, group_size: int | None, dtype: torch.dtype = GROUP_SCALE_DTYPE
) -> torch.Tensor:
    """Return a scale as a packed layer holds it: of one value or one per row, or of groups (rows, G).

    Raises:
        ValueError: another shape, or one that is not finite.
    """
    if group_size is None:
        return expand_scale(scale, rows)
    groups = count_groups(columns, group_size)
    if tuple(scale.shape) != (rows, groups):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}; groups of {group_size} in {columns} inputs of {rows} rows need "
            f"({rows}, {groups})."
        )
    return pack_group_scales(scale, dtype)


def plain_scale(scale: torch.Tensor, rows: int, columns: int, group_size: int | None) -> torch.Tensor:
    """Return a packed layer's scale for codes (rows, columns): float32 (rows, 1) or (rows, columns)."""
    if group_size is None:
        return scale.unsqueeze(1)
    return spread(unpack_group_scales(scale, rows).float(), columns, group_size)


def as_codes(codes: torch.Tensor) -> torch.Tensor:
    """Return codes of any number format as int8.

    Raises:
        ValueError: a code that is not -1, 0 or 1.
    """
    whole = codes.to(torch.int8)
    if codes.is_floating_point() and (whole != codes).any():
        raise ValueError(f"codes must be -1, 0 or 1; found {codes[whole != codes][0].item()}.")
    return whole


class PreparedInput(NamedTuple):
    """Rounded activations: x ~ codes * scale.

    codes int8 (..., K), scale float32 (...), sum int32 (...) of the codes, dtype of the outputs; differentiable: the
    (normalised) input where a gradient is to reach it, else None.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    sum: torch.Tensor
    dtype: torch.dtype
    differentiable: torch.Tensor | None


class PackedBitLinear(PackedModule):
    """y = round(norm(x)) (codes * scale)^T + bias, with two bits a weight; the input's norm is RMS, without parameters.

    Made by `BitLinear.pack()` or `from_codes`. Inputs may be float32, bfloat16 or float16, outputs are the same.
    The weights are frozen; gradients towards the input pass, as through BitLinear, so adapters beside it can train.

    Attributes:
        weight: uint8 (ceil(N/16), ceil(K/16), 64), the tiles of `ternary.py`.
        weight_scale: float32 (N,), or with a group_size bfloat16 or float16 (ceil(N/16), G, 16), see `group_scales.py`.
        bias: float32 (N,) or None.
    """

    activation_bits = ACTIVATION_BITS
    weight_bits = 2

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        input_norm: bool = True,
        group_size: int | None = None,
        scale_dtype: torch.dtype = GROUP_SCALE_DTYPE,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        self.input_norm = input_norm
        self.norm_eps = RMS_EPS if input_norm else NO_NORM
        self.hold(
            torch.empty(packed_shape(out_features, in_features), dtype=torch.uint8, device=device),
            weight_scale=empty_scale(out_features, in_features, group_size, scale_dtype, device),
            bias=torch.empty(out_features, dtype=torch.float32, device=device) if bias else None,
        )

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        input_norm: bool = True,
        *,
        group_size: int | None = None,
        scale_dtype: torch.dtype = GROUP_SCALE_DTYPE,
    ) -> "PackedBitLinear":
        """Pack a weight `codes * scale`.

        Args:
            codes: (N, K), each -1, 0 or 1.
            scale: one value, or one per row; with a group_size (N, G), which is rounded to scale_dtype.
            bias: (N,) or None.
            group_size: how many inputs share a scale: 32, 64 or 128.
            scale_dtype: bfloat16 or float16.

        Raises:
            ValueError: other codes, another number of scales or biases, a scale that is not finite.
        """
        rows, columns = codes.shape
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({rows},): one value per row.")
        layer = cls(
            columns,
            rows,
            bias is not None,
            input_norm=input_norm,
            group_size=group_size,
            scale_dtype=scale_dtype,
            device="meta",
        )
        bias = None if bias is None else bias.detach().float().clone()
        scale = packed_scale(scale, rows, columns, group_size, scale_dtype).to(codes.device)
        layer.hold(pack_ternary(as_codes(codes)), weight_scale=scale, bias=bias)
        return layer

    @property
    def input_settings(self) -> tuple:
        """Everything `prepare` depends on: layers that agree in it can share what it returns."""
        return self.in_features, self.input_norm

    @property
    def num_weights(self) -> int:
        """How many weights the layer stands for."""
        return self.out_features * self.in_features

    def codes(self) -> torch.Tensor:
        """Return the codes, int8 (N, K)."""
        return unpack_ternary(self.weight, self.out_features, self.in_features)

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weight (N, K) in full."""
        scale = plain_scale(self.weight_scale, self.out_features, self.in_features, self.group_size)
        return (self.codes() * scale).to(dtype)

    def check(self, name: str) -> None:
        """Check the tensors, as after loading; `name` is the layer's, for the errors.

        Raises:
            ValueError: damaged tiles, or a scale or bias that is not finite.
        """
        shape = (self.out_features, self.in_features)
        check_packed(self.weight, *shape, f"{name}.weight")
        if self.group_size is not None:
            check_group_scales(self.weight_scale, *shape, self.group_size, f"{name}.weight_scale")
        self.check_finite(name)

    def prepare(self, x: torch.Tensor) -> PreparedInput:
        """Round x (..., K) once for every layer of the same `input_settings`.

        Raises:
            ValueError: x has another number of features.
        """
        self._check_width(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return PreparedInput(*quantize_activations(x, self.norm_eps), x.dtype, None)
        rounded = quantize_activations(x.detach(), self.norm_eps)
        return PreparedInput(*rounded, x.dtype, rms_normalize(x) if self.input_norm else x)

    def apply_prepared(self, prepared: PreparedInput) -> torch.Tensor:
        """Return (..., N) for what `prepare` of this layer, or of one with the same `input_settings`, returned."""
        if prepared.differentiable is None:
            return self._product(prepared)
        return with_input_gradient(prepared.differentiable, lambda: self._product(prepared), self.dequantized_weight)

    def _product(self, prepared: PreparedInput) -> torch.Tensor:
        codes, scale, total, dtype, _ = prepared
        weight, weight_scale = self.weight, self.weight_scale
        return ternary_linear_quantized(
            codes, scale, total, weight, weight_scale, self.out_features, self.bias, dtype, self.group_size or 0
        )

    def _check_width(self, x: torch.Tensor) -> None:
        # The operator sees tiles of 16 columns only, and would take 33 features for 40.
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} features; the layer takes in_features={self.in_features}.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_width(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return self.apply_prepared(self.prepare(x))
        return ternary_linear(
            x, self.weight, self.weight_scale, self.out_features, self.bias, self.norm_eps, self.group_size or 0
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"input_norm={self.input_norm}{'' if self.group_size is None else f', group_size={self.group_size}'}"
        )
