"""Mamba-2 against transformers' mixer (causal, float32) and against its definition in float64 (both directions)."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixer_mamba import Mamba2

SHAPE = {"expand": 2, "head_dim": 8, "state_size": 6, "conv_kernel": 4}
WIDTH, HEADS = 16, 4


def run(layer, x, is_causal, mask=None):
    batch, length = x.shape[:2]
    context = SequenceContext.build(
        batch_size=batch, length=length, device=x.device, is_causal=is_causal, attention_mask=mask
    )
    with torch.no_grad():
        return layer(x, context, 0)[0]


def transformers_twin(layer):
    config = Mamba2Config(
        hidden_size=WIDTH,
        num_heads=HEADS,
        head_dim=SHAPE["head_dim"],
        state_size=SHAPE["state_size"],
        n_groups=1,
        expand=SHAPE["expand"],
        conv_kernel=SHAPE["conv_kernel"],
        chunk_size=8,
        layer_norm_epsilon=1e-6,
        num_hidden_layers=1,
    )
    twin = Mamba2Mixer(config, layer_idx=0).eval()
    twin.load_state_dict(layer.state_dict(), strict=True)
    return twin


@pytest.mark.parametrize("length", [1, 3, 8, 21, 70])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_equals_the_mixer_of_transformers(length, chunk_size, enliven):
    layer, x = enliven(Mamba2(WIDTH, chunk_size=chunk_size, **SHAPE)), torch.randn(3, length, WIDTH)
    with torch.no_grad():
        expected = transformers_twin(layer)(x)
    actual = run(layer, x, is_causal=True)
    assert expected.std() > 0.5
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_mixer_of_transformers_under_a_mask(side, batch, enliven):
    layer, x = enliven(Mamba2(WIDTH, chunk_size=8, **SHAPE)), torch.randn(batch, 21, WIDTH)
    mask = torch.ones(batch, 21, dtype=torch.long)
    mask[0, slice(0, 5) if side == "left" else slice(-5, None)] = 0
    with torch.no_grad():
        expected = transformers_twin(layer)(x, attention_mask=mask)
    real = mask.bool()
    error = (run(layer, x, is_causal=True, mask=mask) - expected)[real].abs().max()
    assert error <= 1e-5 * expected[real].abs().max()


def one_direction(layer, u):
    """y_t = S_t C_t + D x_t with S_t = exp(-dt e^A_log) S_{t-1} + (dt x_t) B_t^T, token by token; (B, L, inner)."""
    inner, state, width = SHAPE["expand"] * WIDTH, SHAPE["state_size"], SHAPE["head_dim"]
    kernel = layer.conv1d.weight[:, 0]
    _, xBC, dt = (u @ layer.in_proj.weight.T).split([inner, inner + 2 * state, HEADS], -1)
    dt = F.softplus(dt + layer.dt_bias)
    outputs = []
    for row in range(u.shape[0]):
        memory = [torch.zeros(width, state, dtype=u.dtype) for _ in range(HEADS)]
        for t in range(u.shape[1]):
            mixed = layer.conv1d.bias.clone()
            for tap in range(SHAPE["conv_kernel"]):
                source = t - (SHAPE["conv_kernel"] - 1) + tap
                if source >= 0:
                    mixed = mixed + kernel[:, tap] * xBC[row, source]
            x, B, C = (mixed * torch.sigmoid(mixed)).split([inner, state, state])
            y = []
            for head in range(HEADS):
                step, value = dt[row, t, head], x[head * width : (head + 1) * width]
                decay = torch.exp(-step * torch.exp(layer.A_log[head]))
                memory[head] = decay * memory[head] + torch.outer(step * value, B)
                y.append(memory[head] @ C + layer.D[head] * value)
            outputs.append(torch.cat(y))
    return torch.stack(outputs).reshape(u.shape[0], u.shape[1], inner)


def definition(layer, u, is_causal):
    y = one_direction(layer, u)
    if not is_causal:
        y = (y + one_direction(layer, u.flip(1)).flip(1)) / 2
    z = (u @ layer.in_proj.weight.T)[..., : y.shape[-1]]
    gated = y * z * torch.sigmoid(z)
    gated = layer.norm.weight * gated / (gated.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return gated @ layer.out_proj.weight.T


@pytest.mark.parametrize("is_causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 21])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_equals_its_definition(is_causal, length, chunk_size, enliven):
    layer = enliven(Mamba2(WIDTH, chunk_size=chunk_size, **SHAPE).double())
    u = torch.randn(2, length, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        expected = definition(layer, u, is_causal)
    torch.testing.assert_close(run(layer, u, is_causal), expected, atol=1e-10, rtol=0)


def test_the_convolution_warms_up_over_zeros(enliven):
    """With the state switched off, token t is a function of tokens t-3..t alone, and the first ones see zeros."""
    layer = enliven(Mamba2(WIDTH, chunk_size=8, **SHAPE).double())
    with torch.no_grad():
        layer.A_log.fill_(20.0)  # e^(-dt e^20): nothing survives a step
    u = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    expected = run(layer, u, is_causal=True)
    later = run(layer, u[:, 4:], is_causal=True)
    torch.testing.assert_close(later[:, 3:], expected[:, 7:], atol=1e-10, rtol=0)
    assert (later[:, :3] - expected[:, 4:7]).abs().amax(-1).min() > 1e-3


def test_initial_values():
    layer = Mamba2(256, expand=2, head_dim=8, state_size=16, conv_kernel=4)  # 64 heads
    a, dt = layer.A_log.exp(), F.softplus(layer.dt_bias)
    assert a.min() >= 1 and a.max() <= 16 and a.std() > 2
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 0.1 * 1.001 and dt.log().std() > 0.7
    assert (layer.D == 1).all() and not layer.conv1d.bias.any() and (layer.norm.weight == 1).all()
    bound = 1 / math.sqrt(4)
    assert layer.conv1d.weight.abs().max() <= bound
    assert layer.conv1d.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_model_keeps_these_initial_values(tiny_model):
    mixer = tiny_model("mamba", lively=False).model.layers[0].mixer
    assert mixer.A_log.min() >= 0 and mixer.A_log.max() <= math.log(16) and mixer.A_log.std() > 0
    assert (mixer.D == 1).all() and 0.2 < mixer.conv1d.weight.std() < 0.35


def test_steps_have_no_floor_in_forward(enliven):
    """The floor of 1e-4 belongs to the initialisation: a step may be smaller, down to nothing."""
    layer = enliven(Mamba2(WIDTH, chunk_size=8, **SHAPE).double())
    with torch.no_grad():
        layer.dt_bias.fill_(-60.0)
        layer.D.zero_()
        layer.norm.weight.fill_(1.0)
    u = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    assert run(layer, u, is_causal=True).abs().max() < 1e-12


def test_parameter_count():
    d, di, n, heads, k = 384, 768, 64, 12, 4
    layer = Mamba2(d, expand=2, head_dim=64, state_size=n, conv_kernel=k)
    expected = d * (2 * di + 2 * n + heads) + (di + 2 * n) * (k + 1) + 3 * heads + di + di * d
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected == 943_780


def test_states_and_gates_stay_in_float32(enliven):
    """A bf16 layer must follow its float32 twin over a long memory, which bf16 states would lose."""
    layer = enliven(Mamba2(WIDTH, chunk_size=8, **SHAPE), gain=1.0)
    with torch.no_grad():
        layer.dt_bias.fill_(math.log(math.expm1(1e-3)))
        layer.in_proj.weight[-HEADS:] *= 0.1
    half = Mamba2(WIDTH, chunk_size=8, **SHAPE)
    half.load_state_dict(layer.state_dict())
    half = half.to(torch.bfloat16)
    for name in ("A_log", "dt_bias", "D"):
        getattr(half, name).data = getattr(layer, name).data
    x = torch.randn(1, 300, WIDTH)
    expected = run(layer, x, is_causal=True)
    actual = run(half, x.bfloat16(), is_causal=True).float()
    assert (actual - expected).norm() <= 3e-2 * expected.norm()
