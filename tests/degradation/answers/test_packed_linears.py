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


def test_gradients_take_the_plain_product():
    made = layer()
    with packed_linears(made):
        made(torch.ones(5, 37)).sum().backward()
        assert made.forward.packed is None
    assert made.weight.grad is not None
