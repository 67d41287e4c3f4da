"""Generation: what a causal model remembers gives, token for token, what reading the whole text again gives."""

import pytest
import torch
from transformers import DynamicCache

from causal_cases import CASES, HYBRID, LENGTH, greedy, in_pieces, padded
from frankenlm.modeling import attention_blocks
from frankenlm.modeling.cache import StateCache

every_case = pytest.mark.parametrize("case", CASES)


# --- pieces


@every_case
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [LENGTH], [10, 1, 1, 7, 11], [3, 27]], ids=str)
@pytest.mark.parametrize("pads", [None, (5, 1, 0)], ids=["full", "padded"])
def test_a_text_in_pieces_is_the_text(case, sizes, pads, build_causal, tokens):
    model, ids = build_causal(case), tokens(3, LENGTH)
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
def test_a_padded_row_leaves_the_state_of_the_unpadded_one(case, side, build_causal, tokens):
    """Also at the right: whoever goes on from there sees only real tokens."""
    model, ids = build_causal(case), tokens(2, 18)
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
        monkeypatch.setattr(attention_blocks, "MIN_BLOCK", 4)
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
    monkeypatch.setattr(attention_blocks, "MIN_BLOCK", 4)
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
def test_a_window_counts_tokens_whatever_their_positions(positions, build_causal, tokens):
    model, ids, positions = build_causal("window"), tokens(2, 20), torch.tensor([positions])
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        pieces = [
            model(ids[:, part], position_ids=positions[:, part], cache=cache).logits
            for part in (slice(0, 7), slice(7, 8), slice(8, 20))
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-10, rtol=0)


# --- generate


@pytest.mark.parametrize(
    ("case", "beams"),
    [
        pytest.param(case, beams, marks=[] if beams == (1, 3)[number % 2] else [pytest.mark.slow])
        for number, case in enumerate(CASES)
        for beams in (1, 3)
    ],
)
def test_generation_with_cache_without_cache_and_alone(case, beams, build_causal, tokens):
    model, prompts = build_causal(case), tokens(3, 9)
    mask = padded(prompts, (5, 2, 0))
    cached = greedy(model, prompts, attention_mask=mask, num_beams=beams)
    again = greedy(model, prompts, attention_mask=mask, num_beams=beams, use_cache=False)
    assert torch.equal(cached, again)
    for row, pads in enumerate((5, 2, 0)):
        alone = greedy(model, prompts[row : row + 1, pads:], num_beams=beams)
        assert torch.equal(alone[0, 9 - pads :], cached[row, 9:])
    assert cached.shape == (3, 29) and len(cached[:, 9:].unique()) > 3


@every_case
def test_sampling_with_and_without_cache(case, build_causal, tokens):
    model, texts = build_causal(case), []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(greedy(model, tokens(2, 5), do_sample=True, top_k=20, use_cache=use_cache))
    assert torch.equal(*texts)


@every_case
def test_generation_from_embeddings_in_chunks_and_onwards(case, build_causal, tokens):
    model, prompts = build_causal(case), tokens(2, 11)
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
def test_several_sequences_a_prompt(options, build_causal, tokens):
    model, texts = build_causal("loops"), []
    for use_cache in (True, False):
        torch.manual_seed(3)
        texts.append(greedy(model, tokens(2, 5), use_cache=use_cache, **options))
    assert torch.equal(*texts) and len(texts[0]) == 2 * options["num_return_sequences"]


@every_case
@pytest.mark.parametrize("beams", [1, 3])
def test_everything_that_generate_can_return(case, beams, build_causal, tokens):
    """Per step: scores, logits, the states of all logical layers, and one row of attention per layer that has it."""
    model, (batch, prompt, steps) = build_causal(case), (2, 5, 4)
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


def test_generation_goes_on_from_embeddings_and_from_nothing_but_bos(build_causal, tokens):
    model, prompts = build_causal("loops"), tokens(2, 7)
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
def test_bad_generation_is_refused(options, message, build_causal, tokens):
    with pytest.raises(ValueError, match=message):
        greedy(build_causal("learned positions"), tokens(2, 6), **options)


def test_the_position_table_is_used_to_its_end(build_causal, tokens):
    model = build_causal("learned positions")
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
def test_empty_prompts_are_refused(case, build_causal, tokens):
    model = build_causal(case)
    with pytest.raises(ValueError, match="prompt is empty"):
        greedy(model, tokens(1, 0))
    with pytest.raises(ValueError, match="inputs_embeds is empty"):
        greedy(model, None, inputs_embeds=model.get_input_embeddings()(tokens(1, 0)))


def test_bad_input_leaves_the_cache_as_it_was(build_causal, tokens):
    model = build_causal("loops")
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


def test_a_row_of_pads_alone_is_no_prompt(build_causal, tokens):
    prompts = tokens(3, 5)
    with pytest.raises(ValueError, match="prompt is empty in row 1"):
        greedy(build_causal("retnet"), prompts, attention_mask=padded(prompts, (2, 5, 0)))


def test_pads_need_no_positions(build_causal, tokens):
    model, ids = build_causal("learned positions"), tokens(2, 100)
    with torch.no_grad():
        logits = model(ids, attention_mask=padded(ids, (4, 10))).logits
        torch.testing.assert_close(logits[1:, 10:], model(ids[1:, 10:]).logits, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="needs 97 positions"):
        model(ids, attention_mask=padded(ids, (3, 10)))


def test_cropping_more_than_there_is(build_causal, tokens):
    _, cache = in_pieces(build_causal("standard_attn"), tokens(1, 9), [9])
    with pytest.raises(ValueError, match="holds 9 columns"):
        cache.crop(-10)


def test_checkpointing_and_a_given_cache_exclude_each_other(tiny_model, tokens):
    model = tiny_model("standard_attn", is_decoder=True).train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="cache is given while training with gradient checkpointing"):
        model(tokens(1, 4), cache=model.new_cache())
