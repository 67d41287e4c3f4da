"""Point-wise norms against their closed forms; what the statistical ones compute; who decays."""

import math

import pytest
import torch
from torch import nn

from frankenlm.modeling.norms import NORMS, Derf, DynamicTanh, RMSNorm, build_norm

WIDTH = 7


def random_norm(norm, enliven):
    return enliven(norm.double())


def per_element(function, x):
    return torch.tensor([function(value) for value in x.flatten().tolist()], dtype=torch.float64).reshape(x.shape)


def test_derf_is_a_scaled_error_function(enliven):
    norm, x = random_norm(Derf(WIDTH), enliven), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    argument = norm.alpha * x + norm.shift
    expected = norm.weight * per_element(math.erf, argument.detach()) + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-10, rtol=0)


def test_dynamic_tanh_is_a_scaled_tanh(enliven):
    norm, x = random_norm(DynamicTanh(WIDTH), enliven), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    expected = norm.weight * per_element(math.tanh, (norm.alpha * x).detach()) + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [Derf, DynamicTanh])
def test_gradient_of_the_input_in_closed_form(kind, enliven):
    norm = random_norm(kind(WIDTH), enliven)
    x = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    argument = norm.alpha * x + (norm.shift if kind is Derf else 0.0)
    if kind is Derf:
        slope = 2 * norm.alpha / math.sqrt(math.pi) * torch.exp(-(argument**2))
    else:
        slope = norm.alpha / torch.cosh(argument) ** 2
    torch.testing.assert_close(x.grad, (norm.weight * slope).detach(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_gradcheck_of_every_parameter(name, enliven):
    norm = random_norm(build_norm(name, WIDTH), enliven)
    x = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *parameters: norm(x), (x, *norm.parameters()))


@pytest.mark.parametrize(
    "name, count",
    [("derf", 2 * WIDTH + 2), ("dynamic_tanh", 2 * WIDTH + 1), ("layer_norm", 2 * WIDTH), ("rms_norm", WIDTH)],
)
def test_parameters_and_their_initial_values(name, count):
    norm = build_norm(name, WIDTH)
    assert sum(parameter.numel() for parameter in norm.parameters()) == count
    expected = {"weight": 1.0, "bias": 0.0, "alpha": 0.5, "shift": 0.0}
    for parameter_name, parameter in norm.named_parameters():
        assert (parameter == expected[parameter_name]).all(), parameter_name
    if name in ("derf", "dynamic_tanh"):
        assert build_norm(name, WIDTH, alpha=0.8).alpha.item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", sorted(NORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_far_out_and_dtype_kept(name, dtype):
    norm = build_norm(name, WIDTH).to(dtype)
    x = torch.tensor([1e4, -1e4, 0.0, 1e-4, -1.0, 3.0, 1e4], dtype=dtype, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    if name in ("derf", "dynamic_tanh"):
        assert y[0] == 1 and y[1] == -1


@pytest.mark.parametrize("kind", [Derf, DynamicTanh])
def test_features_do_not_see_each_other(kind, enliven):
    norm, x = random_norm(kind(WIDTH), enliven), torch.randn(2, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] += 5
    same = [0, 1, 2, 4, 5, 6]
    assert torch.equal(norm(changed)[:, same], norm(x)[:, same])


def test_statistical_norms(enliven):
    x = 3 * torch.randn(4, WIDTH, dtype=torch.float64) + 2
    rms = random_norm(RMSNorm(WIDTH), enliven)
    expected = rms.weight * x / ((x * x).sum(-1, keepdim=True) / WIDTH + 1e-6).sqrt()
    torch.testing.assert_close(rms(x), expected, atol=1e-10, rtol=0)
    layer = random_norm(build_norm("layer_norm", WIDTH, eps=0.1), enliven)
    centred = x - x.mean(-1, keepdim=True)
    expected = layer.weight * centred / ((centred**2).mean(-1, keepdim=True) + 0.1).sqrt() + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_saturation_is_the_share_beyond_two():
    derf, tanh = Derf(4, alpha=1.0), DynamicTanh(4, alpha=2.0)
    with torch.no_grad():
        derf.shift.fill_(0.5)
    x = torch.tensor([[1.4, 1.6, -2.4, -2.6], [0.0, 0.9, 1.1, -1.1]])
    assert derf.saturation(x).item() == pytest.approx(2 / 8)
    assert tanh.saturation(x).item() == pytest.approx(6 / 8)


@pytest.mark.parametrize("norm", ["derf", "dynamic_tanh"])
def test_alphas_before_attention_and_elsewhere(norm, tiny_model):
    model = tiny_model("retnet", norm, lively=False, norm_alpha_attn=0.8, norm_alpha_other=0.2).model
    for layer in model.layers:
        assert layer.norm1.alpha.item() == pytest.approx(0.8) and layer.norm2.alpha.item() == pytest.approx(0.2)
    assert model.norm_f.alpha.item() == pytest.approx(0.2)


@pytest.mark.parametrize("final", sorted(NORMS))
def test_the_final_norm_may_be_another_one(final, tiny_model):
    model = tiny_model("retnet", "derf", final_norm_type=final).model
    assert isinstance(model.norm_f, type(build_norm(final, WIDTH))) and isinstance(model.layers[0].norm1, Derf)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_norms_biases_gates_and_decays_do_not_decay(norm, tiny_model):
    pattern = ("retnet", "titan_attn", "mamba", "ode", "sigmoid_attn")
    model = tiny_model(pattern, norm, num_experts=4, ode_time_input=True, use_bias=True, lively=False)
    exempt = model.no_weight_decay_names()
    parameters = dict(model.named_parameters())
    assert exempt < set(parameters)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    must_not = {
        name for name in parameters if name not in linears and "embed_tokens" not in name and "conv" not in name
    }
    must_not |= {name for name in parameters if name.endswith("router.weight")}
    assert must_not <= exempt
    assert not any(name.endswith(("_proj.weight", "embed_tokens.weight")) for name in exempt)
