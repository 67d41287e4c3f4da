"""The noise a weight gets depends on its place, the level and the repeat, and on nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

from damaged_tensors import damage_tensor
from frankenlm.degradation.configs import level_key
from frankenlm.degradation.damage.methods import MethodOptions
from frankenlm.degradation.damage.noise import field_key
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.restore import Baseline
from frankenlm.degradation.weights.targets import Group
from frankenlm.degradation.weights.undamaged import layout_of
from model_damage import damage

# --- which elements


FUSED = {
    "phi3": ("attn_only", "attn_k", "mlp_gate"),
    "gpt2": ("attn_only", "attn_k"),
    "gpt_neox": ("attn_only", "attn_k"),
    "mixtral": ("mlp_experts",),
    "qwen3_moe": ("mlp_experts",),
}


@pytest.mark.parametrize(("name", "group"), [(name, group) for name, groups in FUSED.items() for group in groups])
@pytest.mark.parametrize("method", ["mult_gauss", "ablation"])
def test_a_slice_gets_the_noise_of_its_place_in_the_whole(tiny_model, name, group, method):
    model = tiny_model(name)
    selected = select_group(model, group)
    before = {target.name: target.parameter.detach().clone() for target in selected.targets}
    with Baseline(model, selected) as baseline:
        damage(baseline, method)
        for target in baseline.targets:
            whole = damage_tensor(before[target.name], method, 0.3, field_key(42, 0, method, target.canonical))
            expected = before[target.name].clone()
            target.select(expected).copy_(target.select(whole))
            assert torch.equal(target.parameter, expected)
            assert not torch.equal(target.select(whole), target.select(before[target.name]))


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "mixtral", "llama"])
def test_layout_is_that_of_the_target(tiny_model, name):
    for group in ("attn_qkvo", "embed_only"):
        for target in select_group(tiny_model(name), group).targets:
            layout = layout_of(target)
            runs = [(int(row[0]), len(row)) for row in layout.rows_of(torch.arange(int(np.prod(target.shape))))]
            assert runs == list(target.runs()) and layout.numel == target.numel


def test_order_of_the_parameters_does_not_matter(tiny_model):
    models = tiny_model("llama"), tiny_model("llama")
    groups = [select_group(model, "attn_qkvo") for model in models]
    turned = Group(groups[1].name, groups[1].targets[::-1])
    with Baseline(models[0], groups[0]) as one, Baseline(models[1], turned) as two:
        lesions = damage(one), damage(two)
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert lesions[0]["tensors"] == lesions[1]["tensors"][::-1]


def test_one_layer_gets_the_noise_it_gets_among_all(tiny_model):
    models = tiny_model("llama"), tiny_model("llama")
    with Baseline(models[0], "mlp_up") as everything, Baseline(models[1], "mlp_up@L2") as one:
        damage(everything), damage(one)
        weights = [model.model.layers[2].mlp.up_proj.weight for model in models]
        assert torch.equal(*weights)


class Wrapper(nn.Module):
    """As DDP holds a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [Wrapper, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_do_not_matter(tiny_model, wrap):
    models = tiny_model("llama"), tiny_model("llama")
    with Baseline(models[0], "attn_only") as bare, Baseline(wrap(models[1]), "attn_only") as wrapped:
        assert damage(bare)["tensors"] == damage(wrapped)["tensors"]
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_text_and_multimodal_loads_get_the_same_noise(tiny_model):
    text, both = tiny_model("gemma3"), tiny_model("gemma3_mm")
    for one, two in zip(select_group(text, "attn_only").targets, select_group(both, "attn_only").targets, strict=True):
        two.parameter.data.copy_(one.parameter)
    with Baseline(text, "attn_only") as first, Baseline(both, "attn_only") as second:
        assert damage(first) == damage(second)
        for one, two in zip(first.targets, second.targets, strict=True):
            assert torch.equal(one.parameter, two.parameter)


# --- noise of levels and repeats


def value_weights(model, **kwargs):
    with Baseline(model, "attn_only") as baseline:
        damage(baseline, "ablation", **kwargs)
        return model.model.layers[0].self_attn.v_proj.weight == 0


def test_coupling_of_levels(tiny_model):
    model, independent = tiny_model("llama"), MethodOptions(noise_coupling="independent")
    mild, severe = (value_weights(model, level=level) for level in (0.2, 0.4))
    assert (severe | ~mild).all()
    alone = [value_weights(model, level=level, options=independent) for level in (0.2, 0.4)]
    assert not (alone[1] | ~alone[0]).all()
    # a level's noise depends on the level, not on its place among others
    again = value_weights(model, level=0.2, options=independent, level_index=7)
    assert torch.equal(again, alone[0])
    name = "text/layers.0.self_attn.v_proj.weight"
    key = field_key(42, 0, "ablation", name, level_key(0.2))
    assert torch.equal(damage_tensor(torch.ones_like(mild).float(), "ablation", 0.2, key) == 0, alone[0])


def test_repeats_and_seeds_are_independent(tiny_model):
    model = tiny_model("llama")
    masks = [value_weights(model, level=0.5, seed=seed, repeat=repeat) for seed, repeat in ((42, 0), (42, 1), (43, 0))]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert 0.4 < (masks[one] == masks[two]).double().mean() < 0.6


def test_legacy_draws_follow_one_another(tiny_model):
    model = tiny_model("llama", dtype=torch.bfloat16)
    weights = [layer.self_attn.v_proj.weight.detach().clone() for layer in model.model.layers]
    with Baseline(model, "attn_only") as baseline:
        damage(baseline, "mult_gauss", 0.3, repeat=2, options=MethodOptions(legacy_rng=True))
        generator = torch.Generator().manual_seed(44)
        for layer, before in zip(model.model.layers, weights, strict=True):
            noise = torch.normal(1.0, 0.3, (1, before.numel()), dtype=torch.bfloat16, generator=generator)
            assert torch.equal(layer.self_attn.v_proj.weight, before * noise.view_as(before))
