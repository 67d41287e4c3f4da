"""Damage by quantisation: its levels, and the ranges that they divide."""

import math

import numpy as np
import pytest
import torch

from damaged_tensors import DTYPES, damaged, relative_error, same_bits, weights
from frankenlm.degradation.damage.layout import Layout
from frankenlm.degradation.damage.methods import MethodOptions, QuantDamage
from frankenlm.degradation.damage.tensor_summary import Ranges

# --- levels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 256, 512, 1024, 1 << 20])
def test_levels_and_ends(count, dtype):
    tensor = weights(100, 100, dtype=dtype)
    found = damaged(tensor, "uni_quant", count)
    assert len(torch.unique(found)) <= count
    assert found.min() == tensor.min() and found.max() == tensor.max()
    assert found[tensor == tensor.max()].unique().numel() == 1
    if count == 2:
        assert set(torch.unique(found).tolist()) == {tensor.min().item(), tensor.max().item()}


def test_last_level_is_exactly_the_maximum():
    rng = np.random.default_rng(0)
    for count in rng.integers(2, 2000, 300):
        low, high = np.sort(rng.standard_normal(2))
        table = QuantDamage(Ranges(np.array([low]), np.array([high])), int(count), None).table
        assert table[0] == low and table[-1] == high and len(table) == count and (np.diff(table) > 0).all()


def test_half_precision_keeps_what_float32_keeps():
    tensor = weights(1000, 1000)
    tensor[0, 0], tensor[500, 3] = 0.5, -0.35
    half = tensor.half()
    zeros = (damaged(half, "uni_quant", 256) == 0).sum()
    assert zeros == (damaged(half.float(), "uni_quant", 256) == 0).sum() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_tensor_stays(dtype):
    tensor = torch.full((7, 5), 0.3, dtype=dtype)
    for options in (MethodOptions(), MethodOptions(quant_range="per_row")):
        assert same_bits(damaged(tensor, "uni_quant", 4, options=options), tensor)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("method", ["uni_quant"])
def test_levels_of_infinities_are_refused(method, bad):
    tensor = weights(4, 4)
    tensor[2, 1] = bad
    with pytest.raises(ValueError, match="infinities or NaN"):
        damaged(tensor, method)


def test_reference_matrix_of_the_quantiser():
    """N(0, 0.02) with two outliers: what is left is decided by these."""
    tensor = weights(1000, 1000)
    tensor[0, 0], tensor[500, 3] = 0.5, -0.35
    for count, expected in {1024: 0.012, 256: 0.048, 64: 0.195, 16: 0.80, 4: 3.48}.items():
        assert relative_error(tensor, damaged(tensor, "uni_quant", count)) == pytest.approx(expected, rel=0.03)
    occupied = len(torch.unique(damaged(tensor, "uni_quant", 1024)))
    assert 220 < occupied < 245


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 8, 64, 256, 1024])
def test_cuda_finds_the_same_levels(count, dtype):
    """Of many elements some lie so near the border of two levels that the division's last bit decides."""
    tensor = weights(1024, 1024, dtype=dtype)
    assert same_bits(damaged(tensor.cuda(), "uni_quant", count).cpu(), damaged(tensor, "uni_quant", count))


# --- ranges


def test_symmetric_range():
    tensor = weights(50, 50) + 0.01
    found = torch.unique(damaged(tensor, "uni_quant", 5, options=MethodOptions(quant_symmetric=True)))
    most = tensor.abs().max().item()
    assert set(found.tolist()) <= {0.0, *(np.float32(sign * most * k / 2).item() for sign in (-1, 1) for k in (1, 2))}
    assert 0.0 in found.tolist()


def test_percentile_clips_the_range():
    tensor = weights(100, 100)
    tensor[0, 0] = 5.0
    bound = tensor.abs().reshape(-1).sort().values[math.ceil(0.99 * 10_000) - 1]
    found = damaged(tensor, "uni_quant", 9, options=MethodOptions(quant_percentile=99.0))
    assert found.max() == bound and found[0, 0] == bound and found.min() == -bound
    assert (found[tensor.abs() > bound].abs() == bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_range_of_each_row(dtype):
    tensor = weights(20, 300, dtype=dtype)
    tensor[3], tensor[5] = 0.25, -0.0
    found = damaged(tensor, "uni_quant", 7, options=MethodOptions(quant_range="per_row"))
    for row in range(20):
        assert same_bits(found[row], damaged(tensor[row], "uni_quant", 7))
    turned = Layout.whole((300, 20), transposed=True)
    columns = damaged(
        tensor.T.contiguous(), "uni_quant", 7, layout=turned, options=MethodOptions(quant_range="per_row")
    )
    assert same_bits(columns.T.contiguous(), found)


def test_rows_beyond_the_percentile_are_clipped():
    tensor = weights(20, 100)
    tensor[4] = 1 + torch.rand(100)
    bound = tensor.abs().reshape(-1).sort().values[math.ceil(0.9 * 2000) - 1]
    options = MethodOptions(quant_range="per_row", quant_percentile=90.0)
    found = damaged(tensor, "uni_quant", 5, options=options)
    assert (found[4] == bound).all() and found.abs().max() == bound


def test_range_of_128_inputs():
    tensor = weights(6, 300)
    found = damaged(tensor, "uni_quant", 7, options=MethodOptions(quant_range="group128"))
    for row in range(6):
        for start in (0, 128, 256):
            part = tensor[row, start : start + 128]
            assert same_bits(found[row, start : start + 128], damaged(part, "uni_quant", 7))
