"""PackedBitLinear: BitLinear with its weights in two bits each, for inference.

Weights are those of arXiv:2402.17764 (BitNet b1.58) as `ternary.py` quantises and packs them; activations are rounded
to int8 token by token, and the products summed as integers.
Shapes: x (..., K), codes (N, K), weight (ceil(N/16), ceil(K/16), 64), scale (N,), y (..., N).
"""

from typing import NamedTuple

import torch

from .norms import RMS_EPS, rms_normalize
from .packed_operators import (
    PackedModule,
    quantize_activations,
    ternary_linear,
    ternary_linear_quantized,
    with_input_gradient,
)
from .ternary import check_packed, pack_ternary, packed_shape, unpack_ternary

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
        weight_scale: float32 (N,).
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
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.input_norm = input_norm
        self.norm_eps = RMS_EPS if input_norm else NO_NORM
        self.hold(
            torch.empty(packed_shape(out_features, in_features), dtype=torch.uint8, device=device),
            weight_scale=torch.empty(out_features, dtype=torch.float32, device=device),
            bias=torch.empty(out_features, dtype=torch.float32, device=device) if bias else None,
        )

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        input_norm: bool = True,
    ) -> "PackedBitLinear":
        """Pack a weight `codes * scale`.

        Args:
            codes: (N, K), each -1, 0 or 1.
            scale: one value, or one per row.
            bias: (N,) or None.

        Raises:
            ValueError: other codes, another number of scales or biases, a scale that is not finite.
        """
        rows, columns = codes.shape
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({rows},): one value per row.")
        layer = cls(columns, rows, bias is not None, input_norm=input_norm, device="meta")
        bias = None if bias is None else bias.detach().float().clone()
        scale = expand_scale(scale, rows).to(codes.device)
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
        return (self.codes() * self.weight_scale.unsqueeze(1)).to(dtype)

    def check(self, name: str) -> None:
        """Check the tensors, as after loading; `name` is the layer's, for the errors.

        Raises:
            ValueError: damaged tiles, or a scale or bias that is not finite.
        """
        check_packed(self.weight, self.out_features, self.in_features, f"{name}.weight")
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
        return ternary_linear_quantized(codes, scale, total, weight, weight_scale, self.out_features, self.bias, dtype)

    def _check_width(self, x: torch.Tensor) -> None:
        # The operator sees tiles of 16 columns only, and would take 33 features for 40.
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} features; the layer takes in_features={self.in_features}.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_width(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return self.apply_prepared(self.prepare(x))
        return ternary_linear(x, self.weight, self.weight_scale, self.out_features, self.bias, self.norm_eps)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"input_norm={self.input_norm}"
        )
