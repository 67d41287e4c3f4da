"""Exchange with the packed checkpoints of transformers' BitNet integration, both directions, tensor by tensor.

Theirs (transformers/integrations/bitnet.py, 5.23): uint8 (N/4, K), row n of the weight in byte row n mod N/4, bits
2 (n div N/4), as w + 1; `weight_scale` (1,), of which the class `bitlinear` holds the reciprocal of the weights' scale
(it divides by it) and `autobitlinear` the scale itself (it multiplies, and its bias too). Both round their inputs to
int8 without a norm.
Ours: the tiles of `ternary.py`, float32 scale (N,), the weights' scale itself.
"""

from collections.abc import Mapping

import torch

from .packed_linear import as_codes, expand_scale
from .ternary import pack_ternary, quantize_weight, unpack_ternary

PER_BYTE = 4


def unpack_bitnet(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes int8 (4 P, K) of transformers' packed uint8 (P, K).

    Raises:
        ValueError: another dtype or number of axes, or a code 3.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 2:
        raise ValueError(f"expected uint8 with 2 axes, not {packed.dtype} with {packed.dim()}.")
    if (packed & packed >> 1 & 0x55).any():
        raise ValueError("damaged: it holds a code 3, which stands for no weight.")
    return torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)]).view(torch.int8) - 1


def pack_bitnet(codes: torch.Tensor) -> torch.Tensor:
    """Return transformers' packed uint8 (N/4, K) of codes int8 (N, K).

    Raises:
        ValueError: N is no multiple of 4, which their layers cannot hold.
    """
    if codes.shape[0] % PER_BYTE:
        raise ValueError(
            f"{codes.shape[0]} rows are no multiple of {PER_BYTE}: transformers' BitLinear cannot hold them."
        )
    parts = (codes + 1).view(torch.uint8).chunk(PER_BYTE)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def scale_from_bitnet(scale: torch.Tensor, linear_class: str, rows: int) -> torch.Tensor:
    """Return the weights' scale, float32 (rows,), of transformers' `weight_scale`."""
    full = scale.float()
    return expand_scale(1.0 / full if linear_class == "bitlinear" else full, rows)


def scale_to_bitnet(scale: torch.Tensor, linear_class: str, dtype: torch.dtype) -> torch.Tensor:
    """Return transformers' `weight_scale` (1,) of a scale (N,) with one value.

    What came in half precision comes out bit by bit as it was; a float32 reciprocal may differ in its last bit.

    Raises:
        ValueError: rows or groups of different scales, for which their layers have no room.
    """
    if scale.dim() != 1:
        raise ValueError("its groups of inputs have scales of their own; transformers' BitLinear holds one.")
    if (scale != scale[0]).any():
        raise ValueError("its rows have scales of their own (scale_axis='row'); transformers' BitLinear holds one.")
    one = scale[:1]
    return (1.0 / one if linear_class == "bitlinear" else one).to(dtype)


def layer_from_bitnet(
    weight: torch.Tensor, weight_scale: torch.Tensor | None, linear_class: str
) -> dict[str, torch.Tensor]:
    """Return our `weight` and `weight_scale` of one of their layers.

    Args:
        weight: uint8 (N/4, K); or codes (N, K) in a float format, as `autobitlinear` holds them in memory; or, without
            a `weight_scale`, master weights (N, K), which are quantised as they would be at every call ("online").

    Raises:
        ValueError: codes other than -1, 0 and 1, or a scale that is not finite.
    """
    if weight_scale is None:
        codes, scale = quantize_weight(weight)
        return {"weight": pack_ternary(as_codes(codes)), "weight_scale": expand_scale(scale, codes.shape[0])}
    codes = unpack_bitnet(weight) if weight.dtype == torch.uint8 else as_codes(weight)
    return {
        "weight": pack_ternary(codes),
        "weight_scale": scale_from_bitnet(weight_scale, linear_class, codes.shape[0]),
    }


def bias_from_bitnet(bias: torch.Tensor, weight_scale: torch.Tensor | None, linear_class: str) -> torch.Tensor:
    """Return our float32 bias (N,) of theirs, which `autobitlinear` multiplies by the scale, as all of its output.

    Args:
        weight_scale: theirs; None of a layer that is quantised at every call, whose bias is added afterwards.
    """
    if weight_scale is None or linear_class != "autobitlinear":
        return bias.float()
    return bias.float() * scale_from_bitnet(weight_scale, linear_class, bias.shape[0])


def state_to_bitnet(
    state: Mapping[str, torch.Tensor],
    layers: Mapping[str, tuple[int, int]],
    linear_class: str,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Convert a state dict of ours; `layers` maps the names of packed layers to (N, K), `dtype` is their model's.

    Raises:
        ValueError: a layer that theirs has no form for, or that is damaged; the message names it.
    """
    theirs = dict(state)
    for name, (rows, columns) in layers.items():
        try:
            codes = unpack_ternary(state[f"{name}.weight"], rows, columns)
            theirs[f"{name}.weight"] = pack_bitnet(codes)
            theirs[f"{name}.weight_scale"] = scale_to_bitnet(state[f"{name}.weight_scale"], linear_class, dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if f"{name}.bias" in state:
            scale = state[f"{name}.weight_scale"] if linear_class == "autobitlinear" else 1.0
            theirs[f"{name}.bias"] = (state[f"{name}.bias"] / scale).to(dtype)
    return theirs
