"""Groups of neighbouring inputs of a weight that share one scale per output row.

Sources: a scale per output and group of inputs, as in GPTQ (arXiv:2210.17323, section 5, "grouping") and in llama.cpp's
blocks; for ternary weights Ternary-Bonsai uses groups of 128.
Shapes: weight (O, I), scale (O, G), G = ceil(I / group_size): the last group may be shorter.
"""

from collections.abc import Callable, Iterator

import torch

GROUP_SIZES = (32, 64, 128)


def check_group(scale_axis: str, group_size: int | None) -> None:
    """Check that a group size comes with `scale_axis="group"`, and only with it.

    Raises:
        ValueError: one without the other, or a size that is not in `GROUP_SIZES`.
    """
    sizes = ", ".join(str(size) for size in GROUP_SIZES)
    if scale_axis != "group":
        if group_size is not None:
            raise ValueError(
                f"group_size={group_size!r} goes with scale_axis='group', not with scale_axis={scale_axis!r}."
            )
    elif type(group_size) is not int or group_size not in GROUP_SIZES:
        raise ValueError(f"group_size={group_size!r}: scale_axis='group' needs one of {sizes}.")


def count_groups(columns: int, group_size: int) -> int:
    """Return G, how many groups `columns` inputs make."""
    return -(-columns // group_size)


def column_ranges(columns: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) inputs of every group."""
    for first in range(0, columns, group_size):
        yield first, min(first + group_size, columns)


def spread(scale: torch.Tensor, columns: int, group_size: int | None) -> torch.Tensor:
    """Return a scale so that it multiplies codes (O, columns): (O, G) is repeated, others broadcast as they are."""
    if group_size is None:
        return scale
    return scale.repeat_interleave(group_size, 1)[:, :columns]


def map_groups(
    function: Callable[..., tuple[torch.Tensor, ...]], group_size: int, *weights: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Apply a function of rows to the groups of weights, as if each were a row of its own.

    Args:
        function: takes tensors (R, C), one of each weight, and returns tensors (R, C) or (R, 1).
        weights: each (O, I), or a scale (O, G) of one.

    Returns:
        What the function returned for all groups, as (O, I) and (O, G).
    """
    rows, columns = weights[0].shape
    whole = columns // group_size
    parts = [(slice(0, whole * group_size), slice(0, whole), whole)] if whole else []
    if columns % group_size:
        parts.append((slice(whole * group_size, columns), slice(whole, whole + 1), 1))
    results = []
    for inputs, groups, count in parts:
        taken = [weight[:, inputs if weight.shape[1] == columns else groups] for weight in weights]
        found = function(*[part.reshape(rows * count, -1) for part in taken])
        results.append([part.reshape(rows, -1) for part in found])
    if not results:
        return tuple([torch.empty_like(weight) for weight in weights])
    return tuple([torch.cat(part, 1) for part in zip(*results, strict=True)])
