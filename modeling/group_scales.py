"""Scales of groups as packed layers hold them: beside the tiles of `ternary.py`, in the order the kernels read them.

Shapes: scale (O, G) becomes (ceil(O/16), G, 16): the scales of a tile's 16 rows lie side by side, group after group.
Rows beyond O have scale 0. Half precision, since a float32 for each 32 weights would add half to their two bits.
"""

import torch
import torch.nn.functional as F

from .column_groups import GROUP_SIZES, count_groups
from .ternary import TILE

GROUP_SCALE_DTYPES = (torch.bfloat16, torch.float16)


def group_scale_shape(out_features: int, in_features: int, group_size: int) -> tuple[int, int, int]:
    """Return the shape of the packed scales of a weight (out_features, in_features)."""
    return -(-out_features // TILE), count_groups(in_features, group_size), TILE


def pack_group_scales(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Pack scales (O, G), any floating type, as `dtype` (ceil(O/16), G, 16).

    Raises:
        ValueError: a dtype other than bfloat16 and float16, or a scale that is not finite in it.
    """
    if dtype not in GROUP_SCALE_DTYPES:
        raise ValueError(f"scales of groups are held in bfloat16 or float16, not in {dtype}.")
    rows, groups = scale.shape
    narrow = F.pad(scale.detach().to(dtype), (0, 0, 0, -rows % TILE))
    if not narrow.isfinite().all():
        if scale.isfinite().all():
            raise ValueError(f"a scale of {scale.abs().max().item():g} is beyond {dtype}: pack it as bfloat16.")
        raise ValueError("scale holds NaN or infinity: the weights it belongs to are not finite.")
    return narrow.view(-1, TILE, groups).transpose(1, 2).contiguous()


def unpack_group_scales(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """Return the scales (O, G), in their dtype, that `pack_group_scales` packed."""
    tiles, groups, _ = packed.shape
    return packed.transpose(1, 2).reshape(tiles * TILE, groups)[:out_features]


def check_group_scales(
    packed: torch.Tensor, out_features: int, in_features: int, group_size: int, name: str = "scale"
) -> None:
    """Check that `packed` holds the scales of groups of a weight (out_features, in_features); `name` is for the errors.

    Raises:
        ValueError: a group size that is not in `GROUP_SIZES`, another dtype or shape.
    """
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size={group_size!r} must be one of {', '.join(str(size) for size in GROUP_SIZES)}.")
    shape = group_scale_shape(out_features, in_features, group_size)
    if packed.dtype not in GROUP_SCALE_DTYPES or tuple(packed.shape) != shape:
        raise ValueError(
            f"{name} is {packed.dtype} {tuple(packed.shape)}; groups of {group_size} inputs of a weight "
            f"({out_features}, {in_features}) have scales of torch.bfloat16 or torch.float16 {shape}."
        )
