"""Infinito with a cache: pieces of a text, and generate() with the memory in it."""

import pytest
import torch

from causal_cases import state_bytes
from tiny_infinito import ATTENTION_SLOTS, assert_same, left_padded


@pytest.mark.parametrize("sizes", [[1] * 30, [10, 1, 1, 7, 11], [3, 27]], ids=str)
@pytest.mark.parametrize("fields", [{}, {"attention_window": 5}, {"memory_slots": 20}, ATTENTION_SLOTS], ids=str)
def test_a_text_in_pieces_is_the_text(build_infinito, tokens, sizes, fields):
    model, ids = build_infinito(**fields), tokens(3, 30)
    mask = left_padded(ids, (5, 1, 0))
    cache, logits, start = model.new_cache(), [], 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False)
        for size in sizes:
            stop = start + size
            output = model(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache)
            logits.append(output.logits)
            start = stop
    assert_same(torch.cat(logits, dim=1)[mask.bool()], expected.logits[mask.bool()])
    for name, value in expected.memory_stats.items():
        assert_same(output.memory_stats[name], value)


@pytest.mark.parametrize(
    ("fields", "options", "beams"),
    [
        *((fields, {}, beams) for fields in ({}, {"attention_window": 4}) for beams in (1, 3)),
        *(({}, {"use_memory": False}, beams) for beams in (1, 3)),
        (ATTENTION_SLOTS, {}, 3),
        (ATTENTION_SLOTS, {"use_memory": False}, 1),
    ],
    ids=str,
)
def test_generation_with_cache_is_generation_without(build_infinito, tokens, beams, fields, options):
    model = build_infinito(**fields)
    prompts = tokens(3, 9)
    options = options | {
        "attention_mask": left_padded(prompts, (5, 0, 2)),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
        "num_beams": beams,
    }
    cached = model.generate(prompts, **options)
    assert torch.equal(cached, model.generate(prompts, use_cache=False, **options))
    assert len({tuple(row) for row in cached[:, 9:].tolist()}) > 1


@pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=str)
def test_shuffled_generation_with_cache_is_generation_without(build_infinito, tokens, fields):
    model, prompts = build_infinito(**fields), tokens(3, 9)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompts, shuffle_memory=True, **options)
    assert torch.equal(cached, model.generate(prompts, shuffle_memory=True, use_cache=False, **options))
    assert not torch.equal(cached, model.generate(prompts, **options))


@pytest.mark.parametrize(("fields", "beams"), [({}, 1), ({}, 3), (ATTENTION_SLOTS, 3)], ids=str)
def test_generation_takes_a_carried_memory(build_infinito, tokens, beams, fields):
    model, prompts = build_infinito(**fields), tokens(2, 6)
    state = model(tokens(2, 30, seed=7)).memory_state
    options = {
        "attention_mask": torch.ones_like(prompts),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
        "num_beams": beams,
    }
    carried = model.generate(prompts, memory_state=state, **options)
    assert torch.equal(carried, model.generate(prompts, memory_state=state, use_cache=False, **options))
    assert not torch.equal(carried, model.generate(prompts, **options))


@pytest.mark.parametrize("with_memory_state", [False, True])
def test_generation_from_embeddings_in_chunks_and_several_a_prompt(build_infinito, tokens, with_memory_state):
    model, prompts = build_infinito(), tokens(2, 11)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    if with_memory_state:
        options["memory_state"] = model(tokens(2, 30, seed=7)).memory_state
    expected = model.generate(prompts, **options)
    embeds = model.get_input_embeddings()(prompts)
    for use_cache in (True, False):
        from_embeds = model.generate(inputs_embeds=embeds, use_cache=use_cache, **options)
        assert torch.equal(from_embeds, expected[:, 11:])
    assert torch.equal(model.generate(prompts, prefill_chunk_size=4, **options), expected)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        sampled = options | {"do_sample": True, "num_return_sequences": 3, "use_cache": use_cache}
        texts.append(model.generate(prompts, **sampled))
    assert torch.equal(*texts) and len(texts[0]) == 6


@pytest.mark.parametrize("beams", [1, 3])
def test_everything_that_generate_can_return(build_infinito, tokens, beams):
    model = build_infinito(attention_window=6)
    model.set_attn_implementation("eager")
    flags = ("output_scores", "output_hidden_states", "output_attentions", "return_dict_in_generate")
    output = model.generate(
        tokens(2, 5),
        attention_mask=torch.ones(2, 5, dtype=torch.long),
        max_new_tokens=4,
        do_sample=False,
        num_beams=beams,
        pad_token_id=0,
        **dict.fromkeys(flags, True),
    )
    depth, rows = model.config.num_hidden_layers, 2 * beams
    assert len(output.scores) == len(output.hidden_states) == len(output.attentions) == 4
    for step, (states, attentions) in enumerate(zip(output.hidden_states, output.attentions, strict=True)):
        length = 5 if step == 0 else 1
        assert [state.shape[:2] for state in states] == [(rows, length)] * (depth + 1)
        assert [weights.shape[-2:] for weights in attentions] == [(length, min(5 + step, 6))] * depth


@pytest.mark.parametrize("fields", [{}, {**ATTENTION_SLOTS, "memory_layers": [0, 1, 2]}], ids=str)
def test_decoding_needs_no_more_memory_for_longer_texts(build_infinito, tokens, fields):
    model = build_infinito(**{"attention_window": 8, "max_position_embeddings": 90, **fields})
    ids, cache, sizes = tokens(2, 90), model.new_cache(), [0]
    with torch.no_grad():
        for step in range(90):
            model(ids[:, step : step + 1], cache=cache)
            sizes.append(state_bytes(cache))
    assert sizes[30] == sizes[90] > 0


def test_no_assisted_decoding_with_memory(build_infinito):
    assert not build_infinito().can_forget() and not build_infinito(memory_layers=[], attention_window=4).can_forget()
    assert build_infinito(memory_layers=[]).can_forget() and build_infinito()._is_stateful
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        build_infinito().generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=100, pad_token_id=0)
