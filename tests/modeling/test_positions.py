"""Hyperbolic positions against the matrix definition with cosh and sinh; rotary positions against Llama's."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from frankenlm.modeling.positions import apply_rotary, hope_rates, hope_scores, rotary_tables, to_light_cone

RHO, BASE, DAMPING = 0.9, 1e4, 0.01


def definition(q, k, query_ids, key_ids, damping=DAMPING):
    """sum_i exp(-damping |m-n|) q_i^T B((m-n) phi_i) k_i with B(t) = [[cosh t, sinh t], [sinh t, cosh t]], in float64.

    q (..., M, D), k (..., N, D), ids (M,) and (N,) -> (..., M, N)
    """
    q, k = q.double(), k.double()
    pairs = q.shape[-1] // 2
    offset = (query_ids[:, None] - key_ids[None, :]).double()
    total = 0.0
    for i in range(pairs):
        phi = RHO * damping * BASE ** (-i / (pairs - 1)) if pairs > 1 else RHO * damping
        q1, q2 = q[..., 2 * i, None], q[..., 2 * i + 1, None]
        k1, k2 = k[..., None, :, 2 * i], k[..., None, :, 2 * i + 1]
        cosh, sinh = torch.cosh(offset * phi), torch.sinh(offset * phi)
        total = total + q1 * (cosh * k1 + sinh * k2) + q2 * (sinh * k1 + cosh * k2)
    return torch.exp(-damping * offset.abs()) * total


def scores(q, k, ids, is_causal=False, damping=DAMPING):
    rates = hope_rates(q.shape[-1], damping, RHO, BASE)
    return hope_scores(to_light_cone(q), to_light_cone(k), ids, ids, rates, is_causal)


def random_heads(length, width=6, dtype=torch.float64):
    return torch.randn(2, 2, 3, length, width, dtype=dtype).unbind(0)


def lower(matrix):
    return matrix.tril()


@pytest.mark.parametrize("width", [2, 4, 10])
@pytest.mark.parametrize("damping", [0.01, 0.1, 0.0155])
def test_light_cone_form_equals_the_definition(width, damping):
    (q, k), ids = random_heads(37, width), torch.arange(37)
    expected = definition(q, k, ids, ids, damping)
    both = scores(q, k, ids.expand(2, -1), damping=damping)
    causal = scores(q, k, ids.expand(2, -1), is_causal=True, damping=damping)
    torch.testing.assert_close(both, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(lower(causal), lower(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", [301, 700])
def test_many_centres_equal_one_definition(length, is_causal):
    """At this damping one centre serves 2 * 30 / (0.2 * 1.9) = 157 positions; 301 and 700 need several."""
    (q, k), ids = random_heads(length, 4), torch.arange(length)
    expected = definition(q, k, ids, ids, 0.2)
    actual = scores(q, k, ids.expand(2, -1), is_causal, 0.2)
    if is_causal:
        expected, actual = lower(expected), lower(actual)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "ids",
    [
        [0, 1, 2, 3, 5000, 5001, 5003, 9000, 9001],
        [7, 7, 7, 7, 8, 30],
        [0, 1, 2, 3, 0, 1, 2, 0, 1, 2],
        [0, 1, 3000, 3001, 5, 6],
        [9, 8, 7, 3, 2, 1, 0],
    ],
    ids=["holes", "repeats", "restarts", "jumps", "backwards"],
)
def test_positions_given_by_the_caller(ids, is_causal):
    """What counts is the distance of the ids, whatever their order and however wide their span."""
    ids = torch.tensor(ids)
    q, k = random_heads(len(ids), 4)
    expected = definition(q, k, ids, ids)
    actual = scores(q, k, ids.expand(2, -1), is_causal)
    if is_causal:
        expected, actual = lower(expected), lower(actual)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shift", [1, 1000])
@pytest.mark.parametrize("is_causal", [False, True])
def test_only_distances_matter(shift, is_causal):
    (q, k), ids = random_heads(50), torch.arange(50).expand(2, -1)
    before, after = scores(q, k, ids, is_causal), scores(q, k, ids + shift, is_causal)
    torch.testing.assert_close(lower(after), lower(before), atol=1e-12, rtol=0)
    if not is_causal:
        torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


def test_rows_of_a_batch_may_have_different_positions():
    (q, k), ids = random_heads(20), torch.stack([torch.arange(20), (torch.arange(20) - 7).clamp_min(0)])
    expected = torch.stack([definition(q[row], k[row], ids[row], ids[row]) for row in range(2)])
    torch.testing.assert_close(scores(q, k, ids), expected, atol=1e-10, rtol=0)


def test_positive_pairs_fade_with_distance_but_not_alike_on_both_sides():
    """u and w are the sum and the difference of a pair: positive where the first coordinate dominates."""
    first, second = torch.rand(2, 1, 2, 1, 3, dtype=torch.float64).unbind(0)
    content = torch.stack([first + second + 0.1, second], -1).flatten(-2).expand(-1, -1, 300, -1)
    fade = scores(content, content, torch.arange(300)[None])[0, 0]
    assert (fade[-1].diff() > 0).all(), "keys of the past, nearer and nearer"
    assert (fade[0].diff() < 0).all(), "keys ahead, farther and farther"
    assert (fade > 0).all()
    past, future = fade[150, 149], fade[150, 151]
    assert (past - future).abs() > 1e-4


@pytest.mark.parametrize("is_causal", [False, True])
def test_no_overflow_in_a_long_sequence(is_causal):
    """float32 at 8,192 positions, against the definition on some rows."""
    length, rows = 8192, torch.tensor([0, 1, 511, 4000, 4097, 8000, 8191])
    q, k = torch.randn(2, 1, 1, length, 4).unbind(0)
    ids = torch.arange(length)
    actual = scores(q, k, ids[None], is_causal)
    assert actual.isfinite().all()
    expected = definition(q[:, :, rows], k, rows, ids)
    seen = ids <= rows[:, None] if is_causal else torch.ones(len(rows), length, dtype=torch.bool)
    error = (actual[:, :, rows].double() - expected).abs()[..., seen]
    assert error.max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("width, damping", [(2, 0.01), (8, 0.02)])
def test_every_rate_is_a_decay(width, damping):
    for rates in hope_rates(width, damping, RHO, BASE)[:2]:
        assert rates.min() >= damping * (1 - RHO) - 1e-15 and rates.max() <= damping * (1 + RHO) + 1e-15


@pytest.mark.parametrize("theta, width", [(1e4, 8), (500.0, 6)])
def test_rotary_equals_llama(theta, width):
    rope = {"rope_type": "default", "rope_theta": theta}
    config = LlamaConfig(hidden_size=2 * width, num_attention_heads=2, rope_parameters=rope)
    q, k = torch.randn(2, 2, 2, 50, width).unbind(0)
    ids = torch.stack([torch.arange(50), (torch.arange(50) - 9).clamp_min(0)])
    cos, sin = LlamaRotaryEmbedding(config)(q, ids)
    tables = rotary_tables(ids, width, theta)
    for x, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(apply_rotary(x, tables), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mixer", ["standard_attn", "sigmoid_attn", "ode", "retnet", "titan_attn"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_models_are_relative_in_double_precision(mixer, is_decoder, tiny_model, tokens):
    """float32 means *at least* float32: a float64 model turns by float64 angles, so a shift changes nothing."""
    model, ids = tiny_model(mixer, is_decoder=is_decoder, dtype=torch.float64), tokens(2, 30)
    positions = torch.arange(30)[None]
    with torch.no_grad():
        here, there = (model(ids, position_ids=positions + shift).logits for shift in (0, 1000))
        elsewhere = model(ids, position_ids=2 * positions).logits
    torch.testing.assert_close(there, here, atol=1e-10, rtol=0)
    assert (elsewhere - here).abs().max() > 1e-2
