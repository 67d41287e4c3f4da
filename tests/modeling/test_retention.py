"""The linear recurrence in its three forms, and retention against its definition in float64."""

import math

import pytest
import torch

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixer_retention import Retention, retention_log_decay
from frankenlm.modeling.scan_linear import linear_scan_chunked, linear_scan_naive, linear_scan_parallel

CLOSE = {"atol": 1e-10, "rtol": 0}
every_length = pytest.mark.parametrize("length", [1, 3, 21, 64, 67])
every_chunk = pytest.mark.parametrize("chunk", [1, 4, 8, 64])


def scan_definition(q, k, v, log_decay):
    """S_t = a_t S_{t-1} + k_t^T v_t, o_t = q_t S_t; q, k (B, L, G, K), v (B, L, H, V), log_decay (B, L, H)."""
    batch, length, heads, width = v.shape
    share = heads // q.shape[2]
    outputs = torch.zeros_like(v)
    states = torch.zeros(batch, heads, k.shape[-1], width, dtype=v.dtype)
    for b in range(batch):
        for h in range(heads):
            state = torch.zeros(k.shape[-1], width, dtype=v.dtype)
            for t in range(length):
                state = math.exp(log_decay[b, t, h]) * state + torch.outer(k[b, t, h // share], v[b, t, h])
                outputs[b, t, h] = q[b, t, h // share] @ state
            states[b, h] = state
    return outputs, states


def random_scan(length, groups=2, heads=4, dtype=torch.float64):
    q, k = torch.randn(2, 2, length, groups, 3, dtype=dtype).unbind(0)
    v = torch.randn(2, length, heads, 5, dtype=dtype)
    return q, k, v, -2 * torch.rand(2, length, heads, dtype=dtype)


@every_length
@every_chunk
def test_three_forms_agree(length, chunk):
    inputs = random_scan(length)
    expected, expected_state = scan_definition(*inputs)
    naive, naive_state = linear_scan_naive(*inputs)
    chunked, chunked_state = linear_scan_chunked(*inputs, chunk)
    for output in (naive, chunked, linear_scan_parallel(*inputs)):
        torch.testing.assert_close(output, expected, **CLOSE)
    for state in (naive_state, chunked_state):
        torch.testing.assert_close(state, expected_state, **CLOSE)


@pytest.mark.parametrize("length", [7, 21])
@every_chunk
def test_gradients_agree(length, chunk):
    inputs = random_scan(length)
    weight = torch.randn(2, length, 4, 5, dtype=torch.float64)

    def gradients(form):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = form(*leaves)
        output = output[0] if isinstance(output, tuple) else output
        return torch.autograd.grad((output * weight).sum(), leaves)

    expected = gradients(linear_scan_naive)
    for form in (linear_scan_parallel, lambda *x: linear_scan_chunked(*x, chunk)):
        for actual, reference in zip(gradients(form), expected, strict=True):
            torch.testing.assert_close(actual, reference, **CLOSE)


@pytest.mark.parametrize("split", [1, 8, 13])
@every_chunk
def test_a_sequence_may_be_continued(split, chunk):
    inputs = random_scan(21)
    whole, end = linear_scan_chunked(*inputs, chunk)
    first, state = linear_scan_chunked(*(x[:, :split] for x in inputs), chunk)
    second, final = linear_scan_chunked(*(x[:, split:] for x in inputs), chunk, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)
    torch.testing.assert_close(final, end, **CLOSE)


@every_chunk
def test_longer_than_any_segment(chunk):
    inputs = random_scan(1100, groups=1, heads=2)
    inputs = (*inputs[:3], 0.02 * inputs[3])
    expected, state = linear_scan_naive(*inputs)
    actual, end = linear_scan_chunked(*inputs, chunk)
    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(end, state, **CLOSE)


@pytest.mark.parametrize("rate", [-1e-6, -60.0, -1000.0])
def test_extreme_decays_stay_finite(rate):
    inputs = [x.float().requires_grad_() for x in random_scan(21)[:3]]
    log_decay = torch.full((2, 21, 4), rate, requires_grad=True)
    output, state = linear_scan_chunked(*inputs, log_decay, 8)
    (output.sum() + state.sum()).backward()
    assert output.isfinite().all() and all(x.grad.isfinite().all() for x in (*inputs, log_decay))


@pytest.mark.parametrize("side", ["left", "right"])
@every_chunk
def test_identity_steps_at_pads_keep_the_state(side, chunk):
    inputs, pads = random_scan(13), 11
    padded = [torch.cat((x, 0 * x[:, :pads]) if side == "right" else (0 * x[:, :pads], x), 1) for x in inputs]
    padded[2] = padded[2] + 7 * (padded[2] == 0)  # values at pads do not matter, since the keys there are zero
    expected, state = linear_scan_chunked(*inputs, chunk)
    actual, padded_state = linear_scan_chunked(*padded, chunk)
    real = slice(0, 13) if side == "right" else slice(pads, None)
    torch.testing.assert_close(actual[:, real], expected, **CLOSE)
    torch.testing.assert_close(padded_state, state, **CLOSE)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_decay_rates(heads):
    spread = [math.log(1 / 32) + (math.log(1 / 512) - math.log(1 / 32)) * h / max(heads - 1, 1) for h in range(heads)]
    expected = torch.tensor([1 - math.exp(value) for value in spread], dtype=torch.float64)
    torch.testing.assert_close(retention_log_decay(heads).exp(), expected, **CLOSE)
    paper = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(heads)], dtype=torch.float64)
    torch.testing.assert_close(retention_log_decay(heads, "paper").exp(), paper, **CLOSE)
    for gamma in (retention_log_decay(heads).exp(), paper):
        assert ((gamma > 0) & (gamma < 1)).all()


def retention_definition(layer, x, heads, is_causal, rotary, decay, theta=1e4):
    """W_o(silu(W_g x) * headRMSNorm((Q K^T * D) V)) with D = gamma^|n-m|, lower triangle only when causal."""
    batch, length, _ = x.shape
    split = lambda projection: (x @ projection.weight.T).reshape(batch, length, heads, -1).transpose(1, 2)  # noqa: E731
    q, k, v = split(layer.q_proj), split(layer.k_proj), split(layer.v_proj)
    n = torch.arange(length, dtype=torch.float64)
    if rotary:
        width = q.shape[-1]
        angle = n[:, None] * theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

        def turn(y):
            a, b = y[..., : width // 2], y[..., width // 2 :]
            return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

        q, k = turn(q), turn(k)
    k = k * q.shape[-1] ** -0.5
    gamma = retention_log_decay(heads, decay).exp()[:, None, None]
    weights = gamma ** (n[:, None] - n[None, :]).abs()
    weights = weights.tril() if is_causal else weights
    o = (q @ k.transpose(-1, -2) * weights) @ v
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    gate = x @ layer.g_proj.weight.T
    return (gate * torch.sigmoid(gate) * o.transpose(1, 2).flatten(2)) @ layer.o_proj.weight.T


@pytest.mark.parametrize("is_causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("decay", ["linspace", "paper"])
@pytest.mark.parametrize("value_factor, chunk, length", [(1, 8, 21), (2, 64, 13), (1, 1, 5), (2, 4, 1)])
def test_retention_equals_its_definition(is_causal, rotary, decay, value_factor, chunk, length, enliven):
    options = {"rotary": rotary, "decay": decay, "value_factor": value_factor, "chunk_size": chunk}
    layer = enliven(Retention(24, 3, **options).double())
    x = torch.randn(2, length, 24, dtype=torch.float64)
    context = SequenceContext.build(batch_size=2, length=length, device=x.device, is_causal=is_causal)
    actual, _ = layer(x, context, 0)
    torch.testing.assert_close(actual, retention_definition(layer, x, 3, is_causal, rotary, decay), **CLOSE)


@pytest.mark.parametrize("value_factor, count", [(1, 5 * 24**2), (2, 8 * 24**2)])
def test_parameter_count(value_factor, count):
    layer = Retention(24, 3, value_factor=value_factor)
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


def test_scale_of_queries_hardly_matters(enliven):
    """The norm of each head makes the output scale-invariant, which stands for the paper's row rescaling."""
    layer, x = enliven(Retention(24, 3).double()), torch.randn(1, 9, 24, dtype=torch.float64)
    context = SequenceContext.build(batch_size=1, length=9, device=x.device, is_causal=True)
    before, _ = layer(x, context, 0)
    with torch.no_grad():
        layer.q_proj.weight *= 100
        layer.v_proj.weight *= 100
    after, _ = layer(x, context, 0)
    torch.testing.assert_close(after, before, atol=1e-2, rtol=1e-2)
