"""The methods of damage on single tensors: formulas by element, exact bits, statistics, variants."""

import math
import multiprocessing
import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from frankenlm.degradation.blocks import damage_rows
from frankenlm.degradation.configs import METHODS as METHOD_NAMES
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.layout import Layout, draw_words
from frankenlm.degradation.methods import (
    METHODS,
    MethodOptions,
    QuantDamage,
    Request,
    damage_tensor,
    legacy_damage,
    prepare,
)
from frankenlm.degradation.noise import field_key, gaussians, words
from frankenlm.degradation.rounding import round_once
from frankenlm.degradation.summary import Ranges, Summary
from frankenlm.degradation.words import exact_limit

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LEVELS = {"mult_gauss": 0.3, "ablation": 0.3, "uni_quant": 16, "add_gauss": 0.3}
KEY = field_key(42, 0, "any", "text/layers.0.mlp.up_proj.weight")
INT = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def weights(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(INT[a.dtype]), b.view(INT[b.dtype]))


def damaged(tensor, method, level=None, **kwargs):
    return damage_tensor(tensor, method, LEVELS[method] if level is None else level, KEY, **kwargs)


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


# --- the same bits however the work is cut


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_pieces_threads_or_device_path(method, dtype):
    tensor = weights(301, 777, dtype=dtype)
    expected = damaged(tensor, method)
    for how in ({"size": 1000}, {"size": 1 << 24}, {"threads": 3}, {"size": 4096, "threads": 2}, {"on_device": True}):
        assert same_bits(damaged(tensor, method, **how), expected), how


@pytest.mark.parametrize("method", METHODS)
def test_lesion_sums_do_not_depend_on_threads(method):
    tensor = weights(301, 777)
    layout = Layout.whole(tensor.shape)
    rows = tensor.view(1, -1)
    sums = []
    for how in ({"threads": 1}, {"threads": 3}, {"on_device": True}):
        request = Request(LEVELS[method], MethodOptions(), KEY, layout, tensor.dtype, Summary("t", rows, layout))
        sums.append(damage_rows(rows, torch.empty_like(rows), layout, *prepare(method, request), **how))
    assert np.array_equal(sums[0], sums[1])
    assert np.allclose(sums[0], sums[2], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_shards_of_rows_and_of_columns(method):
    tensor = weights(64, 48)
    expected = damaged(tensor, method)
    whole = Summary("whole", tensor.view(1, -1), Layout.whole(tensor.shape))
    for part in range(4):
        rows = Layout.sliced((64, 48), (64, 48), 0, 16 * part, 16)
        shard = tensor[16 * part : 16 * part + 16].contiguous()
        assert same_bits(damaged(shard, method, layout=rows, summary=whole), expected[16 * part : 16 * part + 16])
        columns = Layout.sliced((64, 48), (64, 48), 1, 12 * part, 12)
        shard = tensor[:, 12 * part : 12 * part + 12].contiguous()
        found = damaged(shard, method, layout=columns, summary=whole)
        assert same_bits(found, expected[:, 12 * part : 12 * part + 12].contiguous())


@pytest.mark.parametrize("method", ["mult_gauss", "add_gauss", "ablation"])
def test_noise_does_not_depend_on_the_type(method):
    half = weights(200, 100, dtype=torch.bfloat16)
    # bfloat16 values are exact in float32: only the last rounding may differ
    assert same_bits(damaged(half, method), damaged(half.float(), method).bfloat16())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_the_same_bits(method, dtype):
    for tensor in (weights(301, 777, dtype=dtype), special_values(dtype)):
        if method == "uni_quant" and not torch.isfinite(tensor).all():
            continue
        assert same_bits(damaged(tensor.cuda(), method).cpu(), damaged(tensor, method))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 8, 64, 256, 1024])
def test_cuda_finds_the_same_levels(count, dtype):
    """Of many elements some lie so near the border of two levels that the division's last bit decides."""
    tensor = weights(1024, 1024, dtype=dtype)
    assert same_bits(damaged(tensor.cuda(), "uni_quant", count).cpu(), damaged(tensor, "uni_quant", count))


# --- not numbers, infinities, zeros


def special_values(dtype):
    """NaN of several payloads and signs, infinities, zeros of both signs, subnormals, and plain numbers, twice."""
    if dtype == torch.float32:
        bits = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x3F800000]
        return torch.from_numpy(np.array(bits * 2, dtype=np.uint32).view(np.float32))
    one = 0x3F80 if dtype == torch.bfloat16 else 0x3C00
    nan = 0x7F80 if dtype == torch.bfloat16 else 0x7C00
    bits = [nan + 1, nan + 64, 0x7FFF, 0x8000 + nan + 3, nan, 0x8000 + nan, 0x8000, 0, 1, one]
    return torch.from_numpy(np.array(bits * 2, dtype=np.uint16).view(np.int16)).view(dtype)


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


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("method", ["uni_quant"])
def test_levels_of_infinities_are_refused(method, bad):
    tensor = weights(4, 4)
    tensor[2, 1] = bad
    with pytest.raises(ValueError, match="infinities or NaN"):
        damaged(tensor, method)


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


def relative_error(before, after):
    return ((after.double() - before.double()).norm() / before.double().norm()).item()


def test_relative_sizes_of_the_methods():
    tensor = weights(1000, 1000)
    assert relative_error(tensor, damaged(tensor, "mult_gauss", 0.25)) == pytest.approx(0.25, rel=0.01)
    assert relative_error(tensor, damaged(tensor, "add_gauss", 0.25)) == pytest.approx(0.25, rel=0.01)
    assert relative_error(tensor, damaged(tensor, "ablation", 0.25)) == pytest.approx(0.5, rel=0.01)


def test_reference_matrix_of_the_quantiser():
    """N(0, 0.02) with two outliers: what is left is decided by these."""
    tensor = weights(1000, 1000)
    tensor[0, 0], tensor[500, 3] = 0.5, -0.35
    for count, expected in {1024: 0.012, 256: 0.048, 64: 0.195, 16: 0.80, 4: 3.48}.items():
        assert relative_error(tensor, damaged(tensor, "uni_quant", count)) == pytest.approx(expected, rel=0.03)
    occupied = len(torch.unique(damaged(tensor, "uni_quant", 1024)))
    assert 220 < occupied < 245


# --- uni_quant


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
        damaged(torch.ones(4, dtype=dtype), "ablation")


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


# --- variants


def test_options_from_a_configuration():
    config = get_config("iq_it") | {"quant_symmetric": True, "unit": "row", "exact_count": True}
    assert MethodOptions.from_config(config) == MethodOptions(quant_symmetric=True, unit="row", exact_count=True)
    assert MethodOptions.from_config(get_config("iq_it")) == MethodOptions()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "rows"}, "unit='rows' is not known. Did you mean 'row'"),
        ({"quant_range": "per_col"}, "quant_range='per_col'"),
        ({"noise_coupling": "none"}, "noise_coupling='none'"),
        ({"quant_percentile": 100.0}, "between 50 and 100"),
        ({"legacy_rng": True, "unit": "row"}, "legacy_rng=True"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError, match=message):
        MethodOptions(**fields)


@pytest.mark.parametrize("method", ["ablation", "mult_gauss"])
@pytest.mark.parametrize(
    ("unit", "grouped"),
    [
        ("row", lambda ratio: ratio),
        ("column", lambda ratio: ratio.T),
        ("head", lambda ratio: ratio.reshape(8, -1)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_units_share_one_draw(method, unit, grouped, transposed):
    # 64 outputs in 8 heads of 8, 48 inputs
    shape = (48, 64) if transposed else (64, 48)
    layout = Layout.whole(shape, transposed=transposed, head_dim=8, head_axis=int(transposed))
    tensor = torch.ones(shape)
    found = damaged(tensor, method, layout=layout, options=MethodOptions(unit=unit))
    ratio = grouped(found.T if transposed else found)
    assert (ratio == ratio[:, :1]).all()
    different = len(torch.unique(ratio[:, 0]))
    assert different == (2 if method == "ablation" else len(ratio))
    # the word of unit k is word k of the field
    if method == "ablation":
        assert ((ratio[:, 0] == 0).numpy() == (words(KEY, 0, len(ratio)) < 0.3 * 2**32)).all()


def test_heads_along_the_inputs():
    layout = Layout.whole((10, 64), head_dim=16, head_axis=1)
    found = damaged(torch.ones(10, 64), "mult_gauss", layout=layout, options=MethodOptions(unit="head"))
    assert len(torch.unique(found)) == 4 and (found.view(10, 4, 16) == found[:1].view(1, 4, 16)[:, :, :1]).all()


def test_units_of_a_tensor_of_experts():
    found = damaged(torch.ones(3, 10, 20), "mult_gauss", options=MethodOptions(unit="row"))
    assert (found == found[:, :, :1]).all() and len(torch.unique(found)) == 30
    found = damaged(torch.ones(3, 10, 20), "mult_gauss", options=MethodOptions(unit="column"))
    assert (found == found[:, :1]).all() and len(torch.unique(found)) == 60


def test_heads_must_be_known():
    with pytest.raises(ValueError, match="no heads are known"):
        damaged(torch.ones(4, 4), "ablation", options=MethodOptions(unit="head"))


@pytest.mark.parametrize("unit", ["element", "row"])
def test_exact_count(unit):
    tensor = torch.ones(100, 300)
    options = MethodOptions(exact_count=True, unit=unit)
    previous = torch.zeros(100, 300, dtype=torch.bool)
    for share in (0.0001, 0.005, 0.12345, 0.5, 0.99999, 1.0):
        dropped = damaged(tensor, "ablation", share, options=options) == 0
        wanted = round(share * 30_000) if unit == "element" else 300 * round(share * 100)
        assert dropped.sum() == wanted and (dropped | ~previous).all()
        previous = dropped
    drawn = words(KEY, 0, 30_000)
    half = damaged(tensor, "ablation", 0.5, options=MethodOptions(exact_count=True)).reshape(-1).numpy() == 0
    assert drawn[half].max() < drawn[~half].min()


class FewWords:
    """A field of five different words, so that most are equal to others, cut into three parts."""

    drawn = np.random.default_rng(0).choice(np.array([0, 3, 1 << 16, (1 << 16) + 1, 2**32 - 1], dtype=np.uint32), 1000)

    def each(self):
        for start, stop in ((0, 300), (300, 301), (301, 1000)):
            yield self.drawn[start:stop], lambda start=start, stop=stop: np.arange(start, stop)


@pytest.mark.parametrize("share", [0.0004, 0.001, 0.1, 0.2, 0.333, 0.5, 0.799, 0.8, 0.9, 0.999, 1.0])
def test_exact_count_breaks_ties_by_index(share):
    field = FewWords.drawn
    threshold, last = exact_limit(FewWords(), share)
    low = (field < threshold) | ((field == threshold) & (np.arange(1000) <= last))
    order = np.lexsort((np.arange(1000), field))
    assert sorted(order[: round(1000 * share)]) == np.flatnonzero(low).tolist()


def test_exact_count_of_a_slice():
    layout = Layout.sliced((64, 48), (64, 48), 1, 5, 7)
    found = damaged(torch.ones(64, 7), "ablation", 0.25, layout=layout, options=MethodOptions(exact_count=True))
    assert (found == 0).sum() == 64 * 7 // 4


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


# --- gains 1 + w


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


# --- draws as in alewain/llm-degrad


def test_legacy_draws_are_coarse():
    ones = torch.ones(1000, 1000, dtype=torch.bfloat16)
    noisy = legacy_damage(ones, "mult_gauss", 0.001, torch.Generator().manual_seed(42))
    assert len(torch.unique(noisy)) == 3
    kept = legacy_damage(ones, "ablation", 0.05, torch.Generator().manual_seed(42))
    assert (kept == 0).double().mean().item() == pytest.approx(0.0522, abs=0.0015)
    again = legacy_damage(ones, "ablation", 0.05, torch.Generator().manual_seed(42))
    assert torch.equal(kept, again)


def test_legacy_draws_have_no_field():
    with pytest.raises(ValueError, match="legacy_rng=True"):
        damaged(weights(4, 4), "ablation", options=MethodOptions(legacy_rng=True))


# --- layouts

SLICES = [
    ((64, 48), (64, 48), 0, 16, 5), ((64, 48), (64, 48), 1, 5, 7), ((60, 7), (4, 3, 5, 7), 1, 2, 1),
    ((9, 11), (9, 11), 1, 3, 1), ((5, 4097), (5, 4097), 1, 1, 4095), ((6, 10, 8), (6, 2, 5, 8), 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("size", [8, 1000, 1 << 16])
@pytest.mark.parametrize("arguments", SLICES)
def test_layout_of_a_slice(arguments, size):
    shape, view_shape, dim, start, length = arguments
    layout = Layout.sliced(*arguments)
    # a part of a larger storage, as a flattened parameter is
    index = torch.arange(-3, math.prod(shape))[3:].view(shape)
    expected = index.view(view_shape).narrow(dim, start, length).reshape(-1)
    rows = layout.rows_of(index)
    assert torch.equal(rows.reshape(-1), expected) and layout.numel == len(expected)
    places, drawn = torch.zeros(rows.shape, dtype=torch.int64), torch.zeros(rows.shape, dtype=torch.int64)
    for piece in layout.pieces(size):
        assert torch.equal(piece.of(rows).reshape(-1), torch.from_numpy(layout.flat_index(piece)))
        assert piece.start == 0 or layout.starts(piece)[0] % size == 0
        piece.of(places).add_(1)
        out = np.empty(piece.numel, dtype=np.uint32)
        draw_words(layout, KEY, piece, out)
        piece.of(drawn).copy_(torch.from_numpy(out.astype(np.int64)).view(piece.of(drawn).shape))
    assert (places == 1).all()
    field = torch.from_numpy(words(KEY, 0, math.prod(shape)).astype(np.int64))
    assert torch.equal(drawn.reshape(-1), field[expected])


def test_words_over_the_border_of_the_counter():
    layout = Layout((1 << 20, 1 << 15), 4, 100, 1 << 20, offset=2**34 - (1 << 20) - 50)
    for piece in layout.pieces():
        out = np.empty(piece.numel, dtype=np.uint32)
        draw_words(layout, KEY, piece, out)
        expected = [words(KEY, int(start), 100) for start in layout.starts(piece)]
        assert np.array_equal(out, np.concatenate(expected))


@pytest.mark.parametrize(
    "arguments", [((4, 4), (4, 5), 0, 0, 1), ((4, 4), (4, 4), 1, 2, 3), ((4, 4), (4, 4), 0, -1, 1)]
)
def test_wrong_slices(arguments):
    with pytest.raises(ValueError, match="slice"):
        Layout.sliced(*arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads and fork: what is tested
def test_threads_work_in_a_forked_process():
    tensor = weights(500, 400)
    expected = damaged(tensor, "ablation", threads=2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(damage_tensor, (tensor, "ablation", 0.3, KEY), {"threads": 2}).get(timeout=60)
    assert same_bits(found, expected)
