"""A model's life: gradients, half precision, checkpointing, saving, resizing, compiling."""

import pytest
import torch
from safetensors.torch import load_file

from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS

LENGTH = 21
HYBRID = ("retnet", "titan_attn", "mamba", "ode", "sigmoid_attn", "standard_attn")

every_mixer = pytest.mark.parametrize("mixer", [*sorted(MIXERS), "titan_memory"])
every_norm = pytest.mark.parametrize("norm", sorted(NORMS))
every_direction = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])


def every_case(test):
    return every_mixer(every_norm(every_direction(test)))


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model(ids, **inputs).logits


def gradients(model, ids, **inputs):
    """One backward pass on predicting `ids` themselves (shifted, for a decoder): the loss and every gradient."""
    model.zero_grad()
    loss = model(ids, labels=ids, **inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@every_case
def test_every_parameter_learns(mixer, norm, is_decoder, tiny_model, tokens):
    options = {"factorized_embedding_dim": 8, "embedding_conv_kernel": 3, "num_experts": 4, "num_loops": 2}
    options |= {"loop_embedding": True, "ode_time_input": True, "qk_norm": True}
    model, ids = tiny_model(mixer, norm, is_decoder, **options).train(), tokens(6, LENGTH)
    _, grads = gradients(model, ids)
    load = model(ids).expert_load.unflatten(0, (2, -1)).sum(0)  # of both loops, (physical layers, experts)
    idle = {f"layers.{layer}.ffn.experts.{expert}." for layer, expert in (load == 0).nonzero().tolist()}
    assert len(idle) < load.numel() / 2
    for name, grad in grads.items():
        assert grad is not None and grad.isfinite().all(), name
        assert grad.any() or any(expert in name for expert in idle), name


@every_case
def test_gradient_checkpointing_changes_nothing(mixer, norm, is_decoder, tiny_model, tokens):
    dropouts = {"dropout": 0.1, "attention_dropout": 0.1}
    model, ids = tiny_model(mixer, norm, is_decoder, num_loops=2, num_experts=4, **dropouts).train(), tokens(2, LENGTH)
    torch.manual_seed(5)
    loss, expected = gradients(model, ids)
    expected = {name: grad.clone() for name, grad in expected.items()}
    model.activation_checkpointing_enable()
    torch.manual_seed(5)
    checkpointed_loss, grads = gradients(model, ids)
    assert model.is_activation_checkpointing
    assert torch.equal(checkpointed_loss, loss)
    for name, grad in grads.items():
        assert torch.equal(grad, expected[name]), name


@every_case
def test_save_and_load_is_bitwise(mixer, norm, is_decoder, tiny_model, tokens, tmp_path):
    model = tiny_model(mixer, norm, is_decoder, num_loops=2, loop_embedding=True)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert torch.equal(logits(loaded, tokens(2, LENGTH)), logits(model, tokens(2, LENGTH)))
    assert loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    assert stored == model.num_parameters(), "tied and looped weights are stored once"


@pytest.mark.parametrize(
    "options",
    [
        {"factorized_embedding_dim": 8, "embedding_conv_kernel": 4, "num_experts": 4},
        {"tie_word_embeddings": False, "factorized_embedding_dim": 8},
        {"use_bitnet": True, "use_bias": True, "bitnet_head": True, "tie_word_embeddings": False},
        {"norm_style": "post", "head_transform": True, "position_type": "learned", "type_vocab_size": 2},
    ],
    ids=str,
)
@every_direction
def test_save_and_load_of_the_optional_parts(options, is_decoder, tiny_model, tokens, tmp_path):
    model, ids = tiny_model(HYBRID, "layer_norm", is_decoder, **options), tokens(2, LENGTH)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    parameter_problems = {key: value for key, value in info.items() if value}
    assert not parameter_problems
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@every_case
def test_bf16_weights(mixer, norm, is_decoder, tiny_model, tokens, tmp_path):
    model, ids = tiny_model(mixer, norm, is_decoder, gain=1.0), tokens(2, LENGTH)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        kept = name.endswith(("A_log", "dt_bias", "mixer.D"))
        assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
    reference, actual = logits(model, ids), logits(half, ids).float()
    assert (actual - reference).norm() / reference.norm() <= 2e-2
    loss, grads = gradients(half.train(), ids)
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads.values())


@every_case
def test_autocast_stays_close_and_finite(mixer, norm, is_decoder, tiny_model, tokens):
    model, ids = tiny_model(mixer, norm, is_decoder, gain=1.0), tokens(2, LENGTH)
    reference = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        actual = logits(model, ids).float()
        loss, grads = gradients(model.train(), ids)
    assert (actual - reference).norm() / reference.norm() <= 2e-2
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads.values())


@every_case
def test_half_is_finite(mixer, norm, is_decoder, tiny_model, tokens):
    ids = tokens(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    model = tiny_model(mixer, norm, is_decoder).half()
    assert logits(model, ids).isfinite().all() and logits(model, ids, attention_mask=mask).isfinite().all()


@pytest.mark.parametrize("is_training", [False, True])
def test_sparse_prediction_computes_labelled_positions_only(is_training, tiny_model, tokens):
    dense, sparse = (tiny_model(HYBRID[:4], sparse_prediction=sparse).train(is_training) for sparse in (False, True))
    ids, labels = tokens(3, LENGTH), tokens(3, LENGTH, seed=1)
    labels[:, ::3] = -100
    expected, actual = dense(ids, labels=labels), sparse(ids, labels=labels)
    assert actual.logits.shape == (int((labels >= 0).sum()), 61)
    torch.testing.assert_close(actual.logits, expected.logits[labels >= 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-6, rtol=1e-6)
    assert torch.equal(logits(sparse, ids), logits(dense, ids)), "without labels there is nothing to leave out"
    labels[:] = -100
    nothing = sparse(ids, labels=labels)
    assert nothing.logits.shape == (0, 61)


def test_logits_to_keep(tiny_model, tokens):
    model, ids = tiny_model(HYBRID[:4], is_decoder=True), tokens(2, LENGTH)
    for keep in (1, 4):
        torch.testing.assert_close(logits(model, ids, logits_to_keep=keep), logits(model, ids)[:, -keep:])


@pytest.mark.slow  # compiled models with documents run every time: test_document_borders.py
@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_compiles_without_changing_the_result(is_decoder, tiny_model, tokens):
    model, ids = tiny_model(HYBRID[:4], "derf", is_decoder), tokens(2, 12)  # a chunk and a half
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    compiled = torch.compile(model, backend="eager")
    for inputs in ({}, {"attention_mask": mask}):
        torch.testing.assert_close(logits(compiled, ids, **inputs), logits(model, ids, **inputs), atol=1e-5, rtol=1e-5)


@every_mixer
@every_norm
def test_encoder_and_decoder_share_their_parameters(mixer, norm, tiny_model):
    encoder, decoder = tiny_model(mixer, norm), tiny_model(mixer, norm, is_decoder=True)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (encoder, decoder)]
    assert shapes[0] == shapes[1]
