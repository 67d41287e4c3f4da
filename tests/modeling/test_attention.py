"""Standard, sigmoid and Titan attention against dense definitions in float64."""

import math

import pytest
import torch

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixer_attention import SigmoidAttention, StandardAttention, TitanAttention

HEADS, WIDTH = 3, 18
CLOSE = {"atol": 1e-10, "rtol": 0}
every_direction = pytest.mark.parametrize("is_causal", [False, True], ids=["both", "causal"])
every_implementation = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def run(layer, x, is_causal, index=0, implementation="sdpa", **inputs):
    context = SequenceContext.build(
        batch_size=x.shape[0],
        length=x.shape[1],
        device=x.device,
        is_causal=is_causal,
        attn_implementation=implementation,
        keep_weights=implementation == "eager",
        **inputs,
    )
    with torch.no_grad():
        return layer(x, context, index)


def split_heads(layer, x):
    q, k, v = (
        (x @ projection.weight.T).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    if layer.q_norm is not None:
        q, k = (
            norm.weight * y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            for norm, y in ((layer.q_norm, q), (layer.k_norm, k))
        )
    return q, k, v


def visible(mask, is_causal, window=None):
    """(B, 1, L, L): real keys, not ahead of the query, nearer than the window (counted in real tokens)."""
    length = mask.shape[1]
    seen = mask[:, None, :].expand(-1, length, -1).bool()
    if is_causal:
        seen = seen & torch.ones(length, length).tril().bool()
    if window:
        ids = mask.cumsum(1) - 1
        seen = seen & ((ids[:, :, None] - ids[:, None, :]).abs() < window)
    return seen[:, None]


def merge(layer, o):
    return o.transpose(1, 2).flatten(2) @ layer.o_proj.weight.T


def softmax_definition(layer, x, seen, logits=None):
    q, k, v = split_heads(layer, x)
    logits = q @ k.transpose(-1, -2) if logits is None else logits
    weights = torch.exp(logits / math.sqrt(q.shape[-1])) * seen
    return merge(layer, weights / weights.sum(-1, keepdim=True).clamp_min(1e-300) @ v)


def sigmoid_definition(layer, x, seen):
    q, k, v = split_heads(layer, x)
    n = seen.sum(-1, keepdim=True).clamp_min(1)
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) - n.double().log() + layer.head_bias[:, None, None]
    o = merge(layer, (torch.sigmoid(logits) * seen) @ v)
    return layer.output_norm.weight * o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def some_padding(length, batch=3):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, :4], mask[2, -3:] = 0, 0
    return mask


@every_direction
@every_implementation
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_standard_attention(is_causal, implementation, window, qk_norm, enliven):
    layer = enliven(StandardAttention(WIDTH, HEADS, qk_norm=qk_norm).double())
    x, mask = torch.randn(3, 13, WIDTH, dtype=torch.float64), some_padding(13)
    inputs = {"attention_mask": mask, "attention_window": window}
    actual, weights = run(layer, x, is_causal, implementation=implementation, **inputs)
    expected = softmax_definition(layer, x, visible(mask, is_causal, window))
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], **CLOSE)
    assert actual.isfinite().all()
    if implementation == "eager":
        real = weights.transpose(1, 2)[mask == 1]
        torch.testing.assert_close(real.sum(-1), torch.ones_like(real.sum(-1)), **CLOSE)


@every_direction
@every_implementation
@pytest.mark.parametrize("qk_norm", [False, True])
def test_sigmoid_attention(is_causal, implementation, qk_norm, enliven):
    layer = enliven(SigmoidAttention(WIDTH, HEADS, qk_norm=qk_norm).double())
    x, mask = torch.randn(3, 13, WIDTH, dtype=torch.float64), some_padding(13)
    actual, _ = run(layer, x, is_causal, implementation=implementation, attention_mask=mask)
    expected = sigmoid_definition(layer, x, visible(mask, is_causal))
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], **CLOSE)


def output_norm(length, mean, bias_off=False):
    """Mean norm of a head's output over `length` random keys, for values scattered around `mean`."""
    layer = SigmoidAttention(32, 1, qk_norm=False).double()
    q, k, v = torch.randn(3, 2, 1, length, 32, dtype=torch.float64).unbind(0)
    context = SequenceContext.build(batch_size=2, length=length, device=q.device, is_causal=False)
    with torch.no_grad():
        if bias_off:
            layer.head_bias.fill_(math.log(length))
        return layer.attend(q, k, v + mean, context, 0)[0].norm(dim=-1).mean().item()


def test_sigmoid_output_is_flat_in_the_number_of_keys():
    """What values have in common keeps its size, what is random averages out; without the bias both grow."""
    assert output_norm(1024, mean=2.0) == pytest.approx(output_norm(16, mean=2.0), rel=0.3)
    assert output_norm(1024, mean=0.0) < output_norm(128, mean=0.0) < output_norm(16, mean=0.0)
    assert output_norm(1024, mean=0.0, bias_off=True) > 5 * output_norm(16, mean=0.0, bias_off=True)


def test_sigmoid_rows_are_independent(enliven):
    """No row is divided by its sum, and a query matters to its own row only."""
    layer = enliven(SigmoidAttention(WIDTH, HEADS).double())
    q, k, v = torch.randn(3, 2, HEADS, 9, 6, dtype=torch.float64).unbind(0)
    context = SequenceContext.build(batch_size=2, length=9, device=q.device, is_causal=False)
    before, weights = layer.attend(q, k, v, context, 0)
    changed = q.clone()
    changed[:, :, 4] += 3
    after, _ = layer.attend(changed, k, v, context, 0)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(after[:, :, others], before[:, :, others]) and not torch.allclose(
        after[:, :, 4], before[:, :, 4]
    )
    sums = weights.sum(-1) if weights is not None else torch.sigmoid(q @ k.transpose(-1, -2)).sum(-1)
    assert (sums - 1).abs().max() > 0.1


def titan_definition(layer, x, seen, ids, logical_index):
    """Logits sum_i e^(-theta |m-n|) q_i^T B((m-n) phi_i) k_i / sqrt(dh), theta = 0.01 (1 + 0.05 logical index)."""
    q, k, _ = split_heads(layer, x)
    theta, pairs = 0.01 * (1 + 0.05 * logical_index), q.shape[-1] // 2
    offset = (ids[:, :, None] - ids[:, None, :]).double()[:, None]
    logits = 0.0
    for i in range(pairs):
        phi = 0.9 * theta * 1e4 ** (-i / (pairs - 1))
        (q1, q2), (k1, k2) = q[..., 2 * i : 2 * i + 2].unbind(-1), k[..., 2 * i : 2 * i + 2].unbind(-1)
        cosh, sinh = torch.cosh(phi * offset), torch.sinh(phi * offset)
        logits = logits + cosh * (q1[..., None] * k1[..., None, :] + q2[..., None] * k2[..., None, :])
        logits = logits + sinh * (q1[..., None] * k2[..., None, :] + q2[..., None] * k1[..., None, :])
    return softmax_definition(layer, x, seen, torch.exp(-theta * offset.abs()) * logits)


@every_direction
@every_implementation
@pytest.mark.parametrize("index", [0, 7])
@pytest.mark.parametrize("stride, period", [(1, 1000), (40, 1000), (40, 6)], ids=["counted", "strided", "restarting"])
def test_titan_attention(is_causal, implementation, index, stride, period, enliven):
    layer = enliven(TitanAttention(WIDTH, HEADS).double())
    x, mask = torch.randn(3, 13, WIDTH, dtype=torch.float64), some_padding(13)
    counted = (mask.cumsum(1) - 1).clamp_min(0)
    ids, documents = stride * (counted % period), counted // period  # positions that restart begin a document
    inputs = {"attention_mask": mask, "position_ids": ids}
    actual, _ = run(layer, x, is_causal, index, implementation, **inputs)
    seen = visible(mask, is_causal) & (documents[:, :, None] == documents[:, None])[:, None]
    expected = titan_definition(layer, x, seen, ids, index)
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], **CLOSE)


@every_direction
@every_implementation
@pytest.mark.parametrize(("damping", "length"), [(0.2, 400), (0.05, 1301)])
def test_titan_attention_beyond_one_centre(damping, length, is_causal, implementation, enliven):
    """At damping 0.01 one centre reaches 3,157 positions; a larger one brings the border near: to 157, and to 631, more
    than what attention takes at once behind it."""
    layer = TitanAttention(WIDTH, HEADS, hope_damping=damping).double()
    enliven(layer)
    x = torch.randn(1, length, WIDTH, dtype=torch.float64)
    ids = torch.arange(length)[None]
    actual, _ = run(layer, x, is_causal, 0, implementation)
    seen = visible(torch.ones(1, length, dtype=torch.long), is_causal)
    layer_index = (damping / 0.01 - 1) / 0.05  # the definition's damping of 0.01 grows to this one at this index
    torch.testing.assert_close(actual, titan_definition(layer, x, seen, ids, layer_index), **CLOSE)


@every_direction
def test_titan_without_hope_is_standard_attention(is_causal, enliven):
    options = {"position_type": "rope", "use_bias": True}
    titan = TitanAttention(WIDTH, HEADS, use_hope=False, **options).double()
    standard = StandardAttention(WIDTH, HEADS, **options).double()
    enliven(titan), standard.load_state_dict(titan.state_dict())
    x = torch.randn(2, 13, WIDTH, dtype=torch.float64)
    assert torch.equal(run(titan, x, is_causal)[0], run(standard, x, is_causal)[0])


@pytest.mark.parametrize(
    "kind, count",
    [
        (StandardAttention, 4 * WIDTH**2),
        (TitanAttention, 4 * WIDTH**2),
        (SigmoidAttention, 4 * WIDTH**2 + HEADS + 2 * (WIDTH // HEADS) + WIDTH),
    ],
)
def test_parameter_count(kind, count):
    assert sum(parameter.numel() for parameter in kind(WIDTH, HEADS).parameters()) == count


def test_output_attentions_are_given_by_eager_attention(tiny_model, tokens):
    model, mask = tiny_model(("titan_attn", "sigmoid_attn", "standard_attn"), num_loops=2), some_padding(21)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(tokens(3, 21), attention_mask=mask, output_attentions=True).attentions
    assert len(attentions) == 6
    for weights in attentions:
        assert weights.shape == (3, 2, 21, 21)
        real = weights.transpose(1, 2)[mask == 1]  # rows of real queries: (rows, heads, keys)
        assert not real.transpose(1, 2)[(mask == 0).repeat_interleave(mask.sum(1), 0)].any(), "no weight on pads"
