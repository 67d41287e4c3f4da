"""Baselines of whole models: every bit comes back, damage does not add up, slices touch only themselves."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from frankenlm.degradation.configs import level_key
from frankenlm.degradation.groups import Group, select_group
from frankenlm.degradation.methods import METHODS, MethodOptions, damage_tensor
from frankenlm.degradation.noise import field_key
from frankenlm.degradation.restore import RESTORE_STRATEGIES, Baseline, apply_damage
from frankenlm.degradation.saved import layout_of

LEVELS = {"mult_gauss": (0.05, 0.3, 1.4), "ablation": (0.05, 0.5, 1.0), "uni_quant": (2, 16, 1024), "add_gauss": (0.2,)}
GROUPS = ["attn_only", "attn_qkvo", "mlp_down@first25%", "embed_only", "norm", "attn_k+mlp_up", "mlp_only@L1,3"]
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
NUMBERS = {"rel_l2", "cosine", "changed", "zero", "sign_flipped", "levels"}


def bits_of(model):
    """name -> (bits, address) of every parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (raw(tensor).clone(), tensor.data_ptr()) for name, tensor in tensors.items()}


def raw(tensor):
    return tensor.detach().view(BITS.get(tensor.dtype, tensor.dtype))


def check_untouched(model, before, but=()):
    now = bits_of(model)
    assert now.keys() == before.keys()
    for name, (bits, pointer) in before.items():
        assert now[name][1] == pointer, f"{name} has moved"
        assert name in but or torch.equal(now[name][0], bits), f"{name} has changed"


def damage(baseline, method="mult_gauss", level=0.3, seed=42, repeat=0, **kwargs):
    return apply_damage(baseline, method, level, seed, repeat, **kwargs)


def plant_special_values(model):
    """Put NaN with payloads and zeros of both signs into matrices, where mult_gauss and ablation meet them."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            flat = raw(parameter).view(-1)
            one = 0x7F800001 if parameter.dtype == torch.float32 else 0x7F81
            flat[5], flat[17] = one, one + 7
            flat[6] = torch.iinfo(flat.dtype).min  # -0


# --- restoring


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.bfloat16), ("llama_tied", torch.float32), ("gemma3", torch.float16)]
)
def test_every_bit_comes_back_after_100_random_cells(tiny_model, name, dtype):
    model = tiny_model(name, dtype=dtype)
    plant_special_values(model)
    before, random_cells = bits_of(model), random.Random(0)
    done = 0
    for group in GROUPS:
        with Baseline(model, group, strategy=random_cells.choice(RESTORE_STRATEGIES[:2])) as baseline:
            for _ in range(15):
                has_nan = any(torch.isnan(saved.rows).any() for saved in baseline.saved)
                method = random_cells.choice(("mult_gauss", "ablation") if has_nan else list(METHODS))
                level = random_cells.choice(LEVELS[method])
                lesion = damage(baseline, method, level, repeat=random_cells.randrange(10))
                assert baseline.damaged and (lesion["changed"] > 0 or level == 1024)  # as fine as bfloat16 is there
                check_untouched(model, before, but={target.name for target in baseline.targets})
                done += 1
                if random_cells.random() < 0.2:
                    baseline.restore()
                    check_untouched(model, before)
                    baseline.verify()
        check_untouched(model, before)
    assert done >= 100


def test_damage_does_not_add_up(tiny_model):
    model, fresh = tiny_model("llama"), tiny_model("llama")
    with Baseline(model, "mlp_only") as baseline, Baseline(fresh, "mlp_only") as other:
        for method in ("ablation", "mult_gauss", "uni_quant", "add_gauss"):
            damage(baseline, method, LEVELS[method][0])
        lesion = damage(baseline)
        assert damage(other) == lesion
        for (name, one), two in zip(model.named_parameters(), fresh.parameters(), strict=True):
            assert torch.equal(one, two), name


@pytest.mark.parametrize(("method", "level"), [("mult_gauss", 0), ("ablation", 0.0), ("uni_quant", None)])
def test_level_of_the_baseline_restores(tiny_model, method, level):
    model = tiny_model("llama")
    raw(model.model.layers[0].self_attn.v_proj.weight)[0, :3] = 0
    before = bits_of(model)
    with Baseline(model, "attn_only") as baseline:
        damage(baseline)
        lesion = damage(baseline, method, level, level_index=0)
        check_untouched(model, before)
        assert not baseline.damaged
    numbers = (lesion["rel_l2"], lesion["cosine"], lesion["changed"], lesion["sign_flipped"], lesion["levels"])
    assert numbers == (0.0, 1.0, 0.0, 0.0, None)
    assert lesion["zero"] == pytest.approx(3 / baseline.numel) and lesion["level_value"] == level


def test_errors_inside_still_restore(tiny_model):
    model = tiny_model("llama_tied")
    before = bits_of(model)
    with pytest.raises(KeyError, match="generation"), Baseline(model, "embed_only") as baseline:
        damage(baseline)
        raise KeyError("generation")
    check_untouched(model, before)


def test_nothing_is_written_when_a_tensor_is_refused(tiny_model):
    model = tiny_model("llama")
    model.model.layers[2].self_attn.v_proj.weight.data[3, 4] = float("inf")
    before = bits_of(model)
    with Baseline(model, "attn_only") as baseline:
        with pytest.raises(ValueError, match=r"layers\.2\.self_attn\.v_proj\.weight holds infinities"):
            damage(baseline, "uni_quant", 16)
        with pytest.raises(ValueError, match="add_gauss"):
            damage(baseline, "add_gauss", 0.1)
        with pytest.raises(ValueError, match="legacy_rng=True works with"):
            damage(baseline, "uni_quant", 16, options=MethodOptions(legacy_rng=True))
        check_untouched(model, before)


def test_heads_are_checked_before_writing(tiny_model):
    model = tiny_model("llama")
    before = bits_of(model)
    with Baseline(model, "attn_only+mlp_up") as baseline:
        with pytest.raises(ValueError, match="unit='head'"):
            damage(baseline, options=MethodOptions(unit="head"))
        check_untouched(model, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "subset_in_ram"}, "restore_strategy='subset_in_ram' is not known. Did you mean"),
        ({"quant_target_mode": "dense"}, "quant_target_mode='dense'"),
        ({"group": "attn_onli"}, "attn_only"),
    ],
)
def test_wrong_arguments(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        Baseline(tiny_model("llama"), **{"group": "attn_only", **arguments})


def test_weights_of_other_types_are_refused(tiny_model):
    with pytest.raises(ValueError, match="float64, which cannot be damaged"):
        Baseline(tiny_model("llama").double(), "attn_only")


# --- verification


def test_verify_finds_changes(tiny_model):
    model = tiny_model("llama")
    baseline = Baseline(model, "attn_only")
    baseline.verify()
    weight = model.model.layers[1].self_attn.v_proj.weight.data
    weight[0, 0] += 1
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.v_proj\.weight has changed though nothing"):
        baseline.verify()
    weight[0, 0] -= 1
    weight.copy_(baseline.saved[1].rows.view(weight.shape))
    damage(baseline)
    baseline.verify()
    baseline.saved[2].rows[0, 7] += 1
    with pytest.raises(RuntimeError, match=r"saved values of model\.layers\.2\.self_attn\.v_proj\.weight"):
        baseline.verify()


def test_moved_weights_are_noticed(tiny_model):
    model = tiny_model("llama")
    baseline = Baseline(model, "attn_only")
    module = model.model.layers[0].self_attn.v_proj
    module.weight = nn.Parameter(module.weight.detach().clone())
    with pytest.raises(RuntimeError, match="has moved in memory"):
        damage(baseline)


# --- strategies


@pytest.mark.parametrize("strategy", RESTORE_STRATEGIES)
def test_strategies_give_the_same_weights(tiny_dir, strategy):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_dir("gpt2"))  # slices of columns
    before = bits_of(model)
    expected = {}
    for chosen in ("subset_in_memory", strategy):
        with Baseline(model, "attn_only", strategy=chosen) as baseline:
            damage(baseline, "uni_quant", 8)
            damage(baseline)
            expected[chosen] = bits_of(model)
            baseline.verify()
        check_untouched(model, before)
    assert all(torch.equal(expected["subset_in_memory"][name][0], expected[strategy][name][0]) for name in before)


def test_map_cannot_change_the_file(tiny_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_dir("llama"))
    file = tiny_dir("llama") / "model.safetensors"
    content = file.read_bytes()
    with Baseline(model, "mlp_only+embed_only", strategy="mmap_checkpoint") as baseline:
        for saved in baseline.saved:
            saved.rows[0, 0] = 7.0  # copy on write
    assert file.read_bytes() == content


def test_map_of_another_checkpoint_is_refused(tiny_dir, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_dir("llama")
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    changed = AutoModelForCausalLM.from_pretrained(folder)
    changed.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1
    cases = [
        (half, folder, "stored as F32 but loaded as torch.bfloat16"),
        (changed, folder, r"layers\.3\.mlp\.up_proj\.weight has other values"),
        (tiny_model("llama"), None, "are not known; use subset_in_memory"),
        (tiny_model("llama"), tmp_path, "no safetensors files"),
        (tiny_model("llama", intermediate_size=64), folder, "holds no text/layers"),
    ]
    for model, checkpoint, message in cases:
        with pytest.raises(ValueError, match=message):
            Baseline(model, "mlp_up", strategy="mmap_checkpoint", checkpoint=checkpoint)


# --- which elements


FUSED = {
    "phi3": ("attn_only", "attn_k", "mlp_gate"), "gpt2": ("attn_only", "attn_k"), "gpt_neox": ("attn_only", "attn_k"),
    "mixtral": ("mlp_experts",), "qwen3_moe": ("mlp_experts",),
}  # fmt: skip


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


# --- tied embeddings


@pytest.mark.parametrize("policy", ["both", "input_only", "output_only"])
def test_tied_embeddings(tiny_model, policy):
    model = tiny_model("llama_tied")
    before = bits_of(model)
    table = model.model.embed_tokens.weight.detach().clone()
    with Baseline(model, "embed_only", tied_policy=policy) as baseline:
        damage(baseline)
        changed = [not torch.equal(weight, table) for weight in (model.model.embed_tokens.weight, model.lm_head.weight)]
        assert changed == [policy != "output_only", policy != "input_only"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_untouched(model, before)


# --- gains


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


# --- the lesion record


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
