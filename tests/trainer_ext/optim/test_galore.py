"""GaLore against the paper's update in float64; what it keeps, what it takes, and that it resumes to the bit."""

import copy
import io

import pytest
import torch
from torch import nn

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM, Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.trainer_ext.common.cli import Failed, UserError
from frankenlm.trainer_ext.optim.galore import GaLoreAdamW, beside_adamw, hidden_matrices
from guarded_runs import model_of


def reference(weight, gradients, *, rank, gap, scale, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    """Algorithm 2 of the paper, line by line, in float64."""
    weight = weight.clone()
    m, n = weight.shape
    first = second = 0.0
    for t, gradient in enumerate(gradients):
        if t % gap == 0:
            u, _, vh = torch.linalg.svd(gradient)
            p = u[:, :rank] if m <= n else vh[:rank].T
        r = p.T @ gradient if m <= n else gradient @ p
        first = betas[0] * first + (1 - betas[0]) * r
        second = betas[1] * second + (1 - betas[1]) * r**2
        step = (first / (1 - betas[0] ** (t + 1))) / ((second / (1 - betas[1] ** (t + 1))) ** 0.5 + eps)
        back = p @ step if m <= n else step @ p.T
        weight = weight - lr * decay * weight - lr * scale * back
    return weight


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3])
def test_is_the_papers_update(shape, rank):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(7)]
    expected = reference(weight.data, gradients, rank=rank, gap=3, scale=0.25, lr=0.1, decay=0.01)
    optimizer = GaLoreAdamW([weight], lr=0.1, weight_decay=0.01, rank=rank, update_gap=3)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.data, expected, rtol=0, atol=1e-10)


def test_what_is_no_matrix_has_adamw_beside_it():
    torch.manual_seed(0)
    ours = nn.Linear(6, 4)
    theirs = copy.deepcopy(ours)
    adamw = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
    groups = [{"params": list(ours.parameters()), "weight_decay": 0.1}]
    both = beside_adamw(groups, {id(ours.weight)}, lambda part: GaLoreAdamW(part, **adamw, rank=2), **adamw)
    alone = torch.optim.AdamW([theirs.bias], weight_decay=0.1, **adamw)
    for model, optimizer in ((ours, both), (theirs, alone)):
        for step in range(3):
            model.weight.grad = torch.full((4, 6), 1.0 + step)
            model.bias.grad = torch.full((4,), 1.0 + step)
            optimizer.step()
    assert torch.equal(ours.bias, theirs.bias) and not torch.equal(ours.weight, theirs.weight)
    assert [group["weight_decay"] for group in both.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("projection", ["std", "reverse_std", "left", "right"])
def test_projected_and_back_a_gradient_of_low_rank_is_itself(projection):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    low = torch.randn(6, 2, dtype=torch.float64) @ torch.randn(2, 8, dtype=torch.float64)
    optimizer = GaLoreAdamW([weight], lr=1.0, betas=(0.0, 0.0), eps=1e12, scale=1e12, rank=2, projection=projection)
    weight.grad = low  # with so large an epsilon, Adam's step is the gradient over it
    optimizer.step()
    torch.testing.assert_close(weight.data, -low, rtol=1e-9, atol=1e-9)


def tiny(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "frankenstein":
        sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        return FrankensteinForMaskedLM(FrankensteinConfig.from_preset("mini", **sizes, retention_heads=4))
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2}
    return Legacy1BitForCausalLM(Legacy1BitConfig.from_preset("legacy-1bit", **sizes, pad_token_id=0))


@pytest.mark.parametrize("family", ["frankenstein", "legacy"])
def test_what_is_projected(family):
    model = tiny(family)
    chosen = hidden_matrices(model)
    assert any("q_proj" in name for name in chosen) and any("ffn" in name for name in chosen)
    assert not any(part in name for name in chosen for part in ("embed", "lm_head", "router", "norm"))
    assert chosen <= set(dict(model.named_parameters()))


def train(model, optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(3, 61, (2, 9))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def galore_of(model, bits=32):
    named = dict(model.named_parameters())
    chosen = {id(named[name]) for name in hidden_matrices(model)}
    groups = [{"params": list(named.values())}]
    return beside_adamw(
        groups, chosen, lambda part: GaLoreAdamW(part, lr=1e-3, rank=4, update_gap=3, bits=bits), lr=1e-3
    )


@pytest.mark.parametrize(
    ("family", "bits"),
    [("frankenstein", 8), ("legacy", 32)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (("frankenstein", 32), ("legacy", 8))],
)
def test_resumes_to_the_bit_and_holds_tensors_only(family, bits):
    whole = tiny(family).eval()
    optimizer = galore_of(whole, bits)
    train(whole, optimizer, range(8))
    broken = tiny(family).eval()
    optimizer = galore_of(broken, bits)
    train(broken, optimizer, range(4))
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    optimizer = galore_of(broken, bits)
    optimizer.load_state_dict(torch.load(saved, weights_only=True))
    train(broken, optimizer, range(4, 8))
    assert all(map(torch.equal, whole.parameters(), broken.parameters()))


def test_the_state_is_small():
    """At a quarter of the width, at most 40 % of AdamW's, in bytes after a step over the matrices of mini."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = FrankensteinForMaskedLM(FrankensteinConfig.from_preset("mini"))
    named, chosen = dict(model.named_parameters()), hidden_matrices(model)
    assert any("in_proj" in name for name in chosen)  # Mamba-2's
    shapes = sorted({tuple(named[name].shape) for name in chosen})  # each once is enough, and takes a second

    def bytes_of(optimizer_class, **options) -> dict[tuple, int]:
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer = optimizer_class(weights, **options)
        optimizer.step()
        return {
            tuple(weight.shape): sum(value.nbytes for value in optimizer.state[weight].values()) for weight in weights
        }

    ours = bytes_of(GaLoreAdamW, rank=model.config.hidden_size // 4)
    theirs = bytes_of(torch.optim.AdamW)
    count = [sum(sizes[tuple(named[name].shape)] for name in chosen) for sizes in (ours, theirs)]
    assert count[0] <= 0.4 * count[1]


def test_eight_bits_are_a_quarter_and_nearly_as_good():
    """Moments within a block's rounding of the full ones, and weights that follow them."""
    torch.manual_seed(0)
    full, small = nn.Parameter(torch.zeros(48, 64)), nn.Parameter(torch.zeros(48, 64))
    both = [GaLoreAdamW([weight], lr=1e-2, rank=16, bits=bits) for weight, bits in ((full, 32), (small, 8))]
    direction = torch.randn(48, 64)
    for _ in range(20):
        gradient = direction + torch.randn(48, 64)
        for weight, optimizer in zip((full, small), both, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert (full - small).norm() < 0.05 * full.norm()
    states = [optimizer.state[weight] for weight, optimizer in zip((full, small), both, strict=True)]
    moments = [sum(value.nbytes for name, value in state.items() if "exp_avg" in name) for state in states]
    assert moments[1] < 0.27 * moments[0] and states[1]["exp_avg"].dtype == torch.uint8


def test_a_gradient_that_is_not_finite_is_told():
    weight = nn.Parameter(torch.zeros(3, 3))
    weight.grad = torch.full((3, 3), torch.nan)
    with pytest.raises(Failed, match="gradient with NaN or Inf"):
        GaLoreAdamW([weight], rank=2).step()


def test_a_rank_above_a_side_is_told(caplog):
    caplog.set_level("INFO")
    GaLoreAdamW([nn.Parameter(torch.zeros(3, 9)), nn.Parameter(torch.zeros(9, 9))], rank=4)
    assert "rank 4: 1 of 2 matrices have a shorter side" in caplog.text


def test_gpt2s_matrices_are_found_and_a_model_without_any_is_told():
    assert any("c_attn.weight" in name for name in hidden_matrices(model_of()))
    with pytest.raises(UserError, match="has no linear layers inside its stack"):
        hidden_matrices(nn.Sequential(nn.Embedding(3, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"rank": 2, "update_gap": 0}, "update_gap=0 must be"),
        ({"rank": 2, "bits": 4}, "bits=4 must be 8 or 32"),
        ({"rank": 2, "scale": 0.0}, "scale=0.0 must be positive"),
        ({"rank": 2, "projection": "lft"}, "Did you mean 'left'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, 3))], **options)


def test_vectors_have_no_rank():
    with pytest.raises(ValueError, match="GaLore takes matrices"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3))], rank=2)
