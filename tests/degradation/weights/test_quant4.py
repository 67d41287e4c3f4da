"""Damage of models held in 4 bits by bitsandbytes, on the CPU: three modes, and packed bytes that stay as they are."""

import logging

import pytest
import torch

from damaged_tensors import damage_tensor
from frankenlm.degradation.damage import quant4
from frankenlm.degradation.damage.methods import MethodOptions
from frankenlm.degradation.damage.noise import field_key
from frankenlm.degradation.damage.quant4 import DenseTarget, dequantise, is_4bit, packed_crc
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.loading import open_model
from frankenlm.degradation.weights.restore import Baseline, apply_damage

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'frankenlm[lab]'")

VALUES = [f"model.layers.{layer}.self_attn.v_proj" for layer in range(4)]
TOKENS = torch.arange(24).view(2, 12)


# whole blocks of 64 in every row, as in real models
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def open_4bit(tiny_model, tiny_tokenizer, tmp_path_factory):
    """open_4bit(name, **arguments of open_model) -> a model of whole blocks, loaded in 4 bits on the CPU."""
    folders = {}

    def load(name="llama", widths=WIDE, **arguments):
        key = name, tuple(widths.values())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(name)
            tiny_model(name, **widths).save_pretrained(folders[key])
            tiny_tokenizer().save_pretrained(folders[key])
        return open_model(str(folders[key]), load_4bit=True, device="cpu", **arguments).model

    return load


def state_of(model):
    """Bits of everything: packed codes with their whole quantisation state, and dense tensors."""
    found = {}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            packed = attribute == "weight" and is_4bit(module)
            bits = packed_crc(parameter) if packed else parameter.detach().view(torch.int16).tolist()
            found[f"{name}.{attribute}"] = (type(parameter), parameter.data_ptr(), bits)
    return found


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def packed_names(model):
    return {name for name, module in model.named_modules() if is_4bit(module)}


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("mode", ["dense_target", "requantise"])
def test_packed_bytes_come_back(open_4bit, mode, quant_type, double_quant):
    model = open_4bit(quant_type=quant_type, double_quant=double_quant)
    before, answer, packed = state_of(model), logits(model), packed_names(model)
    assert set(VALUES) < packed and model.model.layers[0].mlp.up_proj.weight.quant_state.nested == double_quant
    with Baseline(model, "attn_only", quant_target_mode=mode) as baseline:
        assert packed_names(model) == (packed - set(VALUES) if mode == "dense_target" else packed)
        for method, level in (("mult_gauss", 0.5), ("ablation", 0.3), ("uni_quant", 8), ("add_gauss", 0.3)):
            lesion = apply_damage(baseline, method, level, 42, 0)
            assert lesion["rel_l2"] > 0.1
            assert all(_states_agree(module, double_quant) for module in model.modules() if is_4bit(module))
            assert not torch.equal(logits(model), answer)
            now = state_of(model)
            assert all(now[name] == state for name, state in before.items() if ".v_proj." not in name)
        baseline.verify()
        apply_damage(baseline, "ablation", 0, 42, 0)
        baseline.verify()
        assert torch.equal(logits(model), answer)
    assert state_of(model) == before and packed_names(model) == packed
    assert torch.equal(logits(model), answer)
    assert all(_states_agree(model.get_submodule(name), double_quant) for name in packed)


def _states_agree(module, nested):
    """The layer and its weight hold one quantisation state, of the kind it was loaded with."""
    state = module.weight.quant_state
    return module.quant_state is state and state.nested == nested


def test_undamaged_dense_layers_compute_the_same(open_4bit):
    model = open_4bit("qwen2")  # biases
    answer = logits(model)
    with Baseline(model, "attn_qkvo", quant_target_mode="dense_target") as baseline:
        layer = model.model.layers[1].self_attn.q_proj
        assert isinstance(layer, DenseTarget) and layer.weight.dtype == torch.bfloat16 and layer.bias is not None
        assert torch.equal(logits(model), answer)
        assert baseline.numel == sum(target.parameter.numel() for target in baseline.targets)
    assert torch.equal(logits(model), answer)


def test_dense_damage_is_that_of_the_dequantised_values(open_4bit):
    model = open_4bit()
    weight = dequantise(model.get_submodule(VALUES[2]).weight)
    with Baseline(model, "attn_only") as baseline:
        apply_damage(baseline, "mult_gauss", 0.01, 42, 1)
        key = field_key(42, 1, "mult_gauss", baseline.targets[2].canonical)
        assert torch.equal(model.get_submodule(VALUES[2]).weight, damage_tensor(weight, "mult_gauss", 0.01, key))


def test_hooks_stay(open_4bit):
    model, calls = open_4bit(), []
    model.get_submodule(VALUES[0]).register_forward_hook(lambda *_: calls.append(1))
    with Baseline(model, "attn_only"):
        logits(model)
    logits(model)
    assert calls == [1, 1]


def test_requantised_ablation_is_exact(open_4bit):
    """The code of zero survives, so requantising an ablated weight drops just these elements."""
    model = open_4bit()
    name = "model.layers.0.mlp.up_proj"
    before = dequantise(model.get_submodule(name).weight)
    with Baseline(model, "mlp_up", quant_target_mode="requantise") as baseline:
        apply_damage(baseline, "ablation", 0.5, 42, 0)
        target = baseline.targets[0]
        wanted = damage_tensor(before, "ablation", 0.5, field_key(42, 0, "ablation", target.canonical))
        found = dequantise(target.parameter)
        assert torch.equal(found == 0, wanted == 0)
        assert ((found.float() - wanted.float()).norm() / wanted.float().norm()) < 0.1


def test_requantised_noise_leaves_a_residual(open_4bit):
    model = open_4bit()
    with Baseline(model, "mlp_up", quant_target_mode="requantise") as baseline:
        target = baseline.targets[0]
        before = dequantise(target.parameter).float()
        lesion = apply_damage(baseline, "mult_gauss", 0.5, 42, 0)
        found = dequantise(target.parameter).float()
        wanted = damage_tensor(before.bfloat16(), "mult_gauss", 0.5, field_key(42, 0, "mult_gauss", target.canonical))
        assert 0.04 < ((found - wanted.float()).norm() / before.norm()) < 0.2
        # the record tells what the model computes with
        recorded = lesion["tensors"][0]["rel_l2"]
        assert recorded == pytest.approx(((found - before).norm() / before.norm()).item(), rel=1e-5)
        assert target.parameter.quant_state.blocksize == 64 and target.parameter.quant_type == "nf4"


def test_double_quantisation_drifts_when_requantised(open_4bit):
    """Why restoring never requantises."""
    layer = open_4bit(double_quant=True).model.layers[0].mlp.up_proj
    once = dequantise(layer.weight)
    again = quant4.requantised(layer, once)
    drift = (dequantise(again).float() - once.float()).norm() / once.float().norm()
    assert 0 < drift < 0.05 and packed_crc(again) != packed_crc(layer.weight)


def test_small_noise_is_refused(open_4bit):
    model = open_4bit()
    with Baseline(model, "attn_only", quant_target_mode="requantise") as baseline:
        for method in ("mult_gauss", "add_gauss"):
            with pytest.raises(ValueError, match="take levels from 0.2 on, or quant_target_mode='dense_target'"):
                apply_damage(baseline, method, 0.1, 42, 0)
        assert not baseline.damaged
        assert apply_damage(baseline, "mult_gauss", 0.1, 42, 0, options=MethodOptions(force_requantise=True))["rel_l2"]
        apply_damage(baseline, "mult_gauss", 0, 42, 0)
        apply_damage(baseline, "mult_gauss", 0.2, 42, 0)


def test_many_levels_are_remarked_upon(open_4bit, caplog):
    with Baseline(open_4bit(), "attn_only@L0", quant_target_mode="requantise") as baseline:
        with caplog.at_level(logging.WARNING):
            apply_damage(baseline, "uni_quant", 16, 42, 0)
            assert not caplog.records
            apply_damage(baseline, "uni_quant", 64, 42, 0)
        assert "uni_quant 64 does little by itself" in caplog.text


def test_a_part_of_a_fused_weight_is_not_requantised(open_4bit):
    model = open_4bit("phi3")
    before = state_of(model)
    with pytest.raises(ValueError, match="part of a fused weight"):
        Baseline(model, "attn_only", quant_target_mode="requantise")
    with Baseline(model, "attn_only", quant_target_mode="dense_target") as baseline:
        dense = model.model.layers[0].self_attn.qkv_proj.weight.detach().clone()
        apply_damage(baseline, "ablation", 1.0, 42, 0)
        now = model.model.layers[0].self_attn.qkv_proj.weight
        values = baseline.targets[0].select(now)
        assert not values.any() and torch.equal(now[: -len(values)], dense[: -len(values)])
    assert state_of(model) == before


def test_rows_without_whole_blocks_are_not_requantised(open_4bit):
    model = open_4bit(widths={"hidden_size": 32})
    with pytest.raises(ValueError, match="has 32 inputs, no multiple of its blocks of 64"):
        Baseline(model, "attn_only", quant_target_mode="requantise")
    answer = logits(model)
    with Baseline(model, "attn_only"):
        assert torch.equal(logits(model), answer)


def test_original_values_need_layers_left_out_at_load(open_4bit, tiny_model):
    with pytest.raises(ValueError, match="left out of quantisation"):
        Baseline(open_4bit(), "attn_only", quant_target_mode="dense_original")
    model = open_4bit(skip_modules=VALUES)
    assert not packed_names(model) & set(VALUES) and "model.layers.0.mlp.up_proj" in packed_names(model)
    original = tiny_model("llama", **WIDE).get_submodule(VALUES[1]).weight.bfloat16()
    assert torch.equal(model.get_submodule(VALUES[1]).weight, original)
    before = state_of(model)
    with Baseline(model, "attn_only", quant_target_mode="dense_original") as baseline:
        apply_damage(baseline, "mult_gauss", 0.05, 42, 0)
        key = field_key(42, 0, "mult_gauss", baseline.targets[1].canonical)
        assert torch.equal(model.get_submodule(VALUES[1]).weight, damage_tensor(original, "mult_gauss", 0.05, key))
    assert state_of(model) == before


@pytest.mark.parametrize("mode", quant4.QUANT_TARGET_MODES)
@pytest.mark.parametrize("group", ["embed_only", "norm"])
def test_dense_parts_of_a_4bit_model(open_4bit, group, mode):
    model = open_4bit()
    before, packed = state_of(model), packed_names(model)
    with Baseline(model, group, quant_target_mode=mode) as baseline:
        assert apply_damage(baseline, "mult_gauss", 0.05, 42, 0)["rel_l2"] > 0.01
        assert packed_names(model) == packed
    assert state_of(model) == before


def test_repacked_weights_are_refused(open_4bit):
    model = open_4bit()
    model.get_submodule(VALUES[3]).weight.quant_state.packing_format_for_cpu = True
    before = packed_names(model)
    for mode in ("dense_target", "requantise"):
        with pytest.raises(RuntimeError, match="repacked for a fast CPU path"):
            Baseline(model, "attn_only", quant_target_mode=mode)
        assert packed_names(model) == before


def test_changed_packed_bytes_are_noticed(open_4bit):
    model = open_4bit()
    baseline = Baseline(model, "attn_only", quant_target_mode="requantise")
    baseline.verify()
    apply_damage(baseline, "ablation", 0.5, 42, 0)
    baseline.verify()
    baseline.saved[1].weight.quant_state.absmax[0] *= 2
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.v_proj\.weight have changed"):
        baseline.verify()


def test_groups_count_elements_not_bytes(open_4bit, tiny_model):
    assert select_group(open_4bit(), "mlp_only").numel == select_group(tiny_model("llama", **WIDE), "mlp_only").numel
