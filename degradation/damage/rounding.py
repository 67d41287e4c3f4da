"""Rounding to the weight's type, once and the same everywhere; the bits of what is not a number."""

import numpy as np
import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
# quiet NaN, positive, empty payload
CANONICAL_NAN = {torch.float32: 0x7FC00000, torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless weights of that type can be damaged."""
    if dtype not in DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"{name} holds {str(dtype).removeprefix('torch.')}, which cannot be damaged; known: {known}.")


def round_once(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round float64 values to `dtype`, nearest with ties to even, in one step; return them as float32.

    By way of float32 bfloat16 would be rounded twice. Here the detour rounds to odd, which keeps what the second
    rounding must know (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    if dtype == torch.float32:
        return values.astype(np.float32)
    if dtype == torch.float16:
        return values.astype(np.float16).astype(np.float32)
    near = values.astype(np.float32)
    bits = near.view(np.uint32)
    # truncate what was rounded away from zero, then mark what is not exact in the last place
    away = np.abs(near.astype(np.float64)) > np.abs(values)
    inexact = near.astype(np.float64) != values
    finite = np.isfinite(values)
    bits = np.where(away & finite, bits - np.uint32(1), bits)
    bits = np.where(inexact & finite, bits | np.uint32(1), bits)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(finite, rounded & np.uint32(0xFFFF0000), near.view(np.uint32)).view(np.float32)


def settle_nans(before: torch.Tensor, after: torch.Tensor) -> None:
    """Give each NaN of `after` bits that do not depend on the processor's instructions, in place.

    A weight that was no number keeps its bits, payload included; one that has become none gets the canonical NaN.
    """
    bits = BITS[after.dtype]
    lost = torch.isnan(after)
    canonical = torch.full_like(after.view(bits), CANONICAL_NAN[after.dtype])
    settled = torch.where(torch.isnan(before), before.view(bits), canonical)
    after.view(bits).copy_(torch.where(lost, settled, after.view(bits)))
