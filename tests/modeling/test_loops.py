"""Logical loops: which layer runs when, what it is told, what is shared, and what the outputs are counted by."""

import pytest
import torch

from frankenlm.modeling import FrankensteinConfig

PATTERN = ("retnet", "titan_attn", "mamba", "ode")
LENGTH = 13


def copy_unrolled(model, twin):
    """Give every layer of a plain deep stack the weights of the looped layer that stands in its place."""
    twin.load_state_dict(model.state_dict(), strict=False)
    physical = len(model.model.layers)
    for index, layer in enumerate(twin.model.layers):
        layer.load_state_dict(model.model.layers[index % physical].state_dict())
    return twin


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("loops", [1, 2, 3])
@pytest.mark.parametrize("extra", [{}, {"num_experts": 4}, {"norm_style": "post"}], ids=str)
def test_equals_the_unrolled_stack(loops, is_decoder, extra, tiny_model, tokens):
    """The plain stack of as many layers, so also: the damping of hyperbolic positions goes by the logical layer."""
    build = {"is_decoder": is_decoder, "dtype": torch.float64, "hope_layer_scale": 5.0, **extra}
    model = tiny_model(PATTERN, num_loops=loops, **build)
    twin = copy_unrolled(model, tiny_model(PATTERN, num_hidden_layers=4 * loops, **build))
    assert len(twin.model.layers) == loops * len(model.model.layers)
    with torch.no_grad():
        looped = model(tokens(2, LENGTH), output_hidden_states=True)
        plain = twin(tokens(2, LENGTH), output_hidden_states=True)
    assert len(looped.hidden_states) == len(plain.hidden_states) == 4 * loops + 1
    for mine, expected in zip(
        (looped.logits, *looped.hidden_states), (plain.logits, *plain.hidden_states), strict=True
    ):
        torch.testing.assert_close(mine, expected, atol=1e-10, rtol=0)


def test_gradients_of_a_shared_layer_add_up(tiny_model, tokens):
    model = tiny_model(PATTERN, num_loops=2, dtype=torch.float64)
    twin = copy_unrolled(model, tiny_model(PATTERN, num_hidden_layers=8, dtype=torch.float64))
    for each in (model, twin):
        each(tokens(2, LENGTH), labels=tokens(2, LENGTH, seed=1)).loss.backward()
    for index, layer in enumerate(model.model.layers):
        copies = [dict(twin.model.layers[index + loop * 4].named_parameters()) for loop in (0, 1)]
        for name, parameter in layer.named_parameters():
            expected = sum(copy[name].grad for copy in copies)
            torch.testing.assert_close(parameter.grad, expected, atol=1e-10, rtol=0)


def test_index_trace(tiny_model, tokens):
    model, trace = tiny_model(PATTERN, num_loops=3), []
    for physical, layer in enumerate(model.model.layers):
        layer.mixer.register_forward_pre_hook(lambda module, args, physical=physical: trace.append((physical, args[2])))
    model(tokens(1, 5))
    assert trace == [(physical, 4 * loop + physical) for loop in range(3) for physical in range(4)]


def test_hyperbolic_damping_grows_with_the_logical_layer(tiny_model, tokens):
    """One titan layer, run twice: with a growth of zero both passes fade alike, with a large one they do not."""
    attentions = {}
    for scale in (0.0, 40.0):
        model = tiny_model("titan_attn", num_loops=2, hope_layer_scale=scale, num_hidden_layers=2)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for linear in (model.model.layers[0].mixer.o_proj, model.model.layers[0].ffn.down_proj):
                linear.weight.zero_()  # the stream stays as it is, so only the damping can differ
        attentions[scale] = model(tokens(1, LENGTH), output_attentions=True).attentions
    first, second = attentions[0.0]
    assert torch.equal(first, second)
    first, second = attentions[40.0]
    assert torch.equal(first, attentions[0.0][0]) and (first - second).abs().max() > 1e-2


def test_shared_parameters_are_counted_once(tiny_model):
    counts = [tiny_model(PATTERN, num_loops=loops, lively=False).num_parameters() for loops in (1, 2, 3)]
    assert counts[0] == counts[1] == counts[2]
    with_embedding = tiny_model(PATTERN, num_loops=3, loop_embedding=True, lively=False)
    assert with_embedding.num_parameters() == counts[0] + 3 * 32


def test_loop_embedding_starts_at_zero_and_tells_loops_apart(tiny_model, tokens):
    build = {"num_loops": 2, "lively": False}
    plain, model = tiny_model(PATTERN, **build), tiny_model(PATTERN, loop_embedding=True, **build)
    ids = tokens(2, LENGTH)
    assert not model.model.loop_embedding.any() and model.model.loop_embedding.shape == (2, 32)
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
        for loop in (0, 1):
            model.model.loop_embedding.zero_()[loop] = torch.randn(32)
            states = model(ids, output_hidden_states=True).hidden_states
            expected = plain(ids, output_hidden_states=True).hidden_states
            same = [torch.equal(mine, other) for mine, other in zip(states, expected, strict=True)]
            assert same[1:5] == [loop == 1] * 4 and not any(same[5:])


def test_stored_depth_is_logical_and_survives_reloading(tiny_config, tmp_path):
    config = tiny_config(PATTERN, num_loops=3)
    for _ in range(2):
        config.save_pretrained(tmp_path)
        config = FrankensteinConfig.from_pretrained(tmp_path)
        assert (config.num_hidden_layers, config.num_loops, config.num_physical_layers) == (12, 3, 4)
    assert config.physical_mixers == list(PATTERN)


def test_the_pattern_is_cycled(tiny_model):
    model = tiny_model(("retnet", "ode"), num_hidden_layers=5, lively=False)
    names = [type(layer.mixer).__name__ for layer in model.model.layers]
    assert names == [names[0], names[1]] * 2 + [names[0]] and names[0] != names[1]
