"""Single tensors and their damage, for the tests of the methods."""

import numpy as np
import torch

from frankenlm.degradation.damage.methods import damage_tensor
from frankenlm.degradation.damage.noise import field_key

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LEVELS = {"mult_gauss": 0.3, "ablation": 0.3, "uni_quant": 16, "add_gauss": 0.3}
KEY = field_key(42, 0, "any", "text/layers.0.mlp.up_proj.weight")
INT = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def weights(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def special_values(dtype):
    """NaN of several payloads and signs, infinities, zeros of both signs, subnormals, and plain numbers, twice."""
    if dtype == torch.float32:
        bits = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x3F800000]
        return torch.from_numpy(np.array(bits * 2, dtype=np.uint32).view(np.float32))
    one = 0x3F80 if dtype == torch.bfloat16 else 0x3C00
    nan = 0x7F80 if dtype == torch.bfloat16 else 0x7C00
    bits = [nan + 1, nan + 64, 0x7FFF, 0x8000 + nan + 3, nan, 0x8000 + nan, 0x8000, 0, 1, one]
    return torch.from_numpy(np.array(bits * 2, dtype=np.uint16).view(np.int16)).view(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(INT[a.dtype]), b.view(INT[b.dtype]))


def damaged(tensor, method, level=None, **kwargs):
    return damage_tensor(tensor, method, LEVELS[method] if level is None else level, KEY, **kwargs)


def relative_error(before, after):
    return ((after.double() - before.double()).norm() / before.double().norm()).item()
