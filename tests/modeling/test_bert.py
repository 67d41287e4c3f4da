"""The BERT-shaped presets exchange weights with transformers' BertForMaskedLM, both ways."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM

SHAPES = {"standard": {"num_hidden_layers": 4}, "tinybert": {"num_hidden_layers": 2}}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
}
every_shape = pytest.mark.parametrize("preset", sorted(SHAPES))
every_implementation = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


@pytest.fixture
def bert(preset, enliven):
    config = BertConfig(**SMALL, **SHAPES[preset], type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu")
    model = enliven(BertForMaskedLM(config).eval())
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(2)
    return model


@pytest.fixture
def ours(preset, enliven):
    config = FrankensteinConfig.from_preset(preset, **SMALL, **SHAPES[preset])
    return enliven(FrankensteinForMaskedLM(config).eval())


def assert_same_function(ours, bert, tokens):
    ids = tokens(3, 21)
    types, mask = torch.randint(2, ids.shape), torch.ones_like(ids)
    mask[1, -6:], mask[2, -1:] = 0, 0
    left = torch.ones_like(ids)
    left[0, :5] = 0
    positions = {"position_ids": (left.cumsum(1) - 1).clamp_min(0)}
    for inputs, berts in (
        ({}, {}),
        ({"attention_mask": mask}, {}),
        ({"token_type_ids": types}, {}),
        ({"attention_mask": mask, "token_type_ids": types}, {}),
        ({"attention_mask": left, "token_type_ids": types}, positions),
    ):
        with torch.no_grad():
            expected = bert(ids, **inputs, **berts).logits
            actual = ours(ids, **inputs).logits
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        assert expected.std() >= 1
        assert (actual - expected)[real].abs().max() <= 1e-5 * expected[real].abs().max()


@every_shape
@every_implementation
def test_from_bert(preset, implementation, bert, tokens):
    ours = FrankensteinForMaskedLM.from_bert(bert).eval()
    ours.set_attn_implementation(implementation)
    assert_same_function(ours, bert, tokens)
    assert ours.num_parameters() == bert.num_parameters()


@every_shape
def test_to_bert(preset, ours, tokens):
    assert_same_function(ours, ours.to_bert().eval(), tokens)


@every_shape
def test_there_and_back_is_bitwise(preset, bert, ours, tokens):
    again = FrankensteinForMaskedLM.from_bert(bert).to_bert().state_dict()
    assert again.keys() == bert.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in bert.state_dict().items())
    mine = FrankensteinForMaskedLM.from_bert(ours.to_bert()).state_dict()
    assert mine.keys() == ours.state_dict().keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in ours.state_dict().items())


@every_shape
def test_same_loss_and_gradients(preset, bert, tokens):
    ours = FrankensteinForMaskedLM.from_bert(bert)
    ids, labels = tokens(3, 21), tokens(3, 21, seed=1)
    labels[:, ::3] = -100
    losses = []
    for model in (ours.eval(), bert):
        output = model(ids, labels=labels)
        output.loss.backward()
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    pairs = (
        (ours.model.embeddings.embed_tokens, bert.bert.embeddings.word_embeddings),
        (ours.model.layers[0].mixer.k_proj, bert.bert.encoder.layer[0].attention.self.key),
        (ours.model.layers[-1].ffn.down_proj, bert.bert.encoder.layer[-1].output.dense),
    )
    for mine, theirs in pairs:
        error = (mine.weight.grad - theirs.weight.grad).abs().max()
        assert error <= 1e-4 * theirs.weight.grad.abs().max()


@every_shape
def test_through_files(preset, ours, tokens, tmp_path):
    ours.to_bert().save_pretrained(tmp_path)
    bert = BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert_same_function(ours, bert, tokens)
    assert_same_function(FrankensteinForMaskedLM.from_bert(bert).eval(), bert, tokens)


@pytest.mark.parametrize("preset", ["standard"])
def test_what_cannot_be_exchanged_is_refused(preset, tiny_model, enliven):
    for wrong in ({"is_decoder": True}, {"hidden_act": "tanh"}):
        config = BertConfig(**SMALL, **SHAPES[preset], **wrong)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FrankensteinForMaskedLM.from_bert(BertForMaskedLM(config))
    with pytest.raises(ValueError, match="norm_style"):
        tiny_model(position_type="learned", use_bias=True, head_transform=True, type_vocab_size=2).to_bert()
    with pytest.raises(ValueError, match="layer_pattern"):
        tiny_model(
            ("standard_attn", "retnet"),
            norm_style="post",
            position_type="learned",
            use_bias=True,
            head_transform=True,
            type_vocab_size=2,
        ).to_bert()


def test_a_model_without_token_types_becomes_a_bert_that_runs(enliven, tokens):
    config = FrankensteinConfig.from_preset("tinybert", **SMALL, num_hidden_layers=2, type_vocab_size=0)
    model = enliven(FrankensteinForMaskedLM(config).eval())
    ids = tokens(2, 13)
    with torch.no_grad():
        expected, actual = model(ids).logits, model.to_bert()(ids).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
