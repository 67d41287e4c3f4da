"""How large a lesion is, whatever made it: sums over the elements before and after, and the record made of them.

    rel_l2        ||W' - W|| / ||W||
    cosine        <W, W'> / (||W|| ||W'||)
    changed       share of elements whose bits differ
    zero          share of elements that are zero afterwards
    sign_flipped  share of elements that changed their sign (a zero has none)
    levels        uni_quant: how many of its levels occur

Per tensor and for the whole group (sums of all tensors together; `levels` is the mean over tensors). Sums are taken in
float32 within a piece of a few 10,000 elements and in float64 across pieces, and written with 9 significant digits; a
number that does not exist (all weights zero, or not finite) is None. For a gain 1 + w the elements are those sums.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

SUMS = ("before", "product", "after", "difference", "changed", "zero", "flipped", "count")


def lesion_sums(before: np.ndarray, after: np.ndarray, work: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Return the sums of one piece, float64 [8], in the order of SUMS.

    Args:
        before, after: float32 or float64 [count]. work: scratch of their type, flags: scratch bool, [count] too.
    """
    bits = np.uint32 if before.dtype == np.float32 else np.uint64
    changed = np.count_nonzero(np.not_equal(before.view(bits), after.view(bits), out=flags))
    zero = np.count_nonzero(np.equal(after, 0, out=flags))
    sums = [np.add.reduce(np.multiply(before, before, out=work))]
    sums.append(np.add.reduce(np.multiply(before, after, out=work)))
    flipped = np.count_nonzero(np.less(work, 0, out=flags))
    sums.append(np.add.reduce(np.multiply(after, after, out=work)))
    np.subtract(after, before, out=work)
    sums.append(np.add.reduce(np.multiply(work, work, out=work)))
    return np.array([*sums, changed, zero, flipped, len(after)], dtype=np.float64)


def lesion_sums_torch(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the same sums of two float tensors [count] on any device, float64 [8], without waiting for the device."""
    bits = torch.int32 if before.dtype == torch.float32 else torch.int64
    product, difference = before * after, after - before
    sums = [
        (before * before).sum(dtype=torch.float64),
        product.sum(dtype=torch.float64),
        (after * after).sum(dtype=torch.float64),
        (difference * difference).sum(dtype=torch.float64),
        (before.view(bits) != after.view(bits)).sum().double(),
        (after == 0).sum().double(),
        (product < 0).sum().double(),
        torch.tensor(float(len(after)), dtype=torch.float64, device=after.device),
    ]
    return torch.stack(sums)


def describe(sums: np.ndarray, levels: float | None = None) -> dict[str, float | int | None]:
    """Return the numbers of the module's head from the sums of a tensor, or of several added together."""
    before, product, after, difference, changed, zero, flipped, count = (float(x) for x in sums)
    return {
        "rel_l2": _rounded(_ratio(math.sqrt(difference), math.sqrt(before)) if difference >= 0 else None),
        "cosine": _rounded(_ratio(product, math.sqrt(before) * math.sqrt(after))),
        "changed": _rounded(changed / count),
        "zero": _rounded(zero / count),
        "sign_flipped": _rounded(flipped / count),
        "levels": _rounded(levels),
    }


def total(all_sums: Sequence[np.ndarray], all_levels: Sequence[int | None]) -> dict[str, float | int | None]:
    """Return the numbers of a group of tensors."""
    known = [levels for levels in all_levels if levels is not None]
    return describe(np.sum(all_sums, axis=0), sum(known) / len(known) if known else None)


def _ratio(above: float, below: float) -> float | None:
    if not (math.isfinite(above) and math.isfinite(below)):
        return None
    return above / below if below > 0 else None


def _rounded(value: float | int | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None
