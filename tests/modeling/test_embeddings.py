"""The factorised embedding: counts, convolution in both directions, ALBERT, and moving between directions."""

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel

from frankenlm.modeling import FrankensteinForCausalLM, FrankensteinForMaskedLM, FrankensteinModel
from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.embeddings import FactorizedEmbedding, FactorizedHead

CLOSE = {"atol": 1e-10, "rtol": 0}
every_direction = pytest.mark.parametrize("is_causal", [False, True], ids=["both", "causal"])
every_kernel = pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7, 8])
depthwise_or_full = pytest.mark.parametrize("depthwise", [False, True], ids=["full", "depthwise"])


def build(enliven, kernel, is_causal=False, depthwise=False, **options):
    torch.manual_seed(0)
    layer = FactorizedEmbedding(
        61, 12, rank=6, conv_kernel=kernel, conv_depthwise=depthwise, is_causal=is_causal, **options
    )
    return enliven(layer.double())


def run(layer, ids, is_causal, mask=None, types=None):
    context = SequenceContext.build(
        batch_size=ids.shape[0], length=ids.shape[1], device=ids.device, is_causal=is_causal, attention_mask=mask
    )
    with torch.no_grad():
        return layer(layer.embed_tokens(ids), types, context)


def definition(layer, ids, mask, is_causal, depthwise):
    """P(conv(E[ids])), tap by tap: tap j of k meets token t + j - (k-1) when causal, t + j - k//2 otherwise."""
    narrow = layer.embed_tokens.weight[ids] * mask[..., None]
    weight, bias = layer.conv.weight, layer.conv.bias
    kernel, length = weight.shape[-1], ids.shape[1]
    origin = kernel - 1 if is_causal else kernel // 2
    mixed = bias.expand_as(narrow).clone()
    for t in range(length):
        for tap in range(kernel):
            source = t + tap - origin
            if 0 <= source < length:
                seen = narrow[:, source]
                mixed[:, t] += seen * weight[:, 0, tap] if depthwise else seen @ weight[:, :, tap].T
    return (mixed * mask[..., None]) @ layer.projection.weight.T


@every_direction
@every_kernel
@depthwise_or_full
@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_its_definition_and_keeps_the_length(is_causal, kernel, depthwise, length, enliven, tokens):
    layer = build(enliven, kernel, is_causal, depthwise)
    ids, mask = tokens(3, length), torch.ones(3, length, dtype=torch.long)
    mask[1, : length // 2], mask[2, (length + 1) // 2 :] = 0, 0
    with torch.no_grad():
        expected = definition(layer, ids, mask, is_causal, depthwise)
    actual = run(layer, ids, is_causal, mask)
    assert actual.shape == (3, length, 12)
    torch.testing.assert_close(actual, expected, **CLOSE)


@every_kernel
@depthwise_or_full
def test_the_causal_convolution_sees_no_future(kernel, depthwise, enliven, tokens):
    layer, ids = build(enliven, kernel, True, depthwise), tokens(2, 11)
    before = run(layer, ids, True)
    for t in range(11):
        changed = ids.clone()
        changed[:, t:] = (ids[:, t:] + 1) % 61
        after = run(layer, changed, True)
        assert torch.equal(after[:, :t], before[:, :t]) and not torch.equal(after[:, t], before[:, t])


@every_direction
@every_kernel
def test_a_new_convolution_is_the_identity(is_causal, kernel, tokens):
    """Switched on over a trained table it must not disturb it."""
    for depthwise in (False, True):
        layer = FactorizedEmbedding(
            61, 12, rank=6, conv_kernel=kernel, conv_depthwise=depthwise, is_causal=is_causal
        ).double()
        ids = tokens(2, 9)
        expected = layer.embed_tokens.weight[ids] @ layer.projection.weight.T
        torch.testing.assert_close(run(layer, ids, is_causal), expected, **CLOSE)


@every_direction
def test_the_model_starts_with_the_identity_too(is_causal, tiny_model, tokens):
    options = {"factorized_embedding_dim": 8, "lively": False}
    plain = tiny_model("retnet", is_decoder=is_causal, **options)
    for kernel, depthwise in ((3, False), (4, True), (32, True)):
        conv = {"embedding_conv_kernel": kernel, "embedding_conv_depthwise": depthwise}
        model = tiny_model("retnet", is_decoder=is_causal, **options, **conv)
        model.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            expected, actual = plain(tokens(2, 21)).logits, model(tokens(2, 21)).logits
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@every_direction
def test_equals_a_dense_table_without_compression(is_causal, enliven, tokens):
    """k=1, r=d, P=I and a kernel that is the identity: nothing but the table is left."""
    factorised = enliven(FactorizedEmbedding(61, 12, rank=12, conv_kernel=1, is_causal=is_causal).double())
    with torch.no_grad():
        factorised.projection.weight.copy_(torch.eye(12))
        factorised.conv.weight.copy_(torch.eye(12)[..., None])
        factorised.conv.bias.zero_()
    dense = FactorizedEmbedding(61, 12, is_causal=is_causal).double()
    dense.embed_tokens.load_state_dict(factorised.embed_tokens.state_dict())
    ids = tokens(2, 9)
    torch.testing.assert_close(run(factorised, ids, is_causal), run(dense, ids, is_causal), **CLOSE)
    assert torch.equal(run(dense, ids, is_causal), dense.embed_tokens.weight[ids])


@pytest.mark.parametrize(
    "vocab, rank, width, kernel, depthwise, count",
    [
        (50_000, 128, 384, 3, False, 6_498_432),
        (50_000, 128, 384, 0, False, 6_449_152),
        (50_257, 128, 384, 3, False, 6_531_328),
        (50_000, 16, 128, 32, False, 810_256),
        (50_000, 16, 128, 32, True, 802_576),
        (50_000, None, 384, 0, False, 19_200_000),
    ],
)
def test_table_of_parameter_counts(vocab, rank, width, kernel, depthwise, count):
    with torch.device("meta"):
        layer = FactorizedEmbedding(vocab, width, rank=rank, conv_kernel=kernel, conv_depthwise=depthwise)
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


def test_equals_the_factorised_table_of_albert(enliven, tokens):
    """Without a convolution. ALBERT normalises in the narrow space and has a bias; both are switched off there."""
    config = AlbertConfig(
        vocab_size=61,
        embedding_size=6,
        hidden_size=12,
        num_attention_heads=2,
        intermediate_size=8,
        num_hidden_layers=1,
        max_position_embeddings=32,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
    )
    albert = AlbertModel(config, add_pooling_layer=False).double().eval()
    enliven(albert)
    albert.embeddings.LayerNorm = nn.Identity()
    nn.init.zeros_(albert.encoder.embedding_hidden_mapping_in.bias)
    layer = FactorizedEmbedding(61, 12, rank=6, num_positions=32, num_types=2).double()
    with torch.no_grad():
        layer.embed_tokens.weight.copy_(albert.embeddings.word_embeddings.weight)
        layer.embed_positions.weight.copy_(albert.embeddings.position_embeddings.weight)
        layer.embed_types.weight.copy_(albert.embeddings.token_type_embeddings.weight)
        layer.projection.weight.copy_(albert.encoder.embedding_hidden_mapping_in.weight)
        ids, types = tokens(2, 9), torch.randint(2, (2, 9))
        expected = albert.encoder.embedding_hidden_mapping_in(albert.embeddings(ids, types))
        without_types = albert.encoder.embedding_hidden_mapping_in(albert.embeddings(ids, torch.zeros_like(ids)))
    torch.testing.assert_close(run(layer, ids, False, types=types), expected, **CLOSE)
    torch.testing.assert_close(run(layer, ids, False), without_types, **CLOSE)


def test_rms_normalisation_before_the_first_block(enliven, tokens):
    layer, plain = build(enliven, 3, normalize_rms=True), build(enliven, 3)
    x = run(plain, tokens(2, 9), False)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(run(layer, tokens(2, 9), False), expected, **CLOSE)


def test_factorised_head(enliven):
    head, h = enliven(FactorizedHead(12, 61, rank=6).double()), torch.randn(2, 9, 12, dtype=torch.float64)
    expected = (h @ head.projection.weight.T) @ head.decoder.weight.T + head.decoder.bias
    torch.testing.assert_close(head(h), expected, **CLOSE)
    assert head.projection.weight.shape == (6, 12) and head.decoder.weight.shape == (61, 6)


def shifted(kernel_weight, to_causal):
    """Move every tap so that it meets the same token; what would be ahead of a decoder is dropped."""
    kernel = kernel_weight.shape[-1]
    shift, result = kernel - 1 - kernel // 2, torch.zeros_like(kernel_weight)
    for tap in range(kernel):
        target = tap + shift if to_causal else tap - shift
        if 0 <= target < kernel:
            result[..., target] = kernel_weight[..., tap]
    return result


def kernel_of(model):
    return model.get_parameter("model.embeddings.conv.weight").detach()


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 8])
@depthwise_or_full
@pytest.mark.parametrize("to_causal", [True, False], ids=["encoder to decoder", "decoder to encoder"])
def test_a_checkpoint_changes_direction(kernel, depthwise, to_causal, tiny_model, tokens, tmp_path):
    options = {"factorized_embedding_dim": 8, "embedding_conv_kernel": kernel, "embedding_conv_depthwise": depthwise}
    model = tiny_model(("retnet", "ode"), is_decoder=not to_causal, **options)
    model.save_pretrained(tmp_path / "one")
    target, origin = FrankensteinForCausalLM, type(model)
    if not to_causal:
        target = FrankensteinForMaskedLM
    moved, info = target.from_pretrained(tmp_path / "one", is_decoder=to_causal, output_loading_info=True)
    assert not any(info.values()), info
    expected = shifted(kernel_of(model), to_causal)
    assert torch.equal(kernel_of(moved), expected)
    others = {name: tensor for name, tensor in model.state_dict().items() if ".conv." not in name}
    assert all(torch.equal(moved.state_dict()[name], tensor) for name, tensor in others.items())

    moved.save_pretrained(tmp_path / "two")  # from now on in its own direction: no second shift
    assert torch.equal(kernel_of(target.from_pretrained(tmp_path / "two")), expected)
    back = origin.from_pretrained(tmp_path / "two", is_decoder=not to_causal)
    if not to_causal:
        assert torch.equal(
            kernel_of(back)[..., kernel - 1 - kernel // 2 :], kernel_of(model)[..., kernel - 1 - kernel // 2 :]
        )
    half = FrankensteinModel.from_pretrained(tmp_path / "one", is_decoder=to_causal, dtype=torch.bfloat16)
    assert torch.equal(half.embeddings.conv.weight, expected.bfloat16())
    assert target.from_pretrained(tmp_path / "two")(tokens(1, 5)).logits.isfinite().all()


def test_a_moved_checkpoint_still_reads_its_own_token(tiny_model, tokens, tmp_path):
    """With taps on the past alone, the embedding of both directions is the same function of the text."""
    options = {"factorized_embedding_dim": 8, "embedding_conv_kernel": 5}
    encoder = tiny_model("retnet", **options)
    with torch.no_grad():
        kernel_of(encoder)[..., 3:] = 0  # taps 3 and 4 meet the next two tokens
    encoder.save_pretrained(tmp_path)
    decoder = FrankensteinForCausalLM.from_pretrained(tmp_path, is_decoder=True)
    with torch.no_grad():
        expected = encoder(tokens(2, 13), output_hidden_states=True).hidden_states[0]
        actual = decoder(tokens(2, 13), output_hidden_states=True).hidden_states[0]
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
