"""The ODE block: orders of its solvers, its relation to plain attention, and what its field contains."""

import math

import pytest
import torch
from torch import nn

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixer_attention import StandardAttention
from frankenlm.modeling.mixer_ode import OdeBlock, integrate
from frankenlm.modeling.norms import build_norm

WIDTH, HEADS, LENGTH = 12, 2, 7


def context(is_causal=False, **inputs):
    return SequenceContext.build(batch_size=2, length=LENGTH, device=torch.device("cpu"), is_causal=is_causal, **inputs)


def build(enliven, gain=1.0, **options):
    """A lively block, its lively norm and a stream, in float64. Parameters do not depend on solver and steps."""
    block = enliven(OdeBlock(WIDTH, HEADS, position_type="rope", **options).double(), gain)
    norm = enliven(build_norm("layer_norm", WIDTH).double())
    torch.manual_seed(2)
    return block, norm, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


def end_state(block, norm, x, is_causal=False):
    with torch.no_grad():
        return x + block(x, context(is_causal), 0, norm)[0]


def observed_orders(error):
    return [math.log2(error(steps) / error(2 * steps)) for steps in (8, 16, 32)]


@pytest.mark.parametrize("solver, order", [("euler", 1), ("rk4", 4)])
def test_order_on_a_smooth_field_with_a_known_solution(solver, order):
    """dz/dt = -2 t z^2 has z(1) = 1 / (1 + 1/z(0))."""
    z0 = torch.tensor([0.3, 1.2, 2.0], dtype=torch.float64)

    def error(steps):
        end = integrate(lambda t, z: -2 * float(t) * z**2, z0, solver, steps)
        return (end - 1 / (1 + 1 / z0)).norm().item()

    for observed in observed_orders(error):
        assert observed == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("rk4", 4)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_order_with_attention_as_the_field(solver, order, is_causal, enliven):
    def run(solver, steps):
        return end_state(*build(enliven, 0.7, solver=solver, steps=steps, time_input=True), is_causal)

    exact = run("rk4", 256)
    for observed in observed_orders(lambda steps: (run(solver, steps) - exact).norm().item()):
        assert observed == pytest.approx(order, abs=0.3)


def test_more_steps_converge_and_both_solvers_to_the_same(enliven):
    exact = end_state(*build(enliven, solver="rk4", steps=128))
    errors = [(end_state(*build(enliven, steps=steps)) - exact).norm() for steps in (1, 2, 4, 16, 64, 256)]
    assert all(after < before for before, after in zip(errors[1:], errors[2:], strict=False))
    assert errors[-1] < 0.02 * exact.norm()
    start = build(enliven)[2]
    assert (exact - start).norm() > 0.3 * start.norm(), "the field moves something"


@pytest.mark.parametrize("is_causal", [False, True])
def test_one_euler_step_is_a_residual_attention_block(is_causal, enliven):
    block, norm, x = build(enliven, solver="euler", steps=1)
    plain = StandardAttention(WIDTH, HEADS, position_type="rope").double()
    plain.load_state_dict(block.attention.state_dict())
    with torch.no_grad():
        delta, _ = plain(norm(x), context(is_causal), 0)
    torch.testing.assert_close(end_state(block, norm, x, is_causal), x + delta, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_classic_runge_kutta_tableau(steps, enliven):
    block, norm, x = build(enliven, solver="rk4", steps=steps, time_input=True)
    assert block.tau.abs().min() > 0

    def field(t, z):
        return block.attention(norm(z), context(), 0)[0] + t * block.tau

    h, z = 1 / steps, x
    with torch.no_grad():
        for step in range(steps):
            t = step * h
            k1 = field(t, z)
            k2 = field(t + h / 2, z + h / 2 * k1)
            k3 = field(t + h / 2, z + h / 2 * k2)
            k4 = field(t + h, z + h * k3)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(end_state(block, norm, x), z, atol=1e-10, rtol=0)


@pytest.mark.parametrize("solver, steps, evaluations", [("euler", 3, 3), ("rk4", 2, 8)])
def test_number_of_evaluations(solver, steps, evaluations, enliven):
    block, norm, x = build(enliven, solver=solver, steps=steps)
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    end_state(block, norm, x)
    assert len(calls) == evaluations


def test_parameters_do_not_grow_with_the_steps():
    for solver, steps in (("euler", 1), ("rk4", 4)):
        block = OdeBlock(WIDTH, HEADS, solver=solver, steps=steps)
        assert sum(parameter.numel() for parameter in block.parameters()) == 4 * WIDTH**2
    assert not OdeBlock(WIDTH, HEADS, time_input=True).tau.any()


def test_no_dropout_inside_the_field(tiny_model, tokens):
    model, ids = tiny_model("ode", attention_dropout=0.9, dropout=0.0), tokens(2, 13)
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model.train()(ids).logits, expected)


def test_one_dropout_on_what_the_block_adds(tiny_model, tokens):
    """In training a dropped feature of the ODE branch keeps the stream's value exactly."""
    model, ids = tiny_model("ode", dropout=0.5).train(), tokens(4, 13)
    model.model.embeddings.dropout.p = 0.0
    layer, seen = model.model.layers[0], {}
    layer.norm2.register_forward_pre_hook(lambda module, args: seen.update(after=args[0]))
    layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(before=args[0]), with_kwargs=True)
    model(ids)
    kept = (seen["after"] == seen["before"]).float().mean().item()
    assert kept == pytest.approx(0.5, abs=0.05)


def test_bf16_accumulates_in_float32(enliven):
    """Sixty-four small steps on a large stream, each below the spacing of bf16 there: none may be rounded away."""
    block, norm, x = build(enliven, gain=0.5, steps=64)
    x = (64 + 4 * x).bfloat16()
    exact = end_state(block, norm, x.double()) - x.double()
    half = OdeBlock(WIDTH, HEADS, position_type="rope", steps=64)
    half.load_state_dict(block.state_dict())
    with torch.no_grad():
        actual, _ = half.bfloat16()(x, context(), 0, norm.bfloat16())
    assert actual.dtype == torch.bfloat16 and exact.abs().max() < 16
    assert (actual.double() - exact).norm() <= 0.1 * exact.norm()


def test_the_norm_belongs_to_the_field(enliven):
    block, norm, x = build(enliven, steps=2)
    assert not torch.allclose(end_state(block, norm, x), end_state(block, nn.Identity(), x))
