"""Variants of the methods: units that share a draw, exact counts, draws of the original program."""

import numpy as np
import pytest
import torch

from damaged_tensors import KEY, damaged
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.damage.layout import Layout
from frankenlm.degradation.damage.methods import MethodOptions, legacy_damage
from frankenlm.degradation.damage.noise import words
from frankenlm.degradation.damage.words import exact_limit

# --- units and exact counts


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


# --- draws as in alewain/llm-degrad


def test_legacy_draws_are_coarse():
    ones = torch.ones(1000, 1000, dtype=torch.bfloat16)
    noisy = legacy_damage(ones, "mult_gauss", 0.001, torch.Generator().manual_seed(42))
    assert len(torch.unique(noisy)) == 3
    kept = legacy_damage(ones, "ablation", 0.05, torch.Generator().manual_seed(42))
    assert (kept == 0).double().mean().item() == pytest.approx(0.0522, abs=0.0015)
    again = legacy_damage(ones, "ablation", 0.05, torch.Generator().manual_seed(42))
    assert torch.equal(kept, again)
