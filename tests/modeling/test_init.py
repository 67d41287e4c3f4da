"""How a model starts: reproducibly, with every branch alive, at the loss that its output bias implies."""

import pytest
import torch

from .conftest import crossed

LENGTH = 21
HYBRID = ("retnet", "titan_attn", "mamba", "ode", "sigmoid_attn", "standard_attn")

every_direction = pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
every_case = pytest.mark.parametrize(("mixer", "norm", "is_decoder"), crossed())


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
def test_same_seed_same_model_and_same_dropout(mixer, norm, is_decoder, tiny_model, tokens):
    dropouts = {"dropout": 0.1, "attention_dropout": 0.1, "lively": False}
    results = []
    for _ in range(2):
        model = tiny_model(mixer, norm, is_decoder, **dropouts).train()
        torch.manual_seed(3)
        results.append(gradients(model, tokens(2, LENGTH)))
    (first_loss, first), (second_loss, second) = results
    assert torch.equal(first_loss, second_loss) and all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(4)
    assert not torch.equal(gradients(model, tokens(2, LENGTH))[0], first_loss), "another seed, another dropout"


def branch_outputs(model, ids):
    """Run the model and collect (name, rms of the branch, rms of the stream it joins) for each branch."""
    found, stream = [], {}

    def record(name):
        def hook(module, args, output):
            branch = output[0] if isinstance(output, tuple) else output
            found.append((name, branch.square().mean().sqrt().item(), stream[name.rsplit(".", 1)[0]]))

        return hook

    def remember(name):
        return lambda module, args, kwargs: stream.update({name: args[0].square().mean().sqrt().item()})

    handles = []
    for index, layer in enumerate(model.model.layers):
        handles.append(layer.register_forward_pre_hook(remember(f"{index}"), with_kwargs=True))
        handles.append(layer.mixer.register_forward_hook(record(f"{index}.mixer")))
        handles.append(layer.ffn.register_forward_hook(record(f"{index}.ffn")))
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return found


@every_case
def test_every_branch_is_alive_at_init(mixer, norm, is_decoder, tiny_model, tokens):
    model, ids = tiny_model(mixer, norm, is_decoder, lively=False), tokens(8, LENGTH)
    branches = branch_outputs(model, ids)
    assert len(branches) == 4
    for name, branch, stream in branches:
        assert branch >= 1e-4 * stream, name
    _, grads = gradients(model, ids)
    for name, grad in grads.items():
        assert grad.ndim < 2 or grad.norm() >= 1e-7, name


@every_case
def test_loss_starts_at_the_uniform_guess(mixer, norm, is_decoder, tiny_model, tokens):
    ids = tokens(16, LENGTH)
    with torch.no_grad():
        loss = tiny_model(mixer, norm, is_decoder, lively=False)(ids, labels=tokens(16, LENGTH, seed=1)).loss
    assert abs(loss.item() - torch.tensor(61.0).log().item()) <= 0.3


@every_case
def test_loss_starts_at_the_unigram_entropy(mixer, norm, is_decoder, tiny_model):
    shares = 1.0 / torch.arange(1, 62, dtype=torch.float64)
    ids = torch.multinomial(shares, 16 * LENGTH, replacement=True).reshape(16, LENGTH)
    counts = torch.bincount(ids.flatten(), minlength=61)
    model = tiny_model(mixer, norm, is_decoder, lively=False, head_bias_init="unigram")
    model.set_unigram_bias(counts)
    smoothed = (counts + 1) / (counts + 1).sum()
    entropy = -(counts / counts.sum() * smoothed.log()).sum().item()
    with torch.no_grad():
        loss = model(ids, labels=ids.flip(0)).loss.item()  # other rows: an encoder sees its own tokens
    assert entropy < torch.tensor(61.0).log().item() - 0.5
    assert abs(loss - entropy) <= 0.3


@every_direction
def test_initial_spread_of_the_weights(is_decoder, tiny_model):
    """N(0, 0.02); a projection that ends a residual branch is smaller by sqrt(2 * logical depth); biases are 0."""
    options = {"hidden_size": 128, "num_loops": 2, "use_bias": True, "lively": False, "factorized_embedding_dim": 96}
    model = tiny_model(HYBRID, "layer_norm", is_decoder, **options)
    depth_scale = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "dt_bias" not in name:
            assert not parameter.any(), name
        elif parameter.ndim >= 2 and "conv" not in name:
            ends = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
            expected = 0.02 * (depth_scale if ends else 1.0)
            assert abs(parameter.std().item() / expected - 1) < 0.06, name
            assert abs(parameter.mean().item()) < 0.1 * expected, name
