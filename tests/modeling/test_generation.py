"""Generation: what a causal model remembers gives, token for token, what reading the whole text again gives."""

import pytest
import torch
from transformers import DynamicCache

from frankenlm.modeling import FrankensteinForCausalLM, FrankensteinModel, context
from frankenlm.modeling.cache import StateCache
from frankenlm.modeling.mixers import MIXERS

LENGTH = 30
HYBRID = ("retnet", "titan_memory", "mamba", "ode", "sigmoid_attn")
CONV = {"factorized_embedding_dim": 8, "embedding_conv_kernel": 4, "embedding_conv_depthwise": True}
CASES = {
    **{mixer: (mixer, {}) for mixer in [*sorted(MIXERS), "titan_memory"]},
    "rk4": ("ode", {"ode_solver": "rk4", "ode_time_input": True}),
    "learned positions": ("standard_attn", {"position_type": "learned"}),
    "post-norm": ("standard_attn", {"norm_style": "post", "position_type": "learned", "use_bias": True}),
    "window": (("standard_attn", "titan_attn", "sigmoid_attn"), {"attention_window": 5}),
    "loops": (HYBRID, {"num_loops": 2, "loop_embedding": True, **CONV}),
    "windowed hybrid": (HYBRID, {"attention_window": 6, **CONV}),
    "experts": (HYBRID, {"num_experts": 4}),
    "ternary": (("retnet", "mamba"), {"use_bitnet": True}),
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def build(tiny_model):
    """build(case) -> the causal model of a case, in float64; made once, never changed."""
    models = {}

    def make(case):
        if case not in models:
            mixers, fields = CASES[case]
            models[case] = tiny_model(mixers, "rms_norm", is_decoder=True, dtype=torch.float64, **fields)
        return models[case]

    return make


def padded(ids, pads, side="left"):
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        place = slice(0, count) if side == "left" else slice(ids.shape[1] - count, None)
        mask[row, place] = 0
    return mask


def greedy(model, prompts, **options):
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0} | options
    if prompts is not None and "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(prompts)  # or generate() would take the token 0 for a pad
    return model.generate(prompts, **options)


def in_pieces(model, ids, sizes, mask=None, whole_mask=True):
    cache, outputs, start = model.new_cache(), [], 0
    for size in sizes:
        stop = start + size
        piece = None if mask is None else mask[:, :stop] if whole_mask else mask[:, start:stop]
        with torch.no_grad():
            output = model(ids[:, start:stop], attention_mask=piece, cache=cache)
        assert output.cache is cache and cache.get_seq_length() == stop
        outputs.append(output.logits)
        start = stop
    return torch.cat(outputs, dim=1), cache


# --- pieces


@every_case
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [LENGTH], [10, 1, 1, 7, 11], [3, 27]], ids=str)
@pytest.mark.parametrize("pads", [None, (5, 1, 0)], ids=["full", "padded"])
def test_a_text_in_pieces_is_the_text(case, sizes, pads, build, tokens):
    model, ids = build(case), tokens(3, LENGTH)
    mask = None if pads is None else padded(ids, pads)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False).logits
    real = torch.ones_like(ids) if mask is None else mask
    for whole_mask in (True, False):
        actual, cache = in_pieces(model, ids, sizes, mask, whole_mask)
        assert ((actual - expected).abs() * real[..., None]).max() <= 1e-10
        assert cache.seen_tokens.tolist() == real.sum(1).tolist()


@every_case
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_leaves_the_state_of_the_unpadded_one(case, side, build, tokens):
    """Also at the right: whoever goes on from there sees only real tokens."""
    model, ids = build(case), tokens(2, 18)
    mask = padded(ids, (7, 0), side)
    row = ids[:1, mask[0].bool()]
    _, alone = in_pieces(model, row, [11])
    _, batch = in_pieces(model, ids, [18], mask)
    for entry, expected in zip([batch.embedding, *batch.layers], [alone.embedding, *alone.layers], strict=True):
        assert entry.tensors.keys() == expected.tensors.keys()
        for name, tensor in entry.tensors.items():
            torch.testing.assert_close(tensor[:1], expected.tensors[name], atol=1e-10, rtol=0, msg=name)
    more = tokens(1, 6, seed=7)
    with torch.no_grad():
        expected = model(more, cache=alone).logits
        actual = model(more.expand(2, -1), cache=batch).logits[:1]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("pads", [None, (5, 0)], ids=["full", "padded"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_windowed_attention_in_blocks_is_windowed_attention(
    implementation, is_decoder, pads, side, tiny_model, tokens, monkeypatch
):
    model = tiny_model(
        ("standard_attn", "titan_attn", "sigmoid_attn", "ode"),
        is_decoder=is_decoder,
        dtype=torch.float64,
        attention_window=4,
    )
    model.set_attn_implementation(implementation)
    ids = tokens(2, 41)
    mask = None if pads is None else padded(ids, pads, side)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        monkeypatch.setattr(context, "MIN_BLOCK", 4)
        actual = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    far = ids.clone()
    far[:, :3] = (far[:, :3] + 7) % 61
    with torch.no_grad():  # three layers and two evaluations of the field reach 15 tokens back
        changed = model(far, attention_mask=mask, output_hidden_states=True).hidden_states[-1] - actual[-1]
    assert not changed[:, 18:].any() and changed[:, 8].abs().max() > 1e-3


def test_blocks_come_with_long_windows_too(tiny_model, tokens, monkeypatch):
    """A cache that already holds keys, and queries that fill several blocks."""
    model = tiny_model(HYBRID, is_decoder=True, dtype=torch.float64, attention_window=7)
    ids = tokens(2, 60)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    monkeypatch.setattr(context, "MIN_BLOCK", 4)
    torch.testing.assert_close(in_pieces(model, ids, [9, 40, 1, 10])[0], expected, atol=1e-10, rtol=0)


def test_hyperbolic_attention_reaches_far_beyond_one_centre(tiny_model, tokens):
    """A damping at which one centre serves 31 positions only: steps and pieces stay exact over 300."""
    model = tiny_model("titan_attn", is_decoder=True, dtype=torch.float64, hope_damping=1.0)
    ids = tokens(1, 300)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(in_pieces(model, ids, [100, 1, 1, 150, 48])[0], expected, atol=1e-10, rtol=0)


def test_positions_of_the_callers_choice_are_kept(tiny_model, tokens):
    model = tiny_model(("standard_attn", "titan_attn"), is_decoder=True, dtype=torch.float64)
    ids, positions = tokens(2, 12), torch.arange(0, 36, 3)[None]
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        pieces = [
            model(ids[:, part], position_ids=positions[:, part], cache=cache).logits
            for part in (slice(0, 5), slice(5, 6), slice(6, 12))
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-10, rtol=0)
    assert not cache.is_contiguous
    with torch.no_grad():
        assert (model(ids, use_cache=False).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("positions", [[*range(10)] * 2, [i // 2 for i in range(20)]], ids=["restart", "repeat"])
def test_a_window_counts_tokens_whatever_their_positions(positions, build, tokens):
    model, ids, positions = build("window"), tokens(2, 20), torch.tensor([positions])
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        pieces = [
            model(ids[:, part], position_ids=positions[:, part], cache=cache).logits
            for part in (slice(0, 7), slice(7, 8), slice(8, 20))
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-10, rtol=0)


# --- generate


@every_case
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_cache_without_cache_and_alone(case, beams, build, tokens):
    model, prompts = build(case), tokens(3, 9)
    mask = padded(prompts, (5, 2, 0))
    cached = greedy(model, prompts, attention_mask=mask, num_beams=beams)
    again = greedy(model, prompts, attention_mask=mask, num_beams=beams, use_cache=False)
    assert torch.equal(cached, again)
    for row, pads in enumerate((5, 2, 0)):
        alone = greedy(model, prompts[row : row + 1, pads:], num_beams=beams)
        assert torch.equal(alone[0, 9 - pads :], cached[row, 9:])
    assert cached.shape == (3, 29) and len(cached[:, 9:].unique()) > 3


@every_case
def test_sampling_with_and_without_cache(case, build, tokens):
    model, texts = build(case), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(greedy(model, tokens(2, 5), do_sample=True, top_k=20, use_cache=use_cache))
    assert torch.equal(*texts)


@every_case
def test_generation_from_embeddings_in_chunks_and_onwards(case, build, tokens):
    model, prompts = build(case), tokens(2, 11)
    expected = greedy(model, prompts)
    embeds = model.get_input_embeddings()(prompts)
    assert torch.equal(greedy(model, None, inputs_embeds=embeds), expected[:, 11:])
    assert torch.equal(greedy(model, prompts, prefill_chunk_size=4), expected)
    first = greedy(model, prompts, max_new_tokens=8, return_dict_in_generate=True)
    assert isinstance(first.cache, StateCache)
    onwards = greedy(model, first.sequences, max_new_tokens=12, cache=first.cache)
    assert torch.equal(onwards, expected)


@pytest.mark.parametrize(
    "options", [{"num_return_sequences": 3, "do_sample": True}, {"num_return_sequences": 2, "num_beams": 4}], ids=str
)
def test_several_sequences_a_prompt(options, build, tokens):
    model, texts = build("loops"), []
    for use_cache in (True, False):
        torch.manual_seed(3)
        texts.append(greedy(model, tokens(2, 5), use_cache=use_cache, **options))
    assert torch.equal(*texts) and len(texts[0]) == 2 * options["num_return_sequences"]


@every_case
@pytest.mark.parametrize("beams", [1, 3])
def test_everything_that_generate_can_return(case, beams, build, tokens):
    """Per step: scores, logits, the states of all logical layers, and one row of attention per layer that has it."""
    model, (batch, prompt, steps) = build(case), (2, 5, 4)
    model.set_attn_implementation("eager")
    flags = ("output_scores", "output_logits", "output_hidden_states", "output_attentions", "return_dict_in_generate")
    output = greedy(model, tokens(batch, prompt), max_new_tokens=steps, num_beams=beams, **dict.fromkeys(flags, True))
    model.set_attn_implementation("sdpa")
    rows, config = batch * beams, model.config
    assert output.sequences.shape == (batch, prompt + steps) and isinstance(output.cache, StateCache)
    assert [score.shape for score in output.scores] == [(rows, 61)] * steps == [x.shape for x in output.logits]
    for step, (states, attentions) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
        length, keys = (prompt, prompt) if step == 0 else (1, min(prompt + step, config.attention_window or 99))
        assert [state.shape for state in states] == [(rows, length, 32)] * (config.num_hidden_layers + 1)
        mixers = [config.physical_mixers[i % config.num_physical_layers] for i in range(config.num_hidden_layers)]
        assert len(attentions) == sum(mixer.endswith("attn") for mixer in mixers)
        assert all(weights.shape == (rows, 2, length, keys) for weights in attentions)


def test_generation_goes_on_from_embeddings_and_from_nothing_but_bos(build, tokens):
    model, prompts = build("loops"), tokens(2, 7)
    embeds = model.get_input_embeddings()(prompts)
    first = greedy(model, None, inputs_embeds=embeds, max_new_tokens=5, return_dict_in_generate=True)
    longer = torch.cat([embeds, model.get_input_embeddings()(first.sequences)], dim=1)
    more = greedy(model, None, inputs_embeds=longer, max_new_tokens=6, cache=first.cache)
    assert torch.equal(torch.cat([first.sequences, more], dim=1), greedy(model, prompts, max_new_tokens=11)[:, 7:])
    from_bos = model.generate(bos_token_id=3, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(from_bos, greedy(model, torch.tensor([[3]]), max_new_tokens=6))


def test_bf16_generates_what_it_would_without_a_cache_for_a_while(tiny_model, tokens):
    model = tiny_model(HYBRID, is_decoder=True).to(torch.bfloat16)
    text = greedy(model, tokens(2, 9), max_new_tokens=30)
    assert text.shape == (2, 39)
    cache = model.new_cache()
    with torch.no_grad():
        model(text, cache=cache)
    for entry in cache.layers:
        assert all(tensor.dtype == torch.float32 for name, tensor in entry.tensors.items() if name != "conv")


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
            sizes[start + 50] = cache.state_bytes()
        at_once = model.new_cache()
        model(ids, cache=at_once)
    assert sizes[100] == sizes[1000] > 0
    assert at_once.state_bytes() <= sizes[1000]


def test_state_of_full_attention_grows(tiny_model, tokens):
    model = tiny_model("standard_attn", is_decoder=True)
    sizes = [in_pieces(model, tokens(2, length), [length])[1].state_bytes() for length in (10, 90)]
    assert sizes[1] == 9 * sizes[0]


@pytest.mark.parametrize("fields", [{"ode_solver": "euler", "ode_steps": 3}, {"ode_solver": "rk4", "ode_steps": 2}])
def test_every_evaluation_of_a_field_has_keys_of_its_own(fields, tiny_model, tokens):
    _, cache = in_pieces(tiny_model("ode", is_decoder=True, num_loops=2, **fields), tokens(1, 6), [5, 1])
    evaluations = fields["ode_steps"] * (4 if fields["ode_solver"] == "rk4" else 1)
    assert [len(entry.key_values) for entry in cache.layers] == [evaluations] * 4
    keys = [store.view()[0] for store in cache.layers[0].key_values]
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(keys, keys[1:], strict=False))


def test_one_entry_per_logical_layer(build):
    assert len(build("loops").new_cache().layers) == 10 == 2 * len(build("loops").model.layers)


# --- rows and cropping


@every_case
def test_rows_of_a_cache_can_be_chosen_and_repeated(case, build, tokens):
    model, ids = build(case), tokens(3, 14)
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
def test_attention_can_forget_its_last_tokens(case, build, tokens):
    model, ids = build(case), tokens(2, 20)
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
def test_assisted_decoding_changes_nothing_where_attention_alone_remembers(case, build, tokens):
    model, prompt = build(case), tokens(1, 4).repeat(1, 3)
    assert torch.equal(greedy(model, prompt, prompt_lookup_num_tokens=3), greedy(model, prompt))
    assert torch.equal(greedy(model, prompt, assistant_model=build("sigmoid_attn")), greedy(model, prompt))


@pytest.mark.parametrize("case", ["retnet", "mamba", "titan_memory", "window", "loops"])
def test_what_cannot_be_taken_back_is_refused(case, build, tokens):
    model = build(case)
    _, cache = in_pieces(model, tokens(1, 9), [9])
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        greedy(model, tokens(1, 9), prompt_lookup_num_tokens=3)


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "static"}, "cache_implementation='static' is not available"),
        ({"cache": DynamicCache()}, "cache is a DynamicCache"),
        ({"cache": StateCache(3)}, "cache has 3 entries"),
        ({"cache": StateCache(2, attention_window=4)}, "attention_window=4"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 92}, "need 97 positions but max_position_embeddings=96"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_generation_is_refused(options, message, build, tokens):
    with pytest.raises(ValueError, match=message):
        greedy(build("learned positions"), tokens(2, 6), **options)


def test_the_position_table_is_used_to_its_end(build, tokens):
    model = build("learned positions")
    assert greedy(model, tokens(1, 6), max_new_tokens=91).shape == (1, 97)
    prompts = tokens(2, 90)
    assert greedy(model, prompts, attention_mask=padded(prompts, (3, 2)), max_new_tokens=9).shape == (2, 99)
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        greedy(model, tokens(1, 97), max_new_tokens=1)
    _, cache = in_pieces(model, tokens(1, 90), [90])
    with pytest.raises(ValueError, match="needs 97 positions"):
        model(tokens(1, 7), cache=cache)
    with torch.no_grad():
        model(tokens(1, 6), cache=cache)


@every_case
def test_empty_prompts_are_refused(case, build, tokens):
    model = build(case)
    with pytest.raises(ValueError, match="prompt is empty"):
        greedy(model, tokens(1, 0))
    with pytest.raises(ValueError, match="inputs_embeds is empty"):
        greedy(model, None, inputs_embeds=model.get_input_embeddings()(tokens(1, 0)))


def test_bad_input_leaves_the_cache_as_it_was(build, tokens):
    model = build("loops")
    _, cache = in_pieces(model, tokens(2, 9), [9])
    with pytest.raises(ValueError, match="holds 2 rows but the input has 3"):
        model(tokens(3, 1), cache=cache)
    with pytest.raises(ValueError, match=r"\(2, 1\) or, with the past, \(2, 10\)"):
        model(tokens(2, 1), attention_mask=torch.ones(2, 4), cache=cache)
    with pytest.raises(ValueError, match="position_ids has shape"):
        model(tokens(2, 1), position_ids=torch.ones(2, 4, dtype=torch.long), cache=cache)
    with torch.no_grad():
        actual = model(tokens(2, 1, seed=3), cache=cache).logits
        expected = model(torch.cat([tokens(2, 9), tokens(2, 1, seed=3)], dim=1)).logits[:, -1:]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


def test_an_encoder_takes_no_cache(tiny_model, tokens):
    with pytest.raises(ValueError, match="bidirectional"):
        tiny_model("retnet")(tokens(1, 3), cache=StateCache(2))


def test_a_row_of_pads_alone_is_no_prompt(build, tokens):
    prompts = tokens(3, 5)
    with pytest.raises(ValueError, match="prompt is empty in row 1"):
        greedy(build("retnet"), prompts, attention_mask=padded(prompts, (2, 5, 0)))


def test_pads_need_no_positions(build, tokens):
    model, ids = build("learned positions"), tokens(2, 100)
    with torch.no_grad():
        logits = model(ids, attention_mask=padded(ids, (4, 10))).logits
        torch.testing.assert_close(logits[1:, 10:], model(ids[1:, 10:]).logits, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="needs 97 positions"):
        model(ids, attention_mask=padded(ids, (3, 10)))


def test_cropping_more_than_there_is(build, tokens):
    _, cache = in_pieces(build("standard_attn"), tokens(1, 9), [9])
    with pytest.raises(ValueError, match="holds 9 columns"):
        cache.crop(-10)


def test_checkpointing_and_a_given_cache_exclude_each_other(tiny_model, tokens):
    model = tiny_model("standard_attn", is_decoder=True).train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="cache is given while training with gradient checkpointing"):
        model(tokens(1, 4), cache=model.new_cache())


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
def test_gradients_pass_through_the_cache(case, build, tokens):
    """Two pieces in a row give the gradient of the whole; nothing is overwritten in between."""
    model, ids = build(case), tokens(2, 16)
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
def test_a_cache_begun_in_inference_mode_goes_on_outside(case, build, tokens):
    model, ids, cache = build(case), tokens(2, 14), build(case).new_cache()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, -1]
    with torch.inference_mode():
        for start, stop in ((0, 6), (6, 7), (7, 9)):
            model(ids[:, start:stop], cache=cache)
    with torch.no_grad():
        for start, stop in ((9, 10), (10, 14)):
            actual = model(ids[:, start:stop], cache=cache).logits[:, -1]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
