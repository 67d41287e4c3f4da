"""Weight quantisers against the table of schemes, BitLinear against transformers' AutoBitLinear."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.modeling.ternary import SCHEMES, quantize_weight

# scheme: (levels, relative squared error on a unit Gaussian)
TABLE = {
    "binary": (2, 0.364),
    "ternary_absmean": (3, 0.264),
    "ternary_absmedian": (3, 0.318),
    "ternary_twn": (3, 0.192),
    "int2": (4, 0.119),
    "int2_pow": (4, 0.161),
}
every_scheme = pytest.mark.parametrize("scheme", sorted(TABLE))


def definition(w, scheme):
    """Quantise all of w with one scale, element by element as the specification words it; float64."""
    w = w.double()
    mean = w.abs().mean()
    if scheme == "binary":
        centred = w - w.mean()
        return centred.abs().mean() * ((centred >= 0).double() * 2 - 1)
    if scheme in ("ternary_absmean", "ternary_absmedian"):
        scale = mean if scheme == "ternary_absmean" else w.abs().median()
        return scale * torch.clamp(torch.round(w / scale), -1, 1)
    if scheme == "ternary_twn":
        kept = w.abs() > 0.7 * mean
        return torch.where(kept, w.sign() * w.abs()[kept].mean(), 0.0)
    levels, scale = ((-1.5, -0.5, 0.5, 1.5), mean / 0.8) if scheme == "int2" else ((-2, -1, 1, 2), 0.88 * mean)
    levels = torch.tensor(levels, dtype=torch.float64) * scale
    return levels[(w[..., None] - levels).abs().argmin(-1)]


def test_the_table_is_complete():
    assert set(SCHEMES) == set(TABLE)


@every_scheme
def test_error_on_a_unit_gaussian(scheme):
    w = torch.randn(1000, 1000)
    codes, scale = quantize_weight(w, scheme)
    error = (codes * scale - w).square().mean() / w.square().mean()
    assert error.item() == pytest.approx(TABLE[scheme][1], abs=0.002)
    assert len((codes * scale).unique()) == len(codes.unique()) == TABLE[scheme][0]


@every_scheme
@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (17, 5), (64, 33)])
def test_every_scheme_equals_its_definition(scheme, shape):
    w = 0.05 * torch.randn(shape, dtype=torch.float64) + 0.01
    codes, scale = quantize_weight(w, scheme)
    assert scale.shape == (1, 1) and codes.shape == w.shape
    torch.testing.assert_close(codes * scale, definition(w, scheme), atol=1e-10, rtol=0)


@every_scheme
def test_a_scale_per_row_treats_rows_alone(scheme):
    w = torch.randn(6, 31, dtype=torch.float64) * torch.logspace(-2, 2, 6, dtype=torch.float64)[:, None]
    codes, scale = quantize_weight(w, scheme, scale_axis="row")
    assert scale.shape == (6, 1)
    expected = torch.stack([definition(row, scheme) for row in w])
    torch.testing.assert_close(codes * scale, expected, atol=1e-10, rtol=1e-12)


@every_scheme
def test_zero_weights(scheme):
    w = torch.randn(4, 9)
    w[2] = 0
    for weight, axis in ((w, "row"), (torch.zeros(4, 9), "tensor")):
        codes, scale = quantize_weight(weight, scheme, scale_axis=axis)
        assert codes.isfinite().all() and scale.isfinite().all() and (scale >= 0).all()
        if scheme.startswith("ternary"):
            assert not (codes * scale)[2].any()
        else:
            assert (codes * scale)[2].abs().max() <= 1e-4, "no zero level: as small as the floor of the scale"


def test_binary_sign_of_zero_is_plus():
    codes, _ = quantize_weight(torch.tensor([[-1.0, 0.0, 1.0]]), "binary")
    assert codes.tolist() == [[-1, 1, 1]]


@pytest.mark.parametrize("wrong", [{"scheme": "ternary_absmeen"}, {"scale_axis": "column"}])
def test_unknown_scheme_or_axis(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        quantize_weight(torch.randn(2, 2), **wrong)


@pytest.fixture(scope="module")
def auto_bit_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while its compiler is imported
        from transformers.integrations.bitnet import AutoBitLinear
    return AutoBitLinear


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (24,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_auto_bit_linear_bit_for_bit(shape, bias, dtype, auto_bit_linear):
    theirs = auto_bit_linear(24, 13, bias=bias, online_quant=True, dtype=dtype)
    ours = BitLinear(24, 13, bias=bias, input_norm=False, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = 3 * torch.randn(shape, dtype=dtype)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.compiler.set_stance("force_eager"):
        expected = theirs(theirs_x)
        expected.square().sum().backward()
    actual = ours(ours_x)
    actual.square().sum().backward()
    assert torch.equal(actual, expected)
    assert torch.equal(ours_x.grad, theirs_x.grad) and torch.equal(ours.weight.grad, theirs.weight.grad)


def quantised_by_definition(x, with_norm, eps=1e-6):
    x = x.double()
    if with_norm:
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    scale = 127 / x.abs().amax(-1, keepdim=True)
    return x, torch.clamp(torch.round(scale * x), -128, 127) / scale


@every_scheme
@pytest.mark.parametrize("with_norm", [True, False])
def test_gradients_go_straight_through(scheme, with_norm):
    """dL/dW is that of the plain linear at (xq, Wq); dL/dx passes the rounding and then the normalisation."""
    layer = BitLinear(24, 13, scheme=scheme, input_norm=with_norm, dtype=torch.float64)
    x, target = torch.randn(5, 24, dtype=torch.float64), torch.randn(5, 13, dtype=torch.float64)
    free = x.clone().requires_grad_()
    y = layer(free)
    (y - target).square().sum().backward()

    weight = definition(layer.weight.detach(), scheme).requires_grad_()
    start = x.clone().requires_grad_()
    normed, rounded = quantised_by_definition(start, with_norm)
    rounded = rounded.detach().requires_grad_()
    expected = F.linear(rounded, weight, layer.bias.detach())
    (expected - target).square().sum().backward()
    normed.backward(rounded.grad)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(layer.weight.grad, weight.grad, atol=1e-10, rtol=0)
    torch.testing.assert_close(layer.bias.grad, 2 * (expected - target).sum(0).detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(free.grad, start.grad, atol=1e-10, rtol=0)


@every_scheme
def test_forward_sees_few_weights(scheme):
    layer = BitLinear(40, 30, bias=False, scheme=scheme)
    assert len(layer.quantized_weight().unique()) == TABLE[scheme][0]
    one_hot = BitLinear(40, 30, bias=False, scheme=scheme, input_norm=False)
    one_hot.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(one_hot(torch.eye(40)).T, layer.quantized_weight()), "what forward uses is what is reported"


def test_tokens_do_not_share_a_scale():
    layer, x = BitLinear(24, 13), torch.randn(2, 6, 24)
    before = layer(x)
    x[:, 3] *= 1e4
    x[:, 5] = torch.randn(24)
    after = layer(x)
    assert torch.equal(after[:, [0, 1, 2, 4]], before[:, [0, 1, 2, 4]])
    torch.testing.assert_close(after[:, 3], before[:, 3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("input_norm", [True, False])
def test_a_zero_token_gives_the_bias(input_norm):
    layer = BitLinear(24, 13, input_norm=input_norm)
    assert torch.equal(layer(torch.zeros(2, 24)), layer.bias.expand(2, -1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_of_the_activations(bits):
    layer = BitLinear(1000, 1000, bias=False, activation_bits=bits, input_norm=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(1000))
        scale = layer.quantized_weight().max()
        levels = (layer(torch.randn(1, 1000, dtype=torch.float64)) / scale).unique()
    assert 2 < len(levels) <= 2**bits


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("ode", [False, True])
def test_what_a_ternary_model_keeps_in_full_precision(head, ode, tiny_model):
    options = {"num_experts": 4, "factorized_embedding_dim": 8, "tie_word_embeddings": False}
    model = tiny_model(("retnet", "ode", "mamba"), use_bitnet=True, bitnet_head=head, ode_bitnet=ode, **options)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        is_full = "router" in name or ("lm_head" in name and not head) or ("attention" in name and not ode)
        assert isinstance(module, BitLinear) != is_full, name
