"""Linear layers that keep their weights' layout: the same products, nothing left behind, damage seen."""

import pytest
import torch
from torch import nn

from frankenlm.degradation.answers import packed_linears as module
from frankenlm.degradation.answers.packed_linears import FEWEST_ROWS, MOST_ROWS, can_be_packed, packed_linears

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def layer(dtype=torch.float32, bias=True, size=(37, 51)):
    torch.manual_seed(0)
    made = nn.Linear(*size, bias=bias).to(dtype)
    if not can_be_packed(made):
        pytest.skip(f"this processor does not multiply {dtype} by oneDNN")
    return made


@torch.inference_mode()
def error(made, rows, shape=()):
    """How far a layer's output is from the product in float64, relative to it."""
    given = torch.randn(*(shape or (rows,)), made.in_features).to(made.weight.dtype)
    found = made(given)
    assert found.shape == (*given.shape[:-1], made.out_features) and found.is_contiguous()
    expected = given.double() @ made.weight.double().t() + (0 if made.bias is None else made.bias.double())
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_every_count_of_rows(dtype, bias):
    made = layer(dtype, bias)
    with packed_linears(made):
        for rows in (1, 2, FEWEST_ROWS, 7, 16, 33, MOST_ROWS, MOST_ROWS + 1):
            assert error(made, rows) < TOLERANCE[dtype]
            assert (made.forward.packed is not None) == (rows >= FEWEST_ROWS)
        assert error(made, 6, (3, 2)) < TOLERANCE[dtype]
    assert "forward" not in vars(made)


def test_weights_that_were_damaged_are_laid_out_anew():
    made = layer()
    for _ in range(2):
        with packed_linears(made):
            assert error(made, 5) < 1e-5
        with torch.no_grad():
            made.weight.mul_(-2)


def test_an_error_leaves_nothing_behind():
    made = nn.Sequential(layer(), layer(size=(51, 3)))
    with pytest.raises(KeyboardInterrupt), packed_linears(made):
        raise KeyboardInterrupt
    assert not any("forward" in vars(each) for each in made)


class Other(nn.Linear):
    """A layer with arithmetic of its own."""


def test_other_layers_stay_as_they_are(monkeypatch):
    replaced, wide = layer(), layer()
    own = replaced.forward = lambda given: given
    model = nn.ModuleList([Other(4, 4), nn.Linear(4, 4).double(), replaced])
    with packed_linears(model):
        assert ["forward" in vars(each) for each in model] == [False, False, True] and replaced.forward is own
    assert replaced.forward is own
    monkeypatch.setattr(module, "MOST_BYTES", wide.weight.nbytes - 1)
    with packed_linears(wide):
        assert "forward" not in vars(wide)


class Attention(nn.Module):
    """Three products of one input, and one of as wide an input that comes of them."""

    def __init__(self, dtype, bias):
        super().__init__()
        sizes = {"q": 40, "k": 8, "v": 8, "o": 40}
        for name, width in sizes.items():
            self.add_module(name, layer(dtype, bias, (40, width)))

    def forward(self, given):
        return torch.cat([self.q(given), self.k(given), self.v(given)], -1), self.o(given + 1)

    def members(self):
        return {name for name, child in self.named_children() if child.forward.together is not None}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_layers_of_one_input_are_multiplied_together(dtype, bias):
    """Bit by bit what they are alone, whichever call it is."""
    made = Attention(dtype, bias)
    given = [torch.randn(rows, 2, 40).to(dtype) for rows in (3, 4, 1, 9, 200, 5)]
    expected = []
    for each in given:
        with packed_linears(made):
            expected.append(made(each))
    with packed_linears(made):
        for count, each in enumerate(given):
            for found, alone in zip(made(each), expected[count], strict=True):
                assert torch.equal(found, alone)
            assert made.members() == ({"q", "k", "v"} if count else set())
        packed = made.q.forward.together.packed
        assert packed.shape == (56, 40) and all(child.forward.packed is None for child in (made.q, made.k, made.v))
        assert made.k.forward.together.input is None  # nothing is kept beyond the last who asks


@torch.inference_mode()
def test_who_asks_otherwise_gets_an_own_product():
    """A layer left out, one called twice, alone, with another input, or with one that was changed in place."""
    made = Attention(torch.float32, True)
    with packed_linears(made):
        for _ in range(2):
            made(torch.randn(5, 40))
        first, second = torch.randn(5, 40), torch.randn(5, 40)
        made.q(first)
        for child, given in ((made.k, second), (made.k, first), (made.k, first), (made.q, second), (made.v, first)):
            expected = nn.functional.linear(given, child.weight, child.bias)
            assert torch.allclose(child(given), expected, atol=1e-5)


@torch.inference_mode()
def test_an_input_that_is_changed_in_place_is_another():
    made = Attention(torch.float32, True)

    def call(given):
        return made.q(given), made.k(given.mul_(2)), made.v(given.mul_(2))

    given = torch.randn(5, 40)
    expected = call(given.clone())
    with packed_linears(made):
        for _ in range(3):
            for found, alone in zip(call(given.clone()), expected, strict=True):
                assert torch.allclose(found, alone, atol=1e-5)
        assert made.members() == set()


@torch.inference_mode()
def test_layers_that_share_no_kind_stay_apart():
    """Of other widths in, with and without a bias, of other dtypes, of other modules."""
    made = nn.ModuleDict(
        {
            "bias": layer(size=(40, 3)),
            "none": layer(size=(40, 3), bias=False),
            "short": nn.Linear(40, 3, dtype=torch.bfloat16),
            "apart": nn.Sequential(layer(size=(40, 3))),
        }
    )
    given = torch.randn(5, 40)
    with packed_linears(made):
        for _ in range(3):
            made["bias"](given), made["none"](given), made["short"](given.bfloat16()), made["apart"](given)
        forwards = [
            child.forward for child in made.modules() if isinstance(child, nn.Linear) and vars(child).get("forward")
        ]
        assert len(forwards) > 2 and not any(forward.together for forward in forwards)


def test_gradients_take_the_plain_product():
    made = layer()
    with packed_linears(made):
        made(torch.ones(5, 37)).sum().backward()
        assert made.forward.packed is None
    assert made.weight.grad is not None
