"""The cache: its size, its rows, taking tokens back, gradients through it, and when one is kept."""

import pytest
import torch

from causal_cases import CASES, CONV, HYBRID, greedy, in_pieces, padded, state_bytes
from frankenlm.modeling import FrankensteinForCausalLM, FrankensteinModel
from frankenlm.modeling.cache import StateCache

every_case = pytest.mark.parametrize("case", CASES)


# --- the size of the state


@pytest.mark.parametrize(
    ("mixers", "fields"),
    [
        ("retnet", {}),
        ("mamba", {}),
        (("retnet", "mamba"), CONV),
        ("titan_memory", {"attention_window": 16}),
        ("standard_attn", {"attention_window": 16}),
        ("ode", {"attention_window": 16}),
    ],
    ids=str,
)
def test_state_does_not_grow(mixers, fields, tiny_model, tokens):
    model, ids, sizes = tiny_model(mixers, is_decoder=True, **fields), tokens(2, 1000), {}
    cache = model.new_cache()
    with torch.no_grad():
        for start in range(0, 1000, 50):
            model(ids[:, start : start + 49], cache=cache)
            model(ids[:, start + 49 : start + 50], cache=cache)
            sizes[start + 50] = state_bytes(cache)
        at_once = model.new_cache()
        model(ids, cache=at_once)
    assert sizes[100] == sizes[1000] > 0
    assert state_bytes(at_once) <= sizes[1000]


def test_state_of_full_attention_grows(tiny_model, tokens):
    model = tiny_model("standard_attn", is_decoder=True)
    sizes = [state_bytes(in_pieces(model, tokens(2, length), [length])[1]) for length in (10, 90)]
    assert sizes[1] == 9 * sizes[0]


@pytest.mark.parametrize("fields", [{"ode_solver": "euler", "ode_steps": 3}, {"ode_solver": "rk4", "ode_steps": 2}])
def test_every_evaluation_of_a_field_has_keys_of_its_own(fields, tiny_model, tokens):
    _, cache = in_pieces(tiny_model("ode", is_decoder=True, num_loops=2, **fields), tokens(1, 6), [5, 1])
    evaluations = fields["ode_steps"] * (4 if fields["ode_solver"] == "rk4" else 1)
    assert [len(entry.key_values) for entry in cache.layers] == [evaluations] * 4
    keys = [store.view()[0] for store in cache.layers[0].key_values]
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(keys, keys[1:], strict=False))


def test_one_entry_per_logical_layer(build_causal):
    assert len(build_causal("loops").new_cache().layers) == 10 == 2 * len(build_causal("loops").model.layers)


# --- rows and cropping


@every_case
def test_rows_of_a_cache_can_be_chosen_and_repeated(case, build_causal, tokens):
    model, ids = build_causal(case), tokens(3, 14)
    mask = padded(ids, (4, 0, 2))
    step = tokens(3, 1, seed=5)
    with torch.no_grad():
        expected = model(step, cache=in_pieces(model, ids, [8, 6], mask)[1]).logits
        for rows in ([2, 0], [1, 1, 0, 2], [0]):
            cache = in_pieces(model, ids, [8, 6], mask)[1]
            cache.batch_select_indices(torch.tensor(rows))
            actual = model(step[rows], cache=cache).logits
            torch.testing.assert_close(actual, expected[rows], atol=1e-10, rtol=0)
        cache = in_pieces(model, ids, [8, 6], mask)[1]
        cache.batch_repeat_interleave(2)
        actual = model(step.repeat_interleave(2, 0), cache=cache).logits
        torch.testing.assert_close(actual, expected.repeat_interleave(2, 0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("case", ["standard_attn", "titan_attn", "sigmoid_attn", "rk4", "learned positions"])
def test_attention_can_forget_its_last_tokens(case, build_causal, tokens):
    model, ids = build_causal(case), tokens(2, 20)
    mask = padded(ids, (3, 0))
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[:, 13:]
    other = torch.cat([ids[:, :13], tokens(2, 4, seed=8)], dim=1)
    _, cache = in_pieces(model, other, [10, 7], torch.cat([mask[:, :13], torch.ones_like(other[:, 13:])], dim=1))
    cache.crop(-4)
    assert cache.get_seq_length() == 13 and cache.seen_tokens.tolist() == [10, 13]
    with torch.no_grad():
        pieces = [model(ids[:, 13:14], cache=cache).logits, model(ids[:, 14:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(3)


@pytest.mark.parametrize("case", ["standard_attn", "titan_attn", "rk4"])
def test_assisted_decoding_changes_nothing_where_attention_alone_remembers(case, build_causal, tokens):
    model, prompt = build_causal(case), tokens(1, 4).repeat(1, 3)
    assert torch.equal(greedy(model, prompt, prompt_lookup_num_tokens=3), greedy(model, prompt))
    assert torch.equal(greedy(model, prompt, assistant_model=build_causal("sigmoid_attn")), greedy(model, prompt))


@pytest.mark.parametrize("case", ["retnet", "mamba", "titan_memory", "window", "loops"])
def test_what_cannot_be_taken_back_is_refused(case, build_causal, tokens):
    model = build_causal(case)
    _, cache = in_pieces(model, tokens(1, 9), [9])
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        greedy(model, tokens(1, 9), prompt_lookup_num_tokens=3)


# --- when a cache is kept


def test_a_cache_is_kept_where_it_is_of_use(tiny_model, tokens):
    model, ids = tiny_model(HYBRID, is_decoder=True), tokens(2, 9)
    assert isinstance(model(ids).cache, StateCache)
    assert model(ids, use_cache=False).cache is None
    assert model.train()(ids).cache is None
    assert isinstance(model(ids, use_cache=True).cache, StateCache)
    model.activation_checkpointing_enable()
    assert model(ids, use_cache=True).cache is None
    assert tiny_model("retnet")(ids, use_cache=True).get("cache") is None
    base = FrankensteinModel(model.config)
    base.config.use_cache = False
    assert base.eval()(ids).cache is None
    assert isinstance(model, FrankensteinForCausalLM)


@pytest.mark.parametrize("case", ["loops", "windowed hybrid", "rk4"])
def test_gradients_pass_through_the_cache(case, build_causal, tokens):
    """Two pieces in a row give the gradient of the whole; nothing is overwritten in between."""
    model, ids = build_causal(case), tokens(2, 16)
    embeds = model.get_input_embeddings()(ids).detach()

    def gradient(pieces):
        inputs = embeds.clone().requires_grad_()
        cache, logits, start = model.new_cache(), [], 0
        for size in pieces:
            piece = inputs[:, start : start + size]
            logits.append(model(inputs_embeds=piece, cache=cache).logits)
            start += size
        torch.cat(logits, dim=1).log_softmax(-1)[..., 3].sum().backward()
        return inputs.grad

    torch.testing.assert_close(gradient([9, 1, 1, 5]), gradient([16]), atol=1e-9, rtol=0)


def test_gradients_of_queries_alone_pass_through_the_cache(tiny_model, tokens):
    """Keys without gradients are still part of the graph of the queries: nothing may be written into them."""
    model, ids = tiny_model("standard_attn", is_decoder=True, dtype=torch.float64), tokens(2, 12)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    gradients = []
    for sizes in ([12], [5, 1, 1, 5]):
        model.zero_grad()
        cache, start, logits = model.new_cache(), 0, []
        for size in sizes:
            logits.append(model(ids[:, start : start + size], cache=cache).logits)
            start += size
        torch.cat(logits, dim=1).log_softmax(-1)[..., 3].sum().backward()
        gradients.append(model.model.layers[0].mixer.q_proj.weight.grad.clone())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["standard_attn", "window", "loops"])
def test_a_cache_begun_in_inference_mode_goes_on_outside(case, build_causal, tokens):
    model, ids, cache = build_causal(case), tokens(2, 14), build_causal(case).new_cache()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, -1]
    with torch.inference_mode():
        for start, stop in ((0, 6), (6, 7), (7, 9)):
            model(ids[:, start:stop], cache=cache)
    with torch.no_grad():
        for start, stop in ((9, 10), (10, 14)):
            actual = model(ids[:, start:stop], cache=cache).logits[:, -1]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
