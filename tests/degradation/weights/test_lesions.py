"""The lesion record says what damage did to the weights."""

import json

import pytest
import torch

from frankenlm.degradation.damage.methods import METHODS
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.restore import Baseline
from model_damage import LEVELS, damage

NUMBERS = {"rel_l2", "cosine", "changed", "zero", "sign_flipped", "levels"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_lesion_record(tiny_model, method, dtype):
    model, level = tiny_model("llama", dtype=dtype), LEVELS[method][-1]
    before = [target.parameter.detach().double().view(-1) for target in select_group(model, "attn_only").targets]
    with Baseline(model, "attn_only") as baseline:
        lesion = damage(baseline, method, level, repeat=3, level_index=2)
        after = [target.parameter.detach().double().view(-1) for target in baseline.targets]
    assert json.loads(json.dumps(lesion, allow_nan=False)) == lesion
    head = {"group": "attn_only", "method": method, "level_value": level, "level_index": 2, "repeat_index": 3}
    assert head.items() <= lesion.items() and lesion["seed"] == 45 and lesion["elements"] == baseline.numel
    names = [f"text/layers.{layer}.self_attn.v_proj.weight" for layer in range(4)]
    assert [part["name"] for part in lesion["tensors"]] == names
    for part, one, two in zip(lesion["tensors"], before, after, strict=True):
        check_numbers(part, one, two, method)
        assert part["elements"] == len(one)
    if method == "uni_quant":
        assert lesion["levels"] == sum(part["levels"] for part in lesion["tensors"]) / 4
    check_numbers(lesion, torch.cat(before), torch.cat(after), method, per_tensor=False)


def check_numbers(found, before, after, method, per_tensor=True):
    expected = {
        "rel_l2": ((after - before).norm() / before.norm()).item(),
        "cosine": torch.nn.functional.cosine_similarity(before, after, dim=0).item() if after.any() else None,
        "changed": (after != before).double().mean().item(),
        "zero": (after == 0).double().mean().item(),
        "sign_flipped": (after * before < 0).double().mean().item(),
    }
    assert found.keys() >= NUMBERS
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-9)), name
    if method == "uni_quant":
        assert 2 <= found["levels"] <= 1024 and (not per_tensor or found["levels"] >= len(torch.unique(after)))
    else:
        assert found["levels"] is None


def test_largest_weights_that_are_dropped(tiny_model):
    model = tiny_model("llama")
    with Baseline(model, "mlp_down") as baseline:
        before = [target.parameter.detach().clone().view(-1) for target in baseline.targets]
        lesion = damage(baseline, "ablation", 0.5)
        seen = set()
        for part, target, weight in zip(lesion["tensors"], baseline.targets, before, strict=True):
            largest = weight.abs().argsort(descending=True)[:8]
            gone = (target.parameter.view(-1)[largest] == 0).tolist()
            assert part["extremes_dropped"] == [rank for rank, zero in enumerate(gone, start=1) if zero]
            seen |= set(part["extremes_dropped"])
        assert seen
        assert "extremes_dropped" not in damage(baseline)["tensors"][0]


def test_record_of_weights_that_are_not_finite(tiny_model):
    model = tiny_model("llama")
    model.model.layers[0].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with Baseline(model, "attn_only") as baseline:
        lesion = damage(baseline)
    json.dumps(lesion, allow_nan=False)
    assert lesion["rel_l2"] is None and lesion["tensors"][0]["cosine"] is None
    assert lesion["tensors"][1]["rel_l2"] == pytest.approx(0.3, rel=0.2)


def test_norms_that_scale_by_one_plus_weight(tiny_model):
    model = tiny_model("gemma3")
    before = model.model.norm.weight.detach().clone()
    with Baseline(model, "norm") as baseline:
        lesion = damage(baseline, "ablation", 1.0)
        assert (model.model.norm.weight == -1).all()
        assert lesion["zero"] == 1.0 and lesion["rel_l2"] == 1.0 and lesion["cosine"] is None
        assert lesion["tensors"][0]["extremes_dropped"] == list(range(1, 9))
    with Baseline(model, "norm", norm_gain=False) as baseline:
        damage(baseline, "ablation", 1.0)
        assert (model.model.norm.weight == 0).all()
    assert torch.equal(model.model.norm.weight, before)
