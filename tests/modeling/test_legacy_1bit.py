"""Legacy-1bit as a model: presets, how it starts, what is ternary, learning, saving."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM, Legacy1BitModel, preset_files
from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear
from tiny_infinito import assert_same
from tiny_legacy import KINDS, MODERN, TINY, VOCAB, low_bit_layers, tiny_legacy

every_kind = pytest.mark.parametrize("kind", KINDS)


# --- presets and configuration


@pytest.mark.parametrize(
    ("name", "fields", "count", "ternary"),
    [
        ("legacy-1bit", {}, 1_745_667, 1_705_472),
        ("legacy-1bit", {"use_bitnet": False}, 1_745_667, 0),
        ("legacy-1bit", {"bitnet_embedding": False, "bitnet_head": False}, 1_745_667, 1_705_472 - 2 * 66_304),
        ("legacy-1bit", {"bitnet_attention": False}, 1_745_667, 1_705_472 - 2 * 4 * 256 * 256),
        ("legacy-1bit", {"bitnet_ffn": False}, 1_745_667, 1_705_472 - 2 * 2 * 256 * 1024),
        ("legacy-1bit-base", {}, 10_721_280, 10_616_832),
        ("legacy-1bit-base", {"use_bitnet": False}, 10_721_280, 0),
    ],
)
def test_parameter_count(name, fields, count, ternary):
    with torch.device("meta"):
        model = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset(name, **fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(layer.weight.numel() for layer in low_bit_layers(model).values()) == ternary


def test_the_defaults_are_the_preset():
    fields = Legacy1BitConfig.known_keys() - {"pad_token_id", "bos_token_id", "eos_token_id"}  # the tokenizer's affair
    default, preset = Legacy1BitConfig().to_dict(), Legacy1BitConfig.from_preset("legacy-1bit").to_dict()
    assert {name: default[name] for name in fields if name in default} == {
        name: preset[name] for name in fields if name in preset
    }


def test_auto_classes_know_the_family():
    config = AutoConfig.for_model("legacy_1bit", **TINY)
    assert type(config) is Legacy1BitConfig
    assert type(AutoModel.from_config(config)) is Legacy1BitModel
    assert type(AutoModelForCausalLM.from_config(config)) is Legacy1BitForCausalLM


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"use_bitnets": True}, r"unknown key 'use_bitnets'\. Did you mean 'use_bitnet'\?"),
        ({"w_scheme": "ternary"}, r"w_scheme='ternary' is not known"),
        ({"scale_axis": "column"}, "scale_axis='column' is not known"),
        ({"position_type": "ropes"}, r"position_type='ropes' is not known\. Did you mean 'rope'\?"),
        ({"norm_type": "derf"}, "norm_type='derf' is not known"),
        ({"embedding_norm": "layer"}, r"embedding_norm='layer' is not known\. Known: rms\."),
        ({"hidden_act": "relu3"}, "hidden_act='relu3' is not known"),
        ({"num_attention_heads": 7}, "num_attention_heads=7 must divide hidden_size=256"),
        ({"position_type": "rope", "hidden_size": 12}, "heads of odd width"),
        ({"attention_window": 0}, "attention_window=0 must be positive"),
        ({"activation_bits": 9}, r"activation_bits=9 must lie in 2\.\.8"),
        ({"activation_bits": 1}, r"activation_bits=1 must lie in 2\.\.8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be positive"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"vocab_size": 256}, r"pad_token_id=256 must lie in 0\.\.vocab_size-1 = 255"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_bad_configuration(overrides, message):
    with pytest.raises(ValueError, match=message):
        Legacy1BitConfig.from_preset("legacy-1bit", **overrides)


def test_the_model_checks_a_configuration_changed_by_hand():
    config = tiny_legacy()
    config.w_scheme = "ternery_twn"
    with pytest.raises(ValueError, match=r"Did you mean 'ternary_twn'"):
        Legacy1BitModel(config)


def test_bad_preset_file(tmp_path, monkeypatch):
    monkeypatch.setattr(preset_files, "PRESET_FOLDER", tmp_path)
    (tmp_path / "broken.yaml").write_text("model: {model_type: infinito}")
    with pytest.raises(ValueError, match="model_type 'infinito', not 'legacy_1bit'"):
        Legacy1BitConfig.from_preset("broken")


# --- how it starts


@pytest.mark.parametrize("name", ["legacy-1bit", "legacy-1bit-base"])
@pytest.mark.parametrize("use_bitnet", [True, False])
def test_starts_at_the_uniform_loss(name, use_bitnet):
    torch.manual_seed(0)
    model = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset(name, use_bitnet=use_bitnet)).eval()
    ids = torch.randint(256, (4, 100))
    assert abs(model(ids, labels=ids).loss.item() - math.log(259)) < 0.3
    if name == "legacy-1bit":
        assert abs(math.log(259) - 5.56) < 0.005


def test_initial_spread_of_the_weights():
    torch.manual_seed(0)
    model = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset("legacy-1bit"))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            ends = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.25 if "embed" in name else 0.02 * (0.5 if ends else 1.0)
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
    assert not model.model.embeddings.embed_tokens.weight[256].any()  # the pad's row
    base = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset("legacy-1bit-base"))
    assert base.lm_head.decoder.weight.std().item() == pytest.approx(0.005, rel=0.03)


def record_size(sizes, module, args, output):
    sizes.append(output.square().mean().sqrt())


def test_no_branch_drowns_the_embedding():
    """Nor is any lost in it: each is between a thousandth and twice the size of the stream that it joins."""
    for name in ("legacy-1bit", "legacy-1bit-base"):
        torch.manual_seed(0)
        model = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset(name)).eval()
        sizes, ids = [], torch.randint(256, (2, 100))
        for layer in model.model.layers:
            for part in (layer.attention.o_proj, layer.ffn.down_proj):
                part.register_forward_hook(functools.partial(record_size, sizes))
        with torch.no_grad():
            first = model(ids, output_hidden_states=True).hidden_states[0]
        for branch in sizes:
            assert 1e-3 <= branch / first.square().mean().sqrt() <= 2, name


def test_starts_from_the_unigram_distribution_when_told():
    model = Legacy1BitForCausalLM(tiny_legacy(head_bias_init="unigram", initializer_range=1e-4))
    counts = torch.arange(VOCAB)
    model.set_unigram_bias(counts)
    shares = (counts + 1.0) / (counts + 1.0).sum()
    torch.testing.assert_close(model.lm_head.decoder.bias.exp(), shares)
    with pytest.raises(ValueError, match="there is no bias to set"):
        Legacy1BitForCausalLM(tiny_legacy("modern")).set_unigram_bias(counts)


@every_kind
def test_gradients_reach_every_parameter(kind, build_legacy, tokens):
    model, ids = build_legacy(kind).train(), tokens(4, 40)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # softmax does not see what is added to all scores of a row: without positions in the scores, k's bias
        floor = 0.0 if name.endswith("k_proj.bias") else 1e-7
        assert parameter.grad.norm() >= floor, name


def test_same_seed_same_model_and_same_dropout(tokens):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model = Legacy1BitForCausalLM(tiny_legacy(dropout=0.1, attention_dropout=0.1)).train()
        loss = model(tokens(2, 20), labels=tokens(2, 20)).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_weight_decay_spares_vectors(build_legacy):
    names = build_legacy().no_weight_decay_names()
    assert {"model.norm_f.weight", "model.layers.0.norm1.bias", "lm_head.decoder.bias"} <= names
    assert not {"model.embeddings.embed_tokens.weight", "model.layers.0.attention.q_proj.weight"} & names


# --- what is ternary


class WeightsUsed(TorchFunctionMode):
    """Records the weight of every F.linear and F.embedding, as the call gets it."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.linear, F.embedding):
            self.weights.append(args[1].detach())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("fields", "quantised", "full"),
    [
        ({}, 1 + 3 * 6 + 1, 1),  # all but the positions
        ({"bitnet_embedding": False, "bitnet_head": False}, 3 * 6, 3),
        ({"bitnet_attention": False}, 1 + 3 * 2 + 1, 1 + 3 * 4),
        ({"bitnet_ffn": False}, 1 + 3 * 4 + 1, 1 + 3 * 2),
        (MODERN, 3 * 6, 2),
        ({"use_bitnet": False}, 0, 3 * 6 + 3),
    ],
    ids=str,
)
def test_matrices_have_three_values_where_configured_and_only_there(fields, quantised, full, build_legacy, tokens):
    model = build_legacy(**fields)
    with torch.no_grad(), WeightsUsed() as used:
        model(tokens(2, 9))
    values = [weight.unique() for weight in used.weights]
    ternary = [value for value in values if len(value) == 3]
    assert (len(ternary), len(values) - len(ternary)) == (quantised, full)
    for low, middle, high in ternary:
        assert middle == 0 and low == -high


@pytest.mark.parametrize("scheme", ["binary", "ternary_absmedian", "ternary_twn", "int2", "int2_pow"])
def test_the_scheme_reaches_every_matrix(scheme, build_legacy):
    layers = low_bit_layers(build_legacy(w_scheme=scheme, scale_axis="row", activation_bits=6))
    assert len(layers) == 20 and {layer.scheme for layer in layers.values()} == {scheme}
    assert {layer.scale_axis for layer in layers.values()} == {"row"}
    assert {layer.activation_bits for layer in layers.values() if isinstance(layer, BitLinear)} == {6}


def test_the_twin_has_the_same_parameters(build_legacy, tokens):
    model, twin = build_legacy(), build_legacy("twin")
    twin.load_state_dict(model.state_dict())
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert (model(tokens(2, 9)).logits - twin(tokens(2, 9)).logits).abs().max() > 0.1


def test_the_ternary_table_is_straight_through():
    table = BitEmbedding(7, 5, padding_idx=2, scheme="ternary_absmean").double()
    ids = torch.tensor([[1, 2, 6], [6, 0, 6]])
    coefficients = torch.randn(2, 3, 5, dtype=torch.float64)
    (table(ids) * coefficients).sum().backward()
    plain = torch.nn.Embedding.from_pretrained(table.quantized_weight(), freeze=False, padding_idx=2)
    (plain(ids) * coefficients).sum().backward()
    assert torch.equal(table(ids), plain(ids)) and torch.equal(table.weight.grad, plain.weight.grad)
    assert not table(ids)[0, 1].any()


# --- training


@pytest.mark.parametrize("kind", [pytest.param("legacy", marks=pytest.mark.slow), "modern"])
def test_learns_a_batch_by_heart(kind, tokens):
    torch.manual_seed(0)
    model = Legacy1BitForCausalLM(tiny_legacy(kind, hidden_size=64, intermediate_size=128)).train()
    ids = tokens(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 300)
    for _ in range(300):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert loss < 0.5
    assert all(len(layer.quantized_weight().unique()) == 3 for layer in low_bit_layers(model).values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant, build_legacy, tokens):
    ids, gradients = tokens(2, 20), []
    for checkpointing in (False, True):
        model = build_legacy(dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_same(gradients[1][name], gradient)


@pytest.mark.parametrize("kind", ["legacy", "modern"])
def test_half_precision_is_near(kind, tokens):
    torch.manual_seed(0)
    # Weights that bf16 holds exactly: else some of them round to another code, which is another model. An activation
    # that rounds the other way is off by 1/127 of its token's largest, which adds a little to bf16's own 2e-2.
    spread = {"initializer_range": 0.2, "embedding_initializer_range": 0.2}
    model = Legacy1BitForCausalLM(tiny_legacy(kind, **spread)).eval().bfloat16()
    ids = tokens(4, 40)
    with torch.no_grad():
        half = model(ids).logits
        expected = model.float()(ids).logits
    assert half.dtype == torch.bfloat16 and expected.std() > 0.5
    assert (half.float() - expected).square().mean().sqrt() <= 3e-2 * expected.std()


# --- other sizes, saving


@every_kind
def test_round_trip(kind, build_legacy, tokens, tmp_path):
    model, ids = build_legacy(kind, dtype=torch.float32), tokens(2, 20)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is Legacy1BitForCausalLM and torch.equal(loaded(ids).logits, model(ids).logits)
    tied = loaded.lm_head.decoder.weight is loaded.model.embeddings.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half(ids).logits.dtype == torch.bfloat16
    trunk = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(trunk(ids).last_hidden_state, model.model(ids).last_hidden_state)
