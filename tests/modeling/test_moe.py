"""The mixture of experts against a dense loop in float64, Mixtral's block and Mixtral's balancing loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from frankenlm.modeling.feedforward import FeedForward, MixtureOfExperts

WIDTH, HIDDEN = 10, 14
CLOSE = {"atol": 1e-10, "rtol": 0}
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp_min(0),
    "relu2": lambda x: x.clamp_min(0) ** 2,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
}


def build(enliven, experts=4, top_k=2, activation="silu", **options):
    layer = MixtureOfExperts(WIDTH, HIDDEN, activation, num_experts=experts, top_k=top_k, **options)
    return enliven(layer.double())


def expert_definition(ffn, x, activation):
    act, hidden = ACTIVATIONS[activation], x @ ffn.up_proj.weight.T
    if activation == "swiglu":
        return (act(x @ ffn.gate_proj.weight.T) * hidden) @ ffn.down_proj.weight.T
    return act(hidden) @ ffn.down_proj.weight.T


def definition(layer, x, top_k, activation="silu"):
    """Every expert on every token, weighted; the k most probable, renormalised, ties to the lower index."""
    probabilities = torch.softmax(x @ layer.router.weight.T, -1)
    y = torch.zeros_like(x)
    for token in range(x.shape[0]):
        ranked = sorted(range(len(layer.experts)), key=lambda e: (-probabilities[token, e].item(), e))[:top_k]
        total = sum(probabilities[token, e] for e in ranked)
        for e in ranked:
            share = probabilities[token, e] / total
            y[token] += share * expert_definition(layer.experts[e], x[token : token + 1], activation)[0]
    return y


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_dense_feed_forward(activation, enliven):
    ffn, x = enliven(FeedForward(WIDTH, HIDDEN, activation).double()), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(ffn(x), expert_definition(ffn, x, activation), **CLOSE)
    assert sum(p.numel() for p in ffn.parameters()) == (3 if activation == "swiglu" else 2) * WIDTH * HIDDEN


@pytest.mark.parametrize("activation", ["silu", "swiglu"])
@pytest.mark.parametrize("experts, top_k", [(4, 2), (4, 1), (4, 4), (1, 1), (7, 3)])
def test_equals_the_dense_loop(experts, top_k, activation, enliven):
    layer, x = build(enliven, experts, top_k, activation), torch.randn(3, 7, WIDTH, dtype=torch.float64)
    y, _ = layer(x)
    torch.testing.assert_close(y.flatten(0, 1), definition(layer, x.flatten(0, 1), top_k, activation), **CLOSE)
    expected = experts * (3 if activation == "swiglu" else 2) * WIDTH * HIDDEN + WIDTH * experts
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_gradients_equal_those_of_the_dense_loop(enliven):
    layer, x = build(enliven), torch.randn(21, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(21, WIDTH, dtype=torch.float64)
    leaves = [x, *layer.parameters()]
    actual = torch.autograd.grad((layer(x[None])[0][0] * weight).sum(), leaves)
    expected = torch.autograd.grad((definition(layer, x, 2) * weight).sum(), leaves)
    for mine, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, reference, **CLOSE)


def test_one_expert_is_a_dense_feed_forward(enliven):
    layer, x = build(enliven, 1, 1), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], layer.experts[0](x), **CLOSE)


def test_equals_the_block_of_mixtral(enliven):
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=4, num_experts_per_tok=2, hidden_act="silu"
    )
    config._experts_implementation = "eager"
    theirs, ours = MixtralSparseMoeBlock(config).double(), build(enliven, activation="swiglu")
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        for index, expert in enumerate(ours.experts):
            theirs.experts.gate_up_proj[index] = torch.cat([expert.gate_proj.weight, expert.up_proj.weight])
            theirs.experts.down_proj[index] = expert.down_proj.weight
        x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
        expected = theirs(x)
    torch.testing.assert_close(ours(x)[0], expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def test_nothing_is_dropped_when_everybody_wants_the_same_expert(enliven):
    layer, x = build(enliven, 4, 1), torch.rand(2, 50, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        layer.router.weight.fill_(-1.0)
        layer.router.weight[2] = 1.0
    y, statistics = layer(x)
    torch.testing.assert_close(y, layer.experts[2](x), **CLOSE)
    assert statistics.load.tolist() == [0, 0, 1, 0]


def test_ties_go_to_the_lower_index(enliven):
    layer, x = build(enliven, 5, 2), torch.randn(3, 7, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        layer.router.weight.zero_()
    y, statistics = layer(x)
    torch.testing.assert_close(y, (layer.experts[0](x) + layer.experts[1](x)) / 2, **CLOSE)
    assert statistics.load.tolist() == [1, 1, 0, 0, 0]


def test_pads_are_neither_routed_nor_counted(enliven):
    layer, x = build(enliven), torch.randn(3, 7, WIDTH, dtype=torch.float64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, :3], mask[2] = False, False
    y, statistics = layer(x, mask)
    real, alone = layer(x[mask][None])
    torch.testing.assert_close(y[mask], real[0], **CLOSE)
    assert not y[~mask].any()
    for mine, expected in zip(statistics, alone, strict=True):
        torch.testing.assert_close(mine, expected, **CLOSE)
    nothing, empty = layer(x, torch.zeros_like(mask))
    assert not nothing.any() and all(value.isfinite().all() for value in empty)


@pytest.mark.parametrize("experts, top_k", [(4, 2), (8, 1), (6, 3)])
def test_balancing_loss_equals_mixtral_on_one_layer(experts, top_k, enliven):
    layer, x = build(enliven, experts, top_k), torch.randn(3, 31, WIDTH, dtype=torch.float64)
    mask = torch.ones(3, 31, dtype=torch.long)
    mask[0, 20:] = 0
    logits = x.flatten(0, 1) @ layer.router.weight.T
    for attention_mask in (None, mask):
        expected = load_balancing_loss_func((logits,), experts, top_k, attention_mask)
        _, statistics = layer(x, None if attention_mask is None else attention_mask.bool())
        torch.testing.assert_close(statistics.balance_loss, expected.to(statistics.balance_loss), atol=1e-6, rtol=0)


def test_balancing_loss_at_its_ends(enliven):
    """k when routing is uniform; 4.0 when two of four experts take everything."""
    layer = build(enliven)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:, :4] = 200 * torch.eye(4, dtype=torch.float64)
    uniform = torch.tensor([[1, 0.999, 0, 0], [0, 1, 0.999, 0], [0, 0, 1, 0.999], [0.999, 0, 0, 1]] * 3)
    collapsed = torch.tensor([[1, 0.9999, 0, 0]] * 12)
    for pattern, value in ((uniform, 2.0), (collapsed, 4.0)):
        _, statistics = layer(F.pad(pattern.double(), (0, WIDTH - 4))[None])
        assert statistics.balance_loss.item() == pytest.approx(value, abs=1e-3)


def test_z_loss_is_the_mean_squared_logsumexp(enliven):
    layer, x = build(enliven), torch.randn(1, 9, WIDTH, dtype=torch.float64)
    expected = torch.logsumexp(x[0] @ layer.router.weight.T, -1).square().mean()
    torch.testing.assert_close(layer(x)[1].z_loss, expected, **CLOSE)


def test_balancing_reaches_the_router(enliven):
    layer, x = build(enliven), 1 + torch.randn(1, 64, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.SGD([layer.router.weight], lr=0.3)
    before = layer(x)[1].balance_loss.item()
    for _ in range(200):
        optimizer.zero_grad()
        layer(x)[1].balance_loss.backward()
        optimizer.step()
    assert layer(x)[1].balance_loss.item() < before - 0.05 and before > 2.05


@pytest.mark.parametrize("is_decoder", [False, True])
def test_model_adds_the_losses_in_training_only(is_decoder, tiny_model, tokens):
    coefficients = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.2}
    model = tiny_model(("retnet", "ode"), is_decoder=is_decoder, num_experts=4, num_loops=2, **coefficients)
    ids = tokens(4, 21)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    evaluated = model(ids, attention_mask=mask, labels=ids)
    trained = model.train()(ids, attention_mask=mask, labels=ids)
    logits, labels = (evaluated.logits[:, :-1], ids[:, 1:]) if is_decoder else (evaluated.logits, ids)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(evaluated.loss, cross_entropy, atol=1e-5, rtol=1e-5)
    assert trained.aux_loss > 2 and trained.router_z_loss > 0.1
    extra = 0.3 * trained.aux_loss + 0.2 * trained.router_z_loss
    torch.testing.assert_close(trained.loss, cross_entropy + extra, atol=1e-5, rtol=1e-5)


def test_losses_are_means_over_logical_layers_of_real_tokens(tiny_model, tokens):
    model, ids = tiny_model(("retnet", "ode"), num_experts=4, num_loops=2), tokens(4, 21)
    mask = torch.ones_like(ids)
    mask[1, 11:], mask[3, :5] = 0, 0
    logits = []
    for layer in model.model.layers:
        weight = layer.ffn.router.weight
        layer.ffn.register_forward_pre_hook(
            lambda module, args, weight=weight: logits.append(args[0][mask.bool()] @ weight.T)
        )
    output = model(ids, attention_mask=mask)
    assert output.expert_load.shape == (4, 4)
    torch.testing.assert_close(output.expert_load.sum(-1), torch.full((4,), 2.0))
    assert len(logits) == 4
    each = [load_balancing_loss_func((x,), 4, 2) for x in logits]
    torch.testing.assert_close(output.aux_loss, torch.stack(each).mean(), atol=1e-5, rtol=1e-5)


def test_outputs_of_inference_have_a_row_for_each_input(tiny_model, tokens):
    """Pipelines take them apart by rows; what a batch has in common they would stumble over."""
    with torch.no_grad():
        output = tiny_model("retnet", num_experts=4)(tokens(3, 5))
    assert {len(value) for value in output.values()} == {3}


def test_dense_model_has_no_router_outputs(tiny_model, tokens):
    output = tiny_model("retnet")(tokens(1, 5))
    assert output.aux_loss is None and output.expert_load is None


@pytest.mark.parametrize("is_decoder", [False, True])
def test_router_losses_keep_their_weight_under_accumulation(is_decoder, tiny_model, tokens):
    """Two equal micro-batches, each told the labels of both, add up to the mean task loss plus the mean router loss."""
    model = tiny_model("mamba", "layer_norm", is_decoder, num_experts=4, router_aux_loss_coef=0.5).train()
    ids = tokens(2, 9)
    predicted = ids[:, 1:] if is_decoder else ids
    whole = model(ids, labels=ids)
    half = model(ids, labels=ids, num_items_in_batch=2 * predicted.numel()).loss
    torch.testing.assert_close(2 * half, whole.loss)
    assert whole.aux_loss > 1
