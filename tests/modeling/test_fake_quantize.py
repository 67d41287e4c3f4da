"""Fake quantisation of activations against definitions in float64; the weights' schemes are in test_ternary.py."""

import pytest
import torch

from frankenlm.modeling import fake_quantize
from frankenlm.modeling.fake_quantize import fake_quantize_activations, fake_quantize_weight
from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.modeling.ternary import quantize_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True, params=["native", "plain torch"])
def form(request, monkeypatch):
    if request.param == "plain torch":
        monkeypatch.setattr(fake_quantize, "native_code_runs", lambda: False)
    elif not native_code_runs():
        pytest.skip("no compiler here: only plain torch runs")
    return request.param


def test_the_native_operators_are_used(form, monkeypatch):
    """The two forms of the tests below are two forms indeed."""
    plain, original = [], fake_quantize.round_tokens
    monkeypatch.setattr(fake_quantize, "round_tokens", lambda *args: plain.append(args) or original(*args))
    for dtype in (torch.float32, torch.bfloat16):
        fake_quantize_activations(torch.randn(2, 5, dtype=dtype))
    assert len(plain) == (0 if form == "native" else 2)
    fake_quantize_activations(torch.randn(2, 5, dtype=torch.float16))
    assert len(plain) == (1 if form == "native" else 3), "float16 has no native form"


def definition(x, bits, norm_eps):
    """Return the rounded tokens, and which values lie half-way between two levels; token by token, in float64."""
    rows, ties = [], []
    for token in x.double().reshape(-1, x.shape[-1]):
        if norm_eps > 0:
            token = token / (token.square().mean() + norm_eps).sqrt()
        top = 2 ** (bits - 1) - 1
        scale = top / max(token.abs().max().item(), 1e-5)
        rows.append((scale * token).round().clamp(-top - 1, top) / scale)
        ties.append(((scale * token).frac().abs() - 0.5).abs() < 1e-4)
    return torch.stack(rows).reshape(x.shape), torch.stack(ties).reshape(x.shape)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 5, 17), (7, 64), (4, 385)])
@pytest.mark.parametrize("norm_eps", [-1.0, 1e-6, 0.1])
@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(shape, norm_eps, bits, dtype):
    x = (3 * torch.randn(shape)).to(dtype)
    actual = fake_quantize_activations(x, bits, norm_eps, torch.promote_types(dtype, torch.float32))
    expected, ties = definition(x, bits, norm_eps)
    level = expected.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    wrong = (actual - expected).abs() > 1e-6 * expected.abs() + 1e-9
    assert not wrong[~ties].any() and ties.float().mean() < 0.1
    assert ((actual - expected).abs() <= 1.001 * level + 1e-9).all(), "a tie goes to one of its two neighbours"


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_in_the_dtype_asked_for(dtype):
    x = torch.randn(3, 17)
    assert fake_quantize_activations(x.to(dtype)).dtype == dtype
    asked = fake_quantize_activations(x, 8, 1e-6, dtype)
    assert asked.dtype == dtype and torch.equal(asked, fake_quantize_activations(x, 8, 1e-6).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_features_does_not_matter(dtype):
    """The one sum is good to the last bit, so codes are the same in whatever order it runs."""
    x, order = torch.randn(50, 1000).to(dtype), torch.randperm(1000)
    assert torch.equal(fake_quantize_activations(x[:, order], 8, 1e-6), fake_quantize_activations(x, 8, 1e-6)[:, order])


@pytest.mark.parametrize("norm_eps", [-1.0, 1e-6])
def test_tokens_are_independent(norm_eps):
    x = torch.randn(6, 33)
    before = fake_quantize_activations(x, 8, norm_eps)
    x[1], x[3, 7], x[4, 0], x[5] = 1e4 * x[1], float("nan"), float("inf"), 0.0
    after = fake_quantize_activations(x, 8, norm_eps)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[[3, 4]].isnan().all() and torch.equal(after[5], torch.zeros(33))


@pytest.mark.parametrize("shape", [(0, 17), (2, 0, 17)])
def test_no_tokens(shape):
    x = torch.randn(shape, requires_grad=True)
    y = fake_quantize_activations(x, 8, 1e-6)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 16)])
def test_gradient_of_the_normalisation(shape):
    """With 2^49 levels rounding is the identity to 1e-14, so finite differences see what the gradient claims."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for norm_eps in (-1.0, 1e-6, 0.3):
        assert torch.autograd.gradcheck(lambda x, eps=norm_eps: fake_quantize_activations(x, 50, eps), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_eps", [-1.0, 1e-6])
def test_gradient_in_lower_precision(dtype, out, norm_eps):
    x, gradient = torch.randn(9, 65).to(dtype).requires_grad_(), torch.randn(9, 65).to(out)
    (actual,) = torch.autograd.grad(fake_quantize_activations(x, 8, norm_eps, out), x, gradient)
    exact = x.detach().double().requires_grad_()
    normed = exact / (exact.square().mean(-1, keepdim=True) + norm_eps).sqrt() if norm_eps > 0 else exact * 1
    (expected,) = torch.autograd.grad(normed, exact, gradient.double())
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", [None, torch.bfloat16])
def test_weights_pass_their_gradient_unchanged(dtype, out):
    weight = torch.randn(7, 11).to(dtype).requires_grad_()
    y = fake_quantize_weight(weight, "ternary_absmean", "row", out)
    codes, scale = quantize_weight(weight.detach(), "ternary_absmean", "row")
    assert y.dtype == (out or dtype) and torch.equal(y, (codes * scale).to(y.dtype))
    gradient = torch.randn(7, 11).to(y.dtype)
    y.backward(gradient)
    assert weight.grad.dtype == dtype and torch.equal(weight.grad, gradient.to(dtype))
