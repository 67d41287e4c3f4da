"""Single tensors and their damage, for the tests of the methods."""

import numpy as np
import torch

from frankenlm.degradation.damage.blocks import damage_rows
from frankenlm.degradation.damage.layout import Layout
from frankenlm.degradation.damage.methods import DEFAULTS, TensorRequest, is_baseline, prepare
from frankenlm.degradation.damage.noise import field_key, gaussian_tables, look_up, words
from frankenlm.degradation.damage.tensor_summary import Summary

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


def gaussians(key, start, count):
    """Standard normal numbers of the elements start ... start + count - 1 of a field."""
    out = np.empty(count, dtype=np.float32)
    look_up(words(key, start, count), *gaussian_tables(), out)
    return out


def damage_tensor(tensor, method, level, key, *, options=DEFAULTS, layout=None, summary=None, **how):
    """Return a tensor damaged as the lab damages a parameter; `layout`: where it lies within a larger one."""
    layout = layout or Layout.whole(tuple(tensor.shape))
    before = tensor.detach().reshape(layout.outer, layout.length)
    summary = summary or Summary("tensor", before, layout)
    damage = None
    if not is_baseline(method, level):
        damage, drawn = prepare(method, TensorRequest(level, options, key, layout, tensor.dtype, summary))
    if damage is None:
        return tensor.detach().clone()
    after = torch.empty_like(before)
    damage_rows(before, after, layout, damage, drawn, **how)
    return after.view(tensor.shape)


def damaged(tensor, method, level=None, **kwargs):
    return damage_tensor(tensor, method, LEVELS[method] if level is None else level, KEY, **kwargs)


def relative_error(before, after):
    return ((after.double() - before.double()).norm() / before.double().norm()).item()
