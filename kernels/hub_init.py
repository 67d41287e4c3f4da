"""Packed ternary linear layers for CPUs: int8 activations times 2-bit weights, exact in int32.

`pack_ternary(codes)` packs a weight of codes -1, 0, 1, and `pack_group_scales(scale, dtype)` scales of groups of its
inputs, for which the operators have `group_size`; they multiply without gradients. Every
function means what its twin in packed_reference.py says, in plain PyTorch.
"""

from . import packed_reference as reference
from ._ops import NAMESPACE, ops
from .fakes import register_fakes
from .group_scales import pack_group_scales
from .ternary import pack_ternary, unpack_ternary

__all__ = [
    "int8_linear",
    "pack_group_scales",
    "pack_ternary",
    "quantize_activations",
    "reference",
    "ternary_linear",
    "ternary_linear_quantized",
    "unpack_ternary",
]

quantize_activations = ops.quantize_activations
ternary_linear = ops.ternary_linear
ternary_linear_quantized = ops.ternary_linear_quantized
int8_linear = ops.int8_linear


register_fakes(NAMESPACE, ("quantize_activations", "ternary_linear", "ternary_linear_quantized", "int8_linear"))
