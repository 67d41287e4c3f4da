"""Infinito as a model: presets, causality, padding, gradients, saving."""

import json
import math

import pytest
import torch

from frankenlm.modeling import InfinitoConfig, InfinitoForCausalLM, InfinitoModel, preset_files
from tiny_infinito import ATTENTION_SLOTS, SEGMENT, VOCAB, assert_same, tiny_infinito

every_type = pytest.mark.parametrize("fields", [{}, ATTENTION_SLOTS], ids=["slots", "attention_slots"])

# --- presets and configuration


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("infinito", {}, 70_965_353),
        ("infinito", {"tie_word_embeddings": True, "head_bias": False}, 45_183_512),
        ("infinito", {"memory_layers": []}, 70_965_353 - 3 * 8 * 513),
        ("infinito", {"memory_type": "slots", "memory_layers": [3]}, 71_085_651),  # as it was
        ("infinito-small", {}, 1_982_216),
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
        ({"is_decoder": False}, r"memory_layers=\[1, 3, 5\] needs is_decoder=True"),
        ({"memory_type": "slots", "memory_heads": 5}, "memory_heads=5 must divide memory_dim=64"),
        ({"memory_type": "slot"}, r"memory_type='slot' is not known\. Did you mean 'slots'\?"),
        ({"attention_window": None}, "memory_type='attention_slots' needs an attention_window"),
        ({"memory_slots": 63}, "memory_slots=63 must be at least memory_segment=64"),
        ({"norm_style": "prenorm"}, "norm_style='prenorm' is not known"),
        ({"embedding_conv_depthwise": True}, "does nothing without an embedding_conv_kernel"),
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
    ("fields", "message"),
    [
        ({**ATTENTION_SLOTS, "memory_slots": 3}, "memory_slots=3 must be at least memory_segment=4"),
        ({"memory_heads": 3}, "memory_heads=3 must divide memory_dim=8"),
    ],
)
def test_sizes_are_compared_where_there_is_a_memory(fields, message):
    InfinitoModel(tiny_infinito(**fields | {"memory_layers": []}))
    with pytest.raises(ValueError, match=message):
        InfinitoModel(tiny_infinito(**fields))


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
    votes = model.model.layers[1].attention.importance
    assert 0.015 < votes.weight.std() < 0.025 and votes.bias.eq(2).all()
    branch_end = model.model.layers[0].ffn.down_proj.weight.std().item()
    assert branch_end == pytest.approx(0.02 / (2 * 4) ** 0.5, rel=0.05)


def test_weight_decay_spares_vectors(build_infinito):
    names = build_infinito().no_weight_decay_names()
    assert {f"model.memories.1.{part}.weight" for part in ("gate", "pooling", "importance")} <= names
    assert "model.norm_f.weight" in names and "lm_head.decoder.bias" in names
    assert not {"model.memories.1.k_proj.weight", "model.embeddings.embed_tokens.weight"} & names
    names = build_infinito(**ATTENTION_SLOTS).no_weight_decay_names()
    assert {f"model.layers.2.attention.importance.{part}" for part in ("weight", "bias")} <= names
    assert "model.layers.2.attention.k_proj.weight" not in names


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
@pytest.mark.parametrize("fields", [{"memory_slots": 5}, {"memory_slots": 20}, ATTENTION_SLOTS], ids=str)
def test_the_future_is_not_seen(build_infinito, tokens, at, fields):
    model, ids = build_infinito(**fields), tokens(2, 34)
    changed = torch.cat([ids[:, :at], (ids[:, at:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at:], after[:, at:])


@every_type
def test_rows_do_not_meet(build_infinito, tokens, fields):
    model, ids = build_infinito(**fields), tokens(4, 34)
    with torch.no_grad():
        assert_same(model(ids[1:2]).logits, model(ids).logits[1:2])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_type
def test_padding_changes_nothing(build_infinito, tokens, attention, fields):
    model, ids, pads = build_infinito(attn_implementation=attention, **fields), tokens(2, 34), 7
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


def test_eager_is_sdpa(build_infinito, tokens):
    ids = tokens(2, 30)
    with torch.no_grad():
        eager, sdpa = (build_infinito(attn_implementation=name)(ids).logits for name in ("eager", "sdpa"))
    assert_same(eager, sdpa)


@pytest.mark.parametrize("memory_layers", [[0], [1, 2]])
def test_gradients_reach_the_memory(build_infinito, tokens, memory_layers):
    model, ids = build_infinito(memory_layers=memory_layers), tokens(2, 34)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.model.memories.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


def test_gradients_reach_the_importance_where_slots_are_replaced(build_infinito, tokens):
    for length, learns in ((34, True), (ATTENTION_SLOTS["attention_window"] + ATTENTION_SLOTS["memory_slots"], False)):
        model, ids = build_infinito(**ATTENTION_SLOTS), tokens(2, length)
        model(ids, labels=ids).loss.backward()
        for layer in model.model.layers[1:]:
            assert bool(layer.attention.importance.weight.grad.abs().max() > 1e-6) == learns
            assert layer.attention.k_proj.weight.grad.abs().max() > 1e-6


def test_gradient_checkpointing_changes_nothing(build_infinito, tokens):
    gradients, ids = [], tokens(2, 34)
    for checkpoints in (False, True):
        model = build_infinito(**ATTENTION_SLOTS).train()
        if checkpoints:
            model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(gradients[0], gradients[1])


def test_a_window_of_training_is_not_that_of_evaluation(build_infinito, tokens):
    model, ids = build_infinito(**ATTENTION_SLOTS), tokens(2, 34)
    with torch.no_grad():
        usual = model(ids).logits
        model.set_training_window(9)
        assert torch.equal(model(ids).logits, usual)
        drawn = model.train()(ids).logits
        model.set_training_window(None)
        assert torch.equal(model(ids).logits, usual)
        model.config.attention_window = 9
        assert torch.equal(model.eval()(ids).logits, drawn)
    with pytest.raises(ValueError, match="attention_window=0 must be positive"):
        model.set_training_window(0)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_window_of_training_takes_no_cache(build_infinito, tokens, checkpoints):
    model, ids = build_infinito(attention_window=5), tokens(2, 6)
    cache = model(ids).cache
    model.set_training_window(3)
    model(ids, cache=cache)  # evaluation has no part in it
    model.train()
    assert model(ids).cache is None
    if checkpoints:
        model.activation_checkpointing_enable()
    for asked, name in (({"cache": cache}, "cache"), ({"use_cache": True}, "use_cache=True")):
        with pytest.raises(ValueError, match=rf"{name} is given while training .*set_training_window\(3\)"):
            model(ids, **asked)
    with pytest.raises(ValueError, match="attention_window=5 needs"):
        model.generate(ids, max_new_tokens=1, do_sample=False)


# --- saving


def test_a_configuration_without_a_memory_type_has_the_memory_there_was_before(tmp_path):
    InfinitoForCausalLM(tiny_infinito()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("memory_type") == "slots"
    path.write_text(json.dumps(config))
    assert list(InfinitoForCausalLM.from_pretrained(tmp_path).model.memories) == ["1", "2"]


@every_type
def test_round_trip(build_infinito, tokens, tmp_path, fields):
    ids = tokens(2, 20)
    for tied in (False, True):
        model = build_infinito(dtype=torch.float32, tie_word_embeddings=tied, **fields)
        model.save_pretrained(tmp_path / str(tied))
        loaded = InfinitoForCausalLM.from_pretrained(tmp_path / str(tied))
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
        assert (loaded.lm_head.decoder.weight is loaded.model.embeddings.embed_tokens.weight) == tied
        half = InfinitoForCausalLM.from_pretrained(tmp_path / str(tied), dtype=torch.bfloat16).eval()
        output = half(ids)
        assert output.logits.dtype == torch.bfloat16 and output.memory_state[0].importance.dtype == torch.float32
    weights = InfinitoForCausalLM(tiny_infinito(**fields)).state_dict()
    assert not [name for name in weights if "state" in name or "slot" in name], "the memory must not be saved"
