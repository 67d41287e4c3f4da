"""Baselines of whole models: every bit comes back, damage does not add up, changes are noticed."""

import random

import pytest
import torch
from torch import nn

from frankenlm.degradation.damage.methods import METHODS, MethodOptions
from frankenlm.degradation.weights.restore import RESTORE_STRATEGIES, Baseline
from model_damage import LEVELS, bits_of, check_untouched, damage, raw

GROUPS = ["attn_only", "attn_qkvo", "mlp_down@first25%", "embed_only", "norm", "attn_k+mlp_up", "mlp_only@L1,3"]


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
