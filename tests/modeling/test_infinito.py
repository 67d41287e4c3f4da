"""Infinito as a model: presets, causality, padding, cache, carried memory, ablations, exploration, saving."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch

from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM, InfinitoModel, preset_files
from frankenlm.modeling.exploration import ExplorationSampling

VOCAB, SEGMENT = 61, 4
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "memory_layers": [1, 2],
    "memory_slots": 5,
    "memory_dim": 8,
    "memory_heads": 2,
    "memory_segment": SEGMENT,
    "head_bias_init": "zeros",
    "exploration_sigma": 0.0,
}

# Runs without the package: an import hook refuses it, which an editable install would otherwise defeat.
STRANGER = """
import sys
class NoFrankenlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "frankenlm":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NoFrankenlm())
import torch, transformers
folder, kind, again = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(3, 20)[None])[0], again + "/output.pt")
if kind == "AutoModelForCausalLM":
    torch.save(model.generate(torch.arange(3, 20)[None], max_new_tokens=8, pad_token_id=0), again + "/text.pt")
model.save_pretrained(again)
"""


def tiny_infinito(**fields):
    return InfinitoConfig(**TINY | fields)


@pytest.fixture(scope="module")
def build(enliven):
    """build(**fields) -> a lively float64 model in eval mode."""

    def make(*, dtype=torch.float64, **fields):
        torch.manual_seed(0)
        return enliven(InfinitoForCausalLM(tiny_infinito(**fields)).eval()).to(dtype)

    return make


def assert_same(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def left_padded(ids, pads):
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        mask[row, :count] = 0
    return mask


# --- presets and configuration


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("infinito", {}, 71_085_651),
        ("infinito", {"tie_word_embeddings": True, "head_bias": False}, 45_303_810),
        ("infinito", {"memory_layers": []}, 71_085_651 - 132_610),
        ("infinito-small", {}, 1_997_954),
    ],
)
def test_parameter_count(name, fields, count):
    with torch.device("meta"):
        model = InfinitoForCausalLM(InfinitoConfig.from_preset(name, **fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"memory_layer": [1]}, r"unknown key 'memory_layer'\. Did you mean 'memory_layers'\?"),
        ({"memory_layers": [6]}, r"memory_layers=\[6\] names layer 6, but num_hidden_layers=6 gives layers 0\.\.5"),
        ({"memory_layers": [-1]}, "names layer -1"),
        ({"memory_layers": [2, 2]}, r"memory_layers=\[2, 2\] names a layer twice"),
        ({"is_decoder": False}, r"memory_layers=\[3\] needs is_decoder=True"),
        ({"memory_heads": 5}, "memory_heads=5 must divide memory_dim=64"),
        ({"memory_slots": 0}, "memory_slots=0 must be positive"),
        ({"memory_decay": 0.0}, r"memory_decay=0\.0 must lie in \(0, 1\]"),
        ({"exploration_schedule": "cosin"}, r"exploration_schedule='cosin' is not known\. Did you mean 'cosine'\?"),
        ({"exploration_sigma": -1.0}, r"exploration_sigma=-1\.0 must not be negative"),
        ({"num_attention_heads": 7}, "num_attention_heads=7 must divide hidden_size=512"),
        ({"attention_window": 0}, "attention_window=0 must be positive"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"pad_token_id": 50257}, "pad_token_id=50257 must lie in"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_bad_configuration(overrides, message):
    with pytest.raises(ValueError, match=message):
        InfinitoConfig.from_preset("infinito", **overrides)


def test_the_model_checks_a_configuration_changed_by_hand():
    config = tiny_infinito()
    config.memory_layers = [9]
    with pytest.raises(ValueError, match="names layer 9"):
        InfinitoModel(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {model_type: infinito, memory_slot: 3}", r"unknown key 'memory_slot'\. Did you mean 'memory_slots'"),
        ("model: {model_type: frankenstein}", "model_type 'frankenstein', not 'infinito'"),
    ],
)
def test_bad_preset_file(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(preset_files, "PRESET_FOLDER", tmp_path)
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        InfinitoConfig.from_preset("broken")


def test_a_bidirectional_stack_needs_no_memory_and_has_no_language_head():
    config = tiny_infinito(is_decoder=False, memory_layers=[])
    output = InfinitoModel(config).eval()(torch.arange(5)[None])
    assert output.memory_state is None and output.cache is None
    with pytest.raises(ValueError, match="needs is_decoder=True"):
        InfinitoForCausalLM(config)


def test_starts_at_the_uniform_loss_and_every_part_is_initialised():
    torch.manual_seed(0)
    model = InfinitoForCausalLM(InfinitoConfig.from_preset("infinito-small")).eval()
    ids = torch.randint(8192, (2, 64))
    assert abs(model(ids, labels=ids).loss.item() - math.log(8192)) < 0.3
    memory = model.model.memories["2"]
    assert memory.o_proj.weight.eq(0).all() and memory.gate.bias.eq(0).all()
    assert 0.015 < memory.k_proj.weight.std() < 0.025 and 0.015 < memory.pooling.weight.std() < 0.025
    branch_end = model.model.layers[0].ffn.down_proj.weight.std().item()
    assert branch_end == pytest.approx(0.02 / (2 * 4) ** 0.5, rel=0.05)


def test_weight_decay_spares_vectors(build):
    names = build().no_weight_decay_names()
    assert {f"model.memories.1.{part}.weight" for part in ("gate", "pooling", "importance")} <= names
    assert "model.norm_f.weight" in names and "lm_head.decoder.bias" in names
    assert not {"model.memories.1.k_proj.weight", "model.embeddings.embed_tokens.weight"} & names


def test_learns_a_batch_by_heart(tokens):
    torch.manual_seed(0)
    model = InfinitoForCausalLM(tiny_infinito(exploration_sigma=0.05)).train()
    ids = tokens(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        model.set_exploration(step / 150)
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


# --- what must not matter, and what must


@pytest.mark.parametrize("at", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 6 * SEGMENT, 33])
@pytest.mark.parametrize("slots", [5, 20])
def test_the_future_is_not_seen(build, tokens, at, slots):
    model, ids = build(memory_slots=slots), tokens(2, 34)
    changed = torch.cat([ids[:, :at], (ids[:, at:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at:], after[:, at:])


def test_rows_do_not_meet(build, tokens):
    model, ids = build(), tokens(4, 34)
    with torch.no_grad():
        assert_same(model(ids[1:2]).logits, model(ids).logits[1:2])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(build, tokens, attention):
    model, ids, pads = build(attn_implementation=attention), tokens(2, 34), 7
    filler = tokens(2, pads, seed=3)
    mask = torch.ones(2, 34 + pads, dtype=torch.long)
    with torch.no_grad():
        expected = model(ids)
        left = model(torch.cat([filler, ids], 1), attention_mask=mask.index_fill(1, torch.arange(pads), 0))
        right = model(torch.cat([ids, filler], 1), attention_mask=mask.index_fill(1, torch.arange(34, 34 + pads), 0))
    assert_same(left.logits[:, pads:], expected.logits)
    assert_same(right.logits[:, :34], expected.logits)
    for name, value in expected.memory_stats.items():
        assert_same(left.memory_stats[name], value)
        assert_same(right.memory_stats[name], value)


def test_eager_is_sdpa(build, tokens):
    ids = tokens(2, 30)
    with torch.no_grad():
        eager, sdpa = (build(attn_implementation=name)(ids).logits for name in ("eager", "sdpa"))
    assert_same(eager, sdpa)


@pytest.mark.parametrize("memory_layers", [[0], [1, 2]])
def test_gradients_reach_the_memory(build, tokens, memory_layers):
    model, ids = build(memory_layers=memory_layers), tokens(2, 34)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.model.memories.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


# --- what the memory tells


def test_statistics_and_reads(build, tokens):
    model, ids = build(memory_slots=20), tokens(3, 34)
    output = model(ids, output_memory_reads=True)
    assert [reads.shape for reads in output.memory_reads] == [(3, 34, 21)] * 2
    assert {name: value.shape for name, value in output.memory_stats.items()} == dict.fromkeys(
        ("slots_used", "mean_importance", "rotation", "null_mass"), (3,)
    )
    assert output.memory_stats["slots_used"].tolist() == [34 // SEGMENT] * 3
    null = torch.stack([reads[..., -1].mean(1) for reads in output.memory_reads]).mean(0)
    assert_same(output.memory_stats["null_mass"], null)
    assert output.memory_stats["rotation"].eq(0).all() and output.memory_stats["mean_importance"].min() > 0
    assert not any(value.requires_grad for value in output.memory_stats.values())
    assert build()(ids).memory_stats["rotation"].eq((34 // SEGMENT - 5) / 5).all()
    assert model(ids).memory_reads is None


def test_the_preset_uses_its_memory_after_16_tokens():
    model = InfinitoForCausalLM(InfinitoConfig.from_preset("infinito-small")).eval()
    with torch.no_grad():
        used = [model(torch.arange(length)[None]).memory_stats["slots_used"].item() for length in (15, 16, 32)]
    assert used == [0, 1, 2]


@pytest.mark.parametrize("off", [{"use_memory": False}, {"memory_layers": []}])
def test_memory_off_is_the_model_without_memory(build, tokens, off):
    model, ids = build(), tokens(2, 34)
    without = InfinitoForCausalLM(tiny_infinito(memory_layers=[])).double().eval()
    missing = without.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys and all("memories" in name for name in missing.unexpected_keys)
    expected = without(ids, labels=ids)
    output = (model if "use_memory" in off else without)(ids, labels=ids, use_memory=False)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert output.memory_state is output.memory_stats is output.memory_reads is None
    assert expected.memory_state is None
    assert (model(ids).logits - expected.logits).abs().max() > 0.1


def test_shuffled_memory(build, tokens):
    model, ids = build(memory_slots=20), tokens(3, 34)
    with torch.no_grad():
        own, shuffled = model(ids).logits, model(ids, shuffle_memory=True).logits
        assert torch.equal(own[:, :SEGMENT], shuffled[:, :SEGMENT])
        assert (own - shuffled)[:, SEGMENT:].abs().amax((1, 2)).min() > 0.01
        alike = ids[:1].expand(3, -1)
        assert_same(model(alike, shuffle_memory=True).logits, model(alike).logits)
        changed = torch.cat([ids[:2], (ids[2:] + 1) % VOCAB])
        moved = (model(changed, shuffle_memory=True).logits - shuffled).abs().amax((1, 2)) > 1e-6
        # Only row 2 has changed. Row 1 reads its memory, and row 0 row 1's, whose later layer has seen that.
        assert moved.tolist() == [True, True, True]
    with pytest.raises(ValueError, match="give at least two rows"):
        model(ids[:1], shuffle_memory=True)
    with pytest.raises(ValueError, match="shuffle_memory=True needs the memory"):
        model(ids, shuffle_memory=True, use_memory=False)


def test_with_one_memory_layer_a_row_reads_one_other(build, tokens):
    model, ids = build(memory_layers=[1]), tokens(4, 34)
    changed = torch.cat([ids[:3], (ids[3:] + 1) % VOCAB])
    with torch.no_grad():
        before, after = (model(each, shuffle_memory=True).logits for each in (ids, changed))
    assert ((before - after).abs().amax((1, 2)) > 1e-6).tolist() == [False, False, True, True]


# --- the memory carried on


def test_memory_reads_go_on_where_the_last_window_ended(build, tokens):
    """At the first layer, without positions, a memory sees tokens alone: windows then are one text, read for read."""
    model, ids = build(memory_layers=[0]), tokens(3, 50)
    with torch.no_grad():
        model.model.embeddings.embed_positions.weight.zero_()
        whole = model(ids, output_memory_reads=True)
        first = model(ids[:, :22], output_memory_reads=True)
        second = model(ids[:, 22:], memory_state=first.memory_state, output_memory_reads=True)
    assert_same(torch.cat([first.memory_reads[0], second.memory_reads[0]], dim=1), whole.memory_reads[0])
    for name, value in whole.memory_stats.items():
        assert_same(second.memory_stats[name], value)


@pytest.mark.parametrize("cuts", [(1,), (SEGMENT,), (9, 30), (13, 14, 15)], ids=str)
def test_windows_with_carried_memory_are_one_text(build, tokens, cuts):
    """With attention on the token itself and no positions, memory is all that connects tokens."""
    model, ids = build(attention_window=1), tokens(3, 40)
    mask = left_padded(ids, (0, 3, 6))
    with torch.no_grad():
        model.model.embeddings.embed_positions.weight.zero_()
        whole = model(ids, attention_mask=mask)
        state, logits = None, []
        for start, stop in zip((0, *cuts), (*cuts, 40), strict=True):
            output = model(ids[:, start:stop], attention_mask=mask[:, start:stop], memory_state=state)
            state, logits = output.memory_state, [*logits, output.logits]
    real = mask.bool()
    assert_same(torch.cat(logits, dim=1)[real], whole.logits[real])
    forgetful = model(ids[:, cuts[-1] :], attention_mask=mask[:, cuts[-1] :]).logits
    if cuts[-1] >= SEGMENT:
        assert (forgetful - logits[-1])[0].abs().max() > 1e-3


def test_state_hangs_on_the_graph_in_training_only(build, tokens):
    model, ids = build(), tokens(2, 10)
    assert not model(ids).memory_state[0].keys.requires_grad
    state = model.train()(ids).memory_state
    assert state[0].keys.requires_grad
    model(ids, labels=ids, memory_state=state).loss.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state[:1], r"memory_state holds 1 states, but memory_layers=\[1, 2\] needs 2"),
        (lambda state: [each.select(torch.tensor([0])) for each in state], r"memory_state\[0\] holds keys of shape"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(build, tokens, change, message):
    model, ids = build(), tokens(2, 10)
    state = model(ids).memory_state
    with pytest.raises(ValueError, match=message):
        model(ids, memory_state=change(state))


def test_a_state_of_another_kind_or_segment_is_refused(build, tokens):
    model, ids = build(memory_segment=4), tokens(2, 10)
    state = build(memory_segment=16)(tokens(2, 30)).memory_state
    with pytest.raises(ValueError, match="has 14 tokens in its open segment, but memory_segment=4"):
        model(ids, memory_state=state)
    for wrong in (state[0], {"keys": state[0].keys}, [state[0].keys, state[0].keys]):
        with pytest.raises(ValueError, match="expected a SlotMemoryState per memory layer"):
            model(ids, memory_state=wrong)


def test_contradictions_are_refused(build, tokens):
    model, ids = build(), tokens(2, 10)
    output = model(ids)
    with pytest.raises(ValueError, match="beside a filled cache"):
        model(ids, memory_state=output.memory_state, cache=output.cache)
    with pytest.raises(ValueError, match="but the memory is off"):
        model(ids, memory_state=output.memory_state, use_memory=False)
    with pytest.raises(ValueError, match="use_memory=False differs from the calls that filled"):
        model(ids, cache=output.cache, use_memory=False)
    without = model(ids, use_memory=False).cache
    with pytest.raises(ValueError, match="use_memory=True differs"):
        model(ids, cache=without)
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        model(tokens(1, 97))
    with pytest.raises(ValueError, match="sequence is empty"):
        model(ids[:, :0])
    with pytest.raises(ValueError, match="exactly one of"):
        model()


# --- the cache


@pytest.mark.parametrize("sizes", [[1] * 30, [10, 1, 1, 7, 11], [3, 27]], ids=str)
@pytest.mark.parametrize("fields", [{}, {"attention_window": 5}, {"memory_slots": 20}], ids=str)
def test_a_text_in_pieces_is_the_text(build, tokens, sizes, fields):
    model, ids = build(**fields), tokens(3, 30)
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


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", [{}, {"use_memory": False}, {"attention_window": 4}], ids=str)
def test_generation_with_cache_is_generation_without(build, tokens, beams, options):
    options = dict(options)
    model = build(attention_window=options.pop("attention_window", None))
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


def test_shuffled_generation_with_cache_is_generation_without(build, tokens):
    model, prompts = build(), tokens(3, 9)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompts, shuffle_memory=True, **options)
    assert torch.equal(cached, model.generate(prompts, shuffle_memory=True, use_cache=False, **options))
    assert not torch.equal(cached, model.generate(prompts, **options))


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_takes_a_carried_memory(build, tokens, beams):
    model, prompts = build(), tokens(2, 6)
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
def test_generation_from_embeddings_in_chunks_and_several_a_prompt(build, tokens, with_memory_state):
    model, prompts = build(), tokens(2, 11)
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
def test_everything_that_generate_can_return(build, tokens, beams):
    model = build(attention_window=6)
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


def test_decoding_needs_no_more_memory_for_longer_texts(build, tokens):
    model = build(attention_window=8, max_position_embeddings=1000)
    ids, cache, sizes = tokens(2, 1000), model.new_cache(), [0]
    with torch.no_grad():
        for step in range(1000):
            model(ids[:, step : step + 1], cache=cache)
            sizes.append(cache.state_bytes())
    assert sizes[100] == sizes[1000] > 0


def test_no_assisted_decoding_with_memory(build):
    assert not build().can_forget() and not build(memory_layers=[], attention_window=4).can_forget()
    assert build(memory_layers=[]).can_forget() and build()._is_stateful
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        build().generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=100, pad_token_id=0)


# --- exploration


def noisy(build, **fields):
    return build(exploration_sigma=0.1, **fields)


def test_noise_in_training_only_and_by_the_schedule(build, tokens):
    model, ids = noisy(build), tokens(2, 20)
    clean = build()(ids).logits
    assert torch.equal(model(ids).logits, clean)
    model.train()
    sizes = []
    for progress in (0.0, 0.5, 1.0):
        model.set_exploration(progress)
        assert model.model.exploration.strength == pytest.approx(0.1 * (1 - progress))  # the cosine meets the line here
        sizes.append((model(ids).logits - clean).std().item())
    assert sizes[0] > 1.2 * sizes[1] > 0 and sizes[2] == 0
    model.set_exploration(0.25)
    assert model.model.exploration.strength == pytest.approx(0.1 * (1 + 0.5**0.5) / 2)
    constant = noisy(build, exploration_schedule="constant")
    constant.set_exploration(1.0)
    assert constant.model.exploration.strength == 0.1


def test_noise_is_as_large_as_told_and_has_no_gradient(build):
    noise = noisy(build).train().model.exploration
    x = (torch.randn(4, 50, 32) * torch.tensor([1.0, 10.0, 0.1, 0.0])[:, None, None]).requires_grad_()
    added = noise(x) - x
    sizes, rms = added.square().mean((1, 2)).sqrt(), x.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(sizes, 0.1 * rms, rtol=0.1, atol=1e-9)
    assert torch.equal(torch.autograd.grad(noise(x).sum(), x)[0], torch.ones_like(x))


def test_noise_has_a_generator_of_its_own(build, tokens):
    ids = tokens(2, 20)

    def run(**fields):
        model = noisy(build, **fields).train()
        return torch.stack([model(ids).logits for _ in range(2)])

    before = torch.get_rng_state()
    first = run()
    torch.manual_seed(99)
    again = run()
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert not torch.equal(first, run(exploration_seed=1))
    model = noisy(build).train()
    torch.set_rng_state(before)
    model(ids)
    assert torch.equal(before, torch.get_rng_state())
    copy.deepcopy(model)


def test_a_resumed_training_meets_the_noise_of_the_unbroken_one(build, tokens):
    """The noise of a step depends on its progress, not on how many steps this process has made."""
    ids, model = tokens(2, 20), noisy(build).train()
    for step in range(4):
        model.set_exploration(step / 4)
        unbroken = model(ids).logits
    resumed = noisy(build).train()
    resumed.set_exploration(3 / 4)
    assert torch.equal(resumed(ids).logits, unbroken)
    resumed.set_exploration(2 / 4)
    assert not torch.equal(resumed(ids).logits, unbroken)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_the_run_is_refused(build, progress):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        build().set_exploration(progress)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_meets_the_same_noise(build, tokens, reentrant):
    ids, gradients = tokens(2, 20), []
    for checkpointing in (False, True):
        model = noisy(build, dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_same(gradients[1][name], gradient)


def test_sampler_explores_as_often_as_told_and_is_greedy_otherwise():
    ids = torch.randint(VOCAB, (4000, 6))
    scores = torch.randn(4000, 11)
    sampler = ExplorationSampling(probability=0.3, temperature=0.7, seed=4)
    explores, result = sampler.explores(ids), sampler(ids, scores)
    assert explores.double().mean().item() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(result[explores], scores[explores] / 0.7)
    greedy = result[~explores]
    assert torch.equal(greedy.argmax(1), scores[~explores].argmax(1)) and greedy.isfinite().sum(1).eq(1).all()
    assert not ExplorationSampling(0.0).explores(ids).any() and ExplorationSampling(1.0).explores(ids).all()
    other = ExplorationSampling(0.3, seed=5).explores(ids)
    assert (other & explores).double().mean().item() == pytest.approx(0.09, abs=0.02)
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    assert (sampler.explores(longer) & explores).double().mean().item() == pytest.approx(0.09, abs=0.02)


def test_sampler_decides_by_the_rows_own_tokens():
    ids = torch.randint(1, VOCAB, (64, 6))
    sampler = ExplorationSampling(seed=4, pad_token_id=0)
    together = sampler.explores(ids)
    assert torch.equal(torch.cat([sampler.explores(row[None]) for row in ids]), together)
    assert torch.equal(sampler.explores(ids.flip(0)), together.flip(0))
    padded = torch.cat([torch.zeros(64, 5, dtype=torch.long), ids], dim=1)
    assert torch.equal(sampler.explores(padded), together)
    assert not torch.equal(ExplorationSampling(seed=4).explores(padded), together)
    inner = ids.clone()
    inner[:, 3] = 0
    assert not torch.equal(sampler.explores(inner), together)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, r"probability=1\.5 must lie in \[0, 1\]"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive"),
        ({"temperature": float("nan")}, "temperature=nan must be positive"),
        ({"seed": -1}, "seed=-1 must lie in"),
    ],
)
def test_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExplorationSampling(**arguments)


def test_generation_explores(build, tokens):
    model, prompts = build(), tokens(2, 6)
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 20, "pad_token_id": 0, "top_k": 0}
    greedy = model.generate(prompts, do_sample=False, **{**options, "top_k": None})
    never, always = (
        model.generate(prompts, do_sample=True, logits_processor=[ExplorationSampling(p, 2.0)], **options)
        for p in (0.0, 1.0)
    )
    assert torch.equal(never, greedy) and not torch.equal(always, greedy)


# --- saving


def test_round_trip(build, tokens, tmp_path):
    ids = tokens(2, 20)
    for tied in (False, True):
        model = build(dtype=torch.float32, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(tied))
        loaded = InfinitoForCausalLM.from_pretrained(tmp_path / str(tied))
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
        assert (loaded.lm_head.decoder.weight is loaded.model.embeddings.embed_tokens.weight) == tied
        half = InfinitoForCausalLM.from_pretrained(tmp_path / str(tied), dtype=torch.bfloat16).eval()
        output = half(ids)
        assert output.logits.dtype == torch.bfloat16 and output.memory_state[0].keys.dtype == torch.float32
    weights = InfinitoForCausalLM(tiny_infinito()).state_dict()
    assert not [name for name in weights if "state" in name or "slot" in name], "the memory must not be saved"


@pytest.mark.parametrize(
    ("head", "kind"), [(InfinitoForCausalLM, "AutoModelForCausalLM"), (InfinitoModel, "AutoModel")]
)
def test_loads_where_the_package_is_missing(tmp_path, head, kind):
    torch.manual_seed(0)
    model = head(tiny_infinito()).eval()
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    model.save_pretrained(first)
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", STRANGER, str(first), kind, str(second)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 20)[None])[0]
    assert torch.equal(torch.load(second / "output.pt", weights_only=True), expected)
    if kind == "AutoModelForCausalLM":
        text = model.generate(torch.arange(3, 20)[None], max_new_tokens=8, pad_token_id=0)
        assert torch.equal(torch.load(second / "text.pt", weights_only=True), text)
    carried = {path.name for path in first.glob("*.py")}
    assert carried == {path.name for path in second.glob("*.py")} and "modeling_frankenstein.py" not in carried
    offered = json.loads((first / "config.json").read_text())["auto_map"]
    assert offered.keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
