"""The methods of damage on single tensors: formulas by element, special values, statistics, refusals."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from damaged_tensors import (
    DTYPES,
    INT,
    KEY,
    LEVELS,
    damage_tensor,
    damaged,
    gaussians,
    relative_error,
    same_bits,
    special_values,
    weights,
)
from frankenlm.degradation.configs import METHODS as METHOD_NAMES
from frankenlm.degradation.damage.layout import Layout
from frankenlm.degradation.damage.methods import METHODS
from frankenlm.degradation.damage.noise import words
from frankenlm.degradation.damage.rounding import check_dtype, round_once

# --- formulas


def naive(tensor, method, level):
    """Each method as in the specification, an element at a time where that matters."""
    w, n = tensor.float().numpy().reshape(-1), tensor.numel()
    if method == "ablation":
        new = np.array([0 if r < math.floor(level * 2**32) else x for x, r in zip(w, words(KEY, 0, n), strict=True)])
    elif method == "mult_gauss":
        new = w * (np.float32(1) + np.float32(level) * gaussians(KEY, 0, n))
    elif method == "add_gauss":
        rms = math.sqrt(math.fsum(float(x) ** 2 for x in w) / n)
        new = w + np.float32(level * rms) * gaussians(KEY, 0, n)
    else:
        low, high = (Fraction(float(x)) for x in (w.min(), w.max()))
        step = (high - low) / (level - 1)
        new = np.array([float(low + round((Fraction(float(x)) - low) / step) * step) for x in w])
    return torch.from_numpy(new.astype(np.float32)).to(tensor.dtype).view(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_formula(method, dtype):
    tensor = weights(37, 29, dtype=dtype)
    expected = naive(tensor, method, LEVELS[method])
    found = damaged(tensor, method)
    assert not torch.equal(found, tensor)
    assert same_bits(found, expected)


def test_methods_are_those_of_the_configuration():
    assert set(METHODS) == set(METHOD_NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("method", "level"),
    [("mult_gauss", 0.0), ("ablation", 0), ("add_gauss", 0.0), ("uni_quant", 0), ("uni_quant", None)],
)
def test_baseline_level_leaves_every_byte(method, level, dtype):
    tensor = special_values(dtype)
    before = tensor.clone()
    found = damage_tensor(tensor, method, level, KEY)
    assert same_bits(found, before) and found.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("method", METHODS)
def test_damage_is_pure(method):
    tensor = weights(50, 40)
    before = tensor.clone()
    assert same_bits(damaged(tensor, method), damaged(tensor, method))
    assert same_bits(tensor, before)


@pytest.mark.parametrize("method", METHODS)
def test_gain_is_what_is_damaged(method):
    # sums with 1 are exact in float64, and w is not lost in them
    tensor = weights(500)
    tensor[7] = 1e-12
    found = damaged(tensor, method, layout=Layout.whole((500,), gain_offset=1.0))
    gain = 1 + tensor.double()
    noise = torch.from_numpy(gaussians(KEY, 0, 500))
    if method == "ablation":
        dropped = torch.from_numpy(words(KEY, 0, 500) < 0.3 * 2**32)
        assert same_bits(found, torch.where(dropped, torch.tensor(-1.0), tensor))
    elif method == "uni_quant":
        assert len(torch.unique(found)) <= 16 and found.max() == tensor.max() and found.min() == tensor.min()
    elif method == "mult_gauss":
        assert torch.allclose(1 + found.double(), gain * (1 + 0.3 * noise.double()), atol=1e-6)
    else:
        rms = gain.square().mean().sqrt()
        assert torch.allclose(1 + found.double(), gain + 0.3 * rms * noise, atol=1e-6)


# --- not numbers, infinities, zeros


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_keeps_its_bits(dtype, on_device):
    tensor = special_values(dtype)
    lost = torch.isnan(tensor)
    found = damaged(tensor, "mult_gauss", on_device=on_device)
    assert same_bits(found[lost], tensor[lost])
    assert torch.isinf(found[4]) and torch.signbit(found[6]) == torch.signbit(tensor[6])
    kept = words(KEY, 0, len(tensor)) >= 0.5 * 2**32
    assert kept.any() and not kept.all()
    found = damaged(tensor, "ablation", 0.5, on_device=on_device)
    assert same_bits(found[torch.from_numpy(kept)], tensor[torch.from_numpy(kept)])
    assert not found[torch.from_numpy(~kept)].view(INT[dtype]).any()  # +0, whatever it was


@pytest.mark.parametrize("on_device", [False, True])
def test_new_nan_is_the_canonical_one(on_device):
    # inf * 0: with sigma = 1/e the factor of the first element is exactly 0
    epsilon = gaussians(KEY, 0, 4096)
    place = int(np.flatnonzero((epsilon < 0) & (np.float32(1) + (np.float32(-1) / epsilon) * epsilon == 0))[0])
    tensor = torch.full((4096,), float("inf"), dtype=torch.bfloat16)
    found = damaged(tensor, "mult_gauss", float(np.float32(-1) / epsilon[place]), on_device=on_device)
    assert found.view(torch.int16)[place] == 0x7FC0


# --- statistics


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_share_that_is_dropped(share):
    tensor = torch.ones(1000, 1000)
    dropped = (damaged(tensor, "ablation", share) == 0).double().mean().item()
    assert abs(dropped - share) <= 4 * math.sqrt(share * (1 - share) / tensor.numel())


@pytest.mark.parametrize("on_device", [False, True])
def test_threshold_is_the_floor_and_excluded(on_device):
    drawn = words(KEY, 0, 1000)
    place = int(np.argsort(drawn)[500])
    word = int(drawn[place])
    # shares of which 2^32 is an exact multiple, and one between two words
    for above, kept in ((0, True), (0.75, True), (1, False)):
        found = damaged(torch.ones(1000), "ablation", (word + above) / 2**32, on_device=on_device)
        assert bool(found[place]) == kept and (found == 0).sum() == 500 + (not kept)


def test_masks_are_nested():
    tensor = torch.ones(500, 400)
    previous = torch.zeros(500, 400, dtype=torch.bool)
    for share in (0.001, 0.05, 0.3, 0.5, 0.8, 1.0):
        dropped = damaged(tensor, "ablation", share) == 0
        assert (dropped | ~previous).all() and dropped.sum() > previous.sum()
        previous = dropped


def test_noise_grows_in_one_direction():
    tensor = torch.ones(100_000)
    small, large = (damaged(tensor, "mult_gauss", sigma) - 1 for sigma in (0.1, 0.4))
    assert torch.allclose(4 * small, large, atol=1e-6)
    assert abs(large.std().item() - 0.4) < 0.005


def test_relative_sizes_of_the_methods():
    tensor = weights(1000, 1000)
    assert relative_error(tensor, damaged(tensor, "mult_gauss", 0.25)) == pytest.approx(0.25, rel=0.01)
    assert relative_error(tensor, damaged(tensor, "add_gauss", 0.25)) == pytest.approx(0.25, rel=0.01)
    assert relative_error(tensor, damaged(tensor, "ablation", 0.25)) == pytest.approx(0.5, rel=0.01)


# --- refusals and rounding


@pytest.mark.parametrize(
    ("method", "level", "message"),
    [
        ("uni_quant", 1, "at least 2"),
        ("uni_quant", 2.5, "whole numbers"),
        ("uni_quant", (1 << 20) + 1, "at most 1048576"),
        ("ablation", 1.5, "between 0 and 1"),
        ("mult_gauss", -0.1, "at least 0"),
        ("mult_gauss", float("nan"), "not a number"),
        ("mult_gauss", None, "not a number"),
        ("mult_gaus", 0.1, "Did you mean 'mult_gauss'"),
    ],
)
def test_wrong_levels(method, level, message):
    with pytest.raises(ValueError, match=message):
        damage_tensor(weights(4, 4), method, level, KEY)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_wrong_types(dtype):
    with pytest.raises(ValueError, match="cannot be damaged; known: float32, bfloat16, float16"):
        check_dtype("tensor", dtype)


def test_rounding_happens_once():
    # just above the middle of two bfloat16 numbers: by way of float32 the tie would go down to the even one
    values = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40, -(1 + 2**-8 + 2**-40), np.inf, -0.0])
    found = round_once(values, torch.bfloat16)
    assert found.tolist() == [1 + 2**-7, 1.0, 1 + 2**-7, -(1 + 2**-7), np.inf, 0.0] and np.signbit(found[-1])
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(2000) * 2.0 ** rng.integers(-110, 20, 2000)
    near = torch.from_numpy(round_once(drawn, torch.bfloat16)).bfloat16()
    for value, got, up, down in zip(
        drawn, near.tolist(), *(shifted(near, step).tolist() for step in (1, -1)), strict=True
    ):
        errors = [abs(Fraction(value) - Fraction(other)) for other in (got, up, down)]
        assert errors[0] == min(errors)


def shifted(tensor, step):
    return (tensor.view(torch.int16) + step).view(torch.bfloat16)
