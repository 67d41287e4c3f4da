"""Importance against definitions by hand, and against a head that was planted to carry a task."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from frankenlm.degradation import get_config
from frankenlm.degradation.answers.rendering import render_prompts
from frankenlm.degradation.configs import IMPORTANCES
from frankenlm.degradation.targeting.answered import ANSWER, answer_greedily, answer_loss
from frankenlm.degradation.targeting.importance import measure_importance
from frankenlm.degradation.weights.groups import select_group
from frankenlm.degradation.weights.model_checks import check_group
from frankenlm.degradation.weights.restore import Baseline
from frankenlm.degradation.weights.units import find_units

TEXTS = ("say a", "say d", "say g")


@pytest.fixture(scope="module")
def asked(planted):
    """asked(texts) -> prompts with the planted model's answers."""

    def make(texts=TEXTS):
        rows = render_prompts(texts, planted.tokenizer, max_length=64).prompts
        stops = frozenset(planted.model.config.eos_token_id)
        return answer_greedily(planted.model, [row.ids for row in rows], stops)

    return make


def scores(model, group, unit, measure, answered):
    with Baseline(model, group) as baseline:
        table = find_units(baseline.group, unit)
        return measure_importance(model, baseline, table, measure, answered)


def test_the_planted_model_does_its_task(planted, asked):
    answers = [each.ids[0, each.start :].tolist() for each in asked()]
    letters = [planted.tokenizer(text[-1]).input_ids[-1] for text in TEXTS]
    assert [answer[0] for answer in answers] == letters and all(len(answer) == 2 < ANSWER for answer in answers)


@pytest.mark.parametrize("measure", ["gradient", "activation", "ablation"])
@pytest.mark.parametrize("group", ["attn_o", "attn_o+attn_q"])
def test_the_planted_head_is_the_most_important_for_its_task(measure, group, planted, asked):
    found = scores(planted.model, group, "head", measure, asked())
    assert found.shape == (3, 8)
    if measure == "activation":  # what a head carries says nothing of whether it is read; still it is no small one
        assert (found.mean(0).argsort()[::-1][:4] == planted.unit).any()
    else:
        assert (found.argmax(1) == planted.unit).all()
        assert measure == "gradient" or found[:, planted.unit].min() > 3 * np.delete(found, planted.unit, axis=1).max()


def test_magnitude_is_the_norm_of_the_weights(planted):
    found = scores(planted.model, "attn_o", "head", "magnitude", [])
    weights = [layer.self_attn.o_proj.weight.detach().view(32, 4, 8) for layer in planted.model.model.layers]
    expected = torch.cat([weight.norm(dim=(0, 2)) for weight in weights])
    assert found.shape == (1, 8) and np.allclose(found[0], expected, rtol=1e-5)
    joint = scores(planted.model, "mlp_only", "neuron", "magnitude", [])
    mlp = planted.model.model.layers[1].mlp
    parts = torch.cat([mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5]])
    assert joint[0, 48 + 5] == pytest.approx(float(parts.detach().norm()), rel=1e-5)


def test_a_gain_counts_as_what_it_scales_by(tiny_model, asked):
    """Gemma's norms scale by 1 + w: the gain goes to 0 where w is -1, and that is what a lesion does."""
    model, answered = tiny_model("gemma3"), asked()
    found = scores(model, "norm", "element", "magnitude", [])
    weight = select_group(model, "norm").targets[0].parameter
    gains = (1 + weight.detach()).abs()
    assert np.allclose(found[0, : len(gains)], gains, rtol=1e-5)
    slope = scores(model, "norm", "element", "gradient", answered[:1])
    (gradient,) = torch.autograd.grad(answer_loss(model, answered[0]), [weight])
    assert np.allclose(slope[0, : len(gains)], (gradient * gains).abs(), rtol=1e-4, atol=1e-6)


def test_gradient_is_what_removing_a_little_changes(planted, asked):
    """By a finite difference: the weights of a unit scaled by 1 - t."""
    model, answered, t = planted.model, asked(), 1e-3
    found = scores(model, "mlp_only", "neuron", "gradient", answered)
    mlp = model.model.layers[0].mlp
    parts = [mlp.gate_proj.weight[9], mlp.up_proj.weight[9], mlp.down_proj.weight[:, 9]]
    losses = {}
    with torch.no_grad():
        for sign in (1, -1):
            kept = [part.clone() for part in parts]
            for part in parts:
                part.mul_(1 + sign * t)
            losses[sign] = float(answer_loss(model, answered[1]).double())
            for part, before in zip(parts, kept, strict=True):
                part.copy_(before)
    assert found[1, 9] == pytest.approx(abs(losses[1] - losses[-1]) / (2 * t), rel=0.05, abs=2e-4)


def test_activation_is_the_root_mean_square_of_what_is_carried(planted, asked):
    model, answered = planted.model, asked()
    found = scores(model, "mlp_only", "neuron", "activation", answered)
    carried = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: carried.append(args[0]))
    with torch.no_grad():
        model(answered[2].ids)
    handle.remove()
    expected = carried[0][0].square().mean(0).sqrt()
    assert np.allclose(found[2, 48:], expected, rtol=1e-4)
    element = scores(model, "mlp_down", "element", "activation", answered[2:])
    weights = model.model.layers[1].mlp.down_proj.weight.detach().abs()
    assert np.allclose(element[0, 32 * 48 :].reshape(32, 48), weights * expected, rtol=1e-3)
    values = scores(model, "attn_only", "head", "activation", answered)
    assert values.shape == (3, 4) and (values > 0).all()


def test_a_layer_that_runs_several_times_has_the_mean_of_all_its_rows(tiny_model, asked):
    model = tiny_model("frankenstein", num_loops=2)
    answered = asked()
    found = scores(model, "mlp_down", "neuron", "activation", answered)
    with Baseline(model, "mlp_down") as baseline:
        layer = baseline.group.targets[0].module
    carried = []
    handle = layer.register_forward_pre_hook(lambda _, args: carried.append(args[0][0]))
    with torch.no_grad():
        for each in answered:
            model(each.ids)
    handle.remove()
    assert len(carried) == 2 * len(answered)
    assert np.allclose(found[0, :48], torch.cat(carried[:2]).square().mean(0).sqrt(), rtol=1e-4)
    ablated = scores(model, "mlp_down", "neuron", "ablation", answered)
    mean = torch.cat(carried)[:, 7].mean()
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0].index_fill(-1, torch.tensor([7]), mean),))
    with torch.no_grad():
        changed = float(answer_loss(model, answered[0]))
    handle.remove()
    with torch.no_grad():
        assert ablated[0, 7] == pytest.approx(changed - float(answer_loss(model, answered[0])), abs=1e-5)


def test_ablation_replaces_by_the_mean_over_tokens(planted, asked):
    model, answered = planted.model, asked()
    found = scores(model, "mlp_down", "neuron", "ablation", answered)
    layer = model.model.layers[0].mlp.down_proj
    carried = []
    handle = layer.register_forward_pre_hook(lambda _, args: carried.append(args[0][0]))
    with torch.no_grad():
        for each in answered:
            model(each.ids)
    handle.remove()
    mean = torch.cat(carried)[:, 7].mean()
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0].index_fill(-1, torch.tensor([7]), mean),))
    with torch.no_grad():
        changed = float(answer_loss(model, answered[0]))
    handle.remove()
    with torch.no_grad():
        assert found[0, 7] == pytest.approx(changed - float(answer_loss(model, answered[0])), abs=1e-5)


@pytest.mark.parametrize("measure", ["gradient", "ablation", "magnitude"])
def test_experts_and_elements_have_importance(measure, tiny_model, asked):
    model, answered = tiny_model("mixtral"), asked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = scores(model, "mlp_experts", "expert", measure, answered)
    assert found.shape == (1 if measure == "magnitude" else 3, 16) and np.isfinite(found).all() and found.std() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    if measure != "ablation":
        assert scores(model, "attn_only", "element", measure, answered).shape == (1, 4 * 16 * 32)


def test_what_cannot_be_watched_says_so(tiny_model, asked):
    with pytest.raises(ValueError, match="no linear layer that could be watched"):
        scores(tiny_model("mixtral"), "mlp_experts", "expert", "activation", asked())


@pytest.mark.parametrize(
    ("group", "unit", "importance", "message"),
    [
        ("embed_only+attn_o", "row", "activation", "embed_tokens.weight is no linear layer that could be watched"),
        ("embed_only", "column", "ablation", "embed_tokens.weight is no linear layer"),
        ("attn_o", "head", "gradient", "importance='gradient': model.layers.0.self_attn.o_proj.weight is offloaded"),
        ("attn_o", "head", "activation", None),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_asked(group, unit, importance, message, tiny_model):
    model = cpu_offload(tiny_model("llama"), torch.device("cpu"))
    fields = {"method": "targeted", "group": group, "unit": unit, "importance": importance, "levels": (0, 1)}
    config = get_config("smoke") | fields
    if message is None:
        check_group("tiny", model, model.config, config)
    else:
        with pytest.raises(ValueError, match=message):
            check_group("tiny", model, model.config, config)


def test_every_measure_is_tried():
    assert set(IMPORTANCES) == {"gradient", "activation", "ablation", "magnitude"}
