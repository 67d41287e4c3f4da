"""Another vocabulary, in every family: tables and heads stay of their kind, old tokens keep their logits."""

import pytest
import torch

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.modeling.quantizer_ternary import pack_model

VOCAB = 61
LARGER, SMALLER = VOCAB + 16, VOCAB - 21
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
# A scale per row: with one for the whole matrix, new rows would change the rounding of the old ones.
FRANKENSTEIN = {"num_hidden_layers": 2, "layer_pattern": ["standard_attn"], "position_type": "rope"}
BITS = {"use_bitnet": True, "bitnet_head": True, "w_scheme": "binary", "scale_axis": "row", "activation_bits": 6}
UNTIED = {"tie_word_embeddings": False}
LEGACY = {"scale_axis": "row", "w_scheme": "ternary_twn"}
CASES = {
    "encoder tied": (FrankensteinForMaskedLM, FrankensteinConfig, FRANKENSTEIN),
    "encoder untied": (FrankensteinForMaskedLM, FrankensteinConfig, FRANKENSTEIN | UNTIED),
    "encoder factorised": (FrankensteinForMaskedLM, FrankensteinConfig, FRANKENSTEIN | {"factorized_embedding_dim": 8}),
    "encoder transformed, bits": (
        FrankensteinForMaskedLM,
        FrankensteinConfig,
        FRANKENSTEIN | UNTIED | BITS | {"head_transform": True},
    ),
    "decoder untied, factorised": (
        FrankensteinForCausalLM,
        FrankensteinConfig,
        FRANKENSTEIN | UNTIED | {"is_decoder": True, "factorized_embedding_dim": 8},
    ),
    "decoder untied, bits": (
        FrankensteinForCausalLM,
        FrankensteinConfig,
        FRANKENSTEIN | UNTIED | BITS | {"is_decoder": True},
    ),
    "decoder tied, bits": (FrankensteinForCausalLM, FrankensteinConfig, FRANKENSTEIN | BITS | {"is_decoder": True}),
    "decoder without bias": (
        FrankensteinForCausalLM,
        FrankensteinConfig,
        FRANKENSTEIN | UNTIED | BITS | {"is_decoder": True, "head_bias": False, "head_bias_init": "zeros"},
    ),
    "infinito untied": (InfinitoForCausalLM, InfinitoConfig, {"num_hidden_layers": 2, "memory_layers": [1]}),
    "infinito tied": (
        InfinitoForCausalLM,
        InfinitoConfig,
        {"num_hidden_layers": 2, "memory_layers": [], "tie_word_embeddings": True},
    ),
    "legacy": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY),
    "legacy tied": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | {"tie_word_embeddings": True}),
    "legacy table alone": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | {"bitnet_head": False}),
    "legacy head alone": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | {"bitnet_embedding": False}),
    "legacy twin": (Legacy1BitForCausalLM, Legacy1BitConfig, LEGACY | {"use_bitnet": False}),
}
NUMBERS = ("in_features", "out_features", "num_embeddings", "weight", "bias", "training")
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def build(enliven):
    """build(case) -> a tiny lively model in eval mode."""

    def make(case):
        model_class, config_class, fields = CASES[case]
        return enliven(model_class(config_class(**SIZES | fields)).eval())

    return make


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def settings(layer) -> dict:
    """What makes a layer what it is, but for its tensors and their sizes: class, scheme, bits, norm."""
    facts = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name not in NUMBERS}
    return facts | {"class": type(layer)}


@every_case
@pytest.mark.parametrize("size", [LARGER, SMALLER])
def test_another_vocabulary(case, size, build, tokens, tmp_path):
    model = build(case)
    ids, kept = tokens(2, 9) % SMALLER, min(size, VOCAB)
    table, head = model.get_input_embeddings(), model.lm_head.decoder
    before, kinds, had_bias = logits(model, ids), (settings(table), settings(head)), head.bias is not None
    model.resize_token_embeddings(size)
    table, head = model.get_input_embeddings(), model.lm_head.decoder

    assert (settings(table), settings(head)) == kinds
    assert size == model.config.vocab_size == table.num_embeddings == head.out_features
    assert len(table.weight) == len(head.weight) == size and (head.bias is not None) == had_bias
    assert not had_bias or head.bias.shape == (size,)
    assert (head.weight is table.weight) == model.config.tie_word_embeddings

    after = logits(model, ids)
    assert after.shape[-1] == size and after.isfinite().all()
    torch.testing.assert_close(after[..., :kept], before[..., :kept], rtol=1e-5, atol=1e-5)
    for rows in (table.weight[kept:], head.weight[kept:]):
        assert len(rows) == 0 or (rows.isfinite().all() and len(rows.unique(dim=0)) == len(rows)), "drawn anew"

    new_ids = tokens(2, 9) % SMALLER + size - SMALLER
    model.train()(new_ids, labels=new_ids).loss.backward()
    assert head.weight.grad.shape == head.weight.shape and head.weight.grad[kept:].isfinite().all()

    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, new_ids), logits(model, new_ids))
    assert settings(loaded.lm_head.decoder) == kinds[1]


@pytest.mark.parametrize("case", ["decoder untied", "legacy"])
def test_a_packed_vocabulary_is_of_one_size(case, enliven, tokens):
    fields = FRANKENSTEIN | UNTIED | {"is_decoder": True, "use_bitnet": True, "bitnet_head": True}
    models = {
        "decoder untied": lambda: FrankensteinForCausalLM(FrankensteinConfig(**SIZES | fields)),
        "legacy": lambda: Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES)),
    }
    model = pack_model(enliven(models[case]().eval()))
    expected = logits(model, tokens(2, 9))
    with pytest.raises(ValueError, match=r"vocabulary of 61 tokens cannot become one of 70: Packed.*pack that\."):
        model.resize_token_embeddings(70)
    model.resize_token_embeddings(VOCAB)
    assert model.config.vocab_size == VOCAB and torch.equal(logits(model, tokens(2, 9)), expected)


@every_case
def test_a_head_of_ones_own_is_taken_as_it_is(case, build):
    model = build(case)
    head = model.lm_head.decoder
    for own in (BitLinear(head.in_features, VOCAB, scheme="int2"), torch.nn.Sequential(torch.nn.Linear(32, VOCAB))):
        model.set_output_embeddings(own)
        assert model.lm_head.decoder is own
