"""The training operators: every code path equals plain torch, forward to the last bit."""

import os
import random

import pytest
import torch

from frankenlm.kernels import ops
from frankenlm.modeling.fake_quantize import normalization_gradient, round_tokens
from frankenlm.modeling.native_ops import native_code_runs

if not native_code_runs():
    pytest.skip("no compiler here: only plain torch runs", allow_module_level=True)

FORCED = os.environ.get(ops.PATH_VARIABLE)
PATHS = (FORCED,) if FORCED else ops.NATIVE_PATHS
DTYPES = (torch.float32, torch.bfloat16)
SPECIAL = (0.0, 1.0, -3.5, 1e-30, 1e30, 3e38)


@pytest.fixture(params=PATHS)
def path(request):
    before = ops.which_path()
    try:
        ops.use_path(request.param)
    except ValueError as missing:
        pytest.skip(str(missing))
    yield request.param
    ops.use_path(before)


def problem(seed: int):
    """Draw tokens, and the arguments of their quantiser; some tokens are constant, huge, tiny or not finite."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens, inputs = draw.choice((0, 1, 2, 7, 33)), draw.choice((1, 2, 7, 8, 9, 15, 16, 17, 31, 100, 384, 401))
    x = torch.randn(tokens, inputs, generator=generator) * 10 ** draw.uniform(-6, 6)
    if tokens and seed % 5 == 0:
        x[draw.randrange(tokens)] = draw.choice(SPECIAL)
    if tokens and seed % 7 == 0:
        x[draw.randrange(tokens), draw.randrange(inputs)] = draw.choice([float("inf"), float("-inf"), float("nan")])
    dtype, out = draw.choice(DTYPES), draw.choice(DTYPES)
    return x.to(dtype), draw.choice((2, 3, 4, 8)), draw.choice((-1.0, 1e-6, 0.1)), out


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))


def test_forward_equals_plain_torch_to_the_last_bit(path):
    for seed in range(500):
        x, bits, norm_eps, out = problem(seed)
        expected, factor = round_tokens(x, bits, norm_eps, out)
        actual, actual_factor = torch.ops.frankenlm.fake_quantize_activations(x, bits, norm_eps, out)
        assert same(actual, expected), f"seed {seed}: {tuple(x.shape)}, {bits} bits, norm_eps {norm_eps}, {out}"
        if factor is None:
            factor = torch.ones(len(x), 1)
        assert same(actual_factor, factor.squeeze(-1)), f"seed {seed}"


def test_backward_is_the_gradient_of_the_normalisation(path):
    for seed in range(200):
        x, _, norm_eps, out = problem(seed)
        x = torch.where(x.isfinite(), x, 1.0).clamp(-1e6, 1e6)
        norm_eps = abs(norm_eps)
        gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(out)
        _, factor = torch.ops.frankenlm.fake_quantize_activations(x, 8, norm_eps, out)
        actual = torch.ops.frankenlm.fake_quantize_activations_backward(gradient, x, factor)
        exact = x.double().requires_grad_()
        rms = (exact.square().mean(-1, keepdim=True) + norm_eps).sqrt()
        (expected,) = torch.autograd.grad(exact / rms, exact, gradient.double())
        # the two terms may cancel, so the error is measured against the first
        size = (gradient.double().abs() / rms).amax(-1, keepdim=True).detach() if x.numel() else 1.0
        tolerance = 1e-6 if x.dtype == torch.float32 else 5e-3
        torch.testing.assert_close(actual.double() / size, expected / size, atol=tolerance, rtol=tolerance)
        assert actual.dtype == x.dtype
        plain = normalization_gradient(gradient, x, factor.unsqueeze(-1))
        torch.testing.assert_close(plain.double() / size, expected / size, atol=tolerance, rtol=tolerance)


def test_a_strided_or_misaligned_input_is_the_same_input():
    x = torch.randn(6, 5, 34)
    for view in (x.transpose(0, 1), x[:, :, 1:], x[::2, 1:3, ::3], x[0, 0]):
        actual = torch.ops.frankenlm.fake_quantize_activations(view, 8, 1e-6)[0]
        assert torch.equal(actual, round_tokens(view, 8, 1e-6, torch.float32)[0])


OPERATIONS = {
    "fake_quantize_activations": (torch.randn(3, 5, 17), 8, 1e-6, torch.bfloat16),
    "fake_quantize_activations_backward": (torch.randn(3, 17), torch.randn(3, 17), torch.rand(3)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.frankenlm, name).default, OPERATIONS[name])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fake_quantize_activations", (torch.randn(2, 3, dtype=torch.float64),), "float32 or bfloat16"),
        ("fake_quantize_activations", (torch.randn(2, 3), 8, -1.0, torch.int8), "dtype must be float32 or bfloat16"),
        ("fake_quantize_activations", (torch.randn(2, 3), 1), "bits must lie in 2..16"),
        ("fake_quantize_activations", (torch.tensor(1.0),), "at least one dimension"),
        ("fake_quantize_activations_backward", (torch.randn(2, 4), torch.randn(2, 3), torch.rand(2)), "same shape"),
        ("fake_quantize_activations_backward", (torch.randn(2, 3), torch.randn(2, 3), torch.rand(3)), "one value per"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.frankenlm, name)(*arguments)
