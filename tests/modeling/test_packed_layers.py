"""Packed layers against the layers they were made from, and against their definition in float64."""

import copy

import pytest
import torch
from torch import nn

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear, apply_together
from frankenlm.modeling.int8_layers import Int8Embedding, Int8Linear, quantize_rows
from frankenlm.modeling.packed_embedding import PackedBitEmbedding
from frankenlm.modeling.packed_linear import PACKABLE_SCHEMES, PackedBitLinear, check_packable
from frankenlm.modeling.packed_operators import quantize_activations
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.modeling.ternary import SCHEMES, quantize_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_definition(layer, x):
    """The layer in float64, its inputs rounded by the layer's own codes: a tie that falls otherwise is no error."""
    codes, scale, _ = quantize_activations(x, 1e-6 if layer.input_norm else -1.0)
    weight_codes, weight_scale = quantize_weight(layer.weight.detach().double(), layer.scheme, layer.scale_axis)
    y = (codes.double() * scale.double().unsqueeze(-1)) @ (weight_codes * weight_scale).double().t()
    return y if layer.bias is None else y + layer.bias.detach().double()


@pytest.mark.parametrize("scheme", PACKABLE_SCHEMES)
@pytest.mark.parametrize("scale_axis", ["tensor", "row"])
@pytest.mark.parametrize("input_norm", [True, False])
def test_equals_the_layer_it_was_made_of(scheme, scale_axis, input_norm):
    layer = BitLinear(45, 37, scheme=scheme, scale_axis=scale_axis, input_norm=input_norm)
    packed = layer.pack()
    x = 3 * torch.randn(2, 5, 45)
    with torch.no_grad():
        actual = packed(x)
        torch.testing.assert_close(actual, layer(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual.double(), by_definition(layer, x), rtol=1e-5, atol=1e-6)
    codes, _ = quantize_weight(layer.weight.detach(), scheme, scale_axis)
    assert torch.equal(packed.codes(), codes.to(torch.int8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(45,), (1, 45), (0, 45), (7, 45), (2, 3, 5, 45)])
@pytest.mark.parametrize("bias", [True, False])
def test_number_formats_and_shapes(dtype, shape, bias):
    layer = BitLinear(45, 37, bias=bias)
    x = torch.randn(shape).to(dtype)
    packed = layer.pack().to(dtype)
    with torch.no_grad():
        y = packed(x)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 37)
    assert packed.weight_scale.dtype == torch.float32 and packed.weight.dtype == torch.uint8
    expected = by_definition(layer, x).to(dtype)
    torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps * 2, atol=1e-5)


@pytest.mark.parametrize("width", [19, 21, 33])
def test_refuses_inputs_of_another_width(width):
    packed = BitLinear(20, 9).pack()
    for call in (packed, packed.prepare):
        with pytest.raises(ValueError, match=f"has {width} features; the layer takes in_features=20"):
            call(torch.randn(3, width))


def test_a_token_that_is_not_finite_spoils_only_itself():
    packed = BitLinear(20, 9).pack()
    x = torch.randn(3, 20)
    clean = packed(x)
    x[1, 4] = float("nan")
    y = packed(x)
    assert y[1].isnan().all() and torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("grad", [True, False])
def test_shared_input(grad):
    layers = [BitLinear(24, size).pack() for size in (16, 24, 40)]
    x = torch.randn(2, 7, 24, requires_grad=grad)
    together = apply_together(x, *layers)
    for layer, y in zip(layers, together, strict=True):
        assert torch.equal(y, layer(x)) and torch.equal(y, layer.apply_prepared(layer.prepare(x)))
    other = BitLinear(24, 8, input_norm=False).pack()
    assert other.input_settings != layers[0].input_settings
    assert torch.equal(apply_together(x, layers[0], other)[1], other(x))


@pytest.mark.parametrize("input_norm", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_gradient_towards_the_input(input_norm, shared):
    """Adapters below frozen packed layers get what they would get below BitLinear."""
    layer = BitLinear(45, 37, input_norm=input_norm).requires_grad_(False)
    packed = layer.pack()
    x = torch.randn(3, 45, requires_grad=True)
    towards = torch.randn(3, 37)
    (expected,) = torch.autograd.grad(layer(x), x, towards)
    y = packed.apply_prepared(packed.prepare(x)) if shared else packed(x)
    (actual,) = torch.autograd.grad(y, x, towards)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(packed(x), y)


def test_weights_cannot_train():
    packed = BitLinear(20, 9).pack()
    assert not any(tensor.requires_grad for tensor in (*packed.parameters(), *packed.buffers()))
    assert not packed(torch.randn(2, 20)).requires_grad
    with pytest.raises(RuntimeError, match="floating point"):
        packed.requires_grad_()


@pytest.mark.parametrize("move", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to("cpu").bfloat16().cpu()])
def test_scales_survive_casts(move):
    model = nn.ModuleList([BitLinear(20, 9).pack(), Int8Embedding.of(nn.Embedding(9, 20))])
    before = copy.deepcopy(model)
    model = move(model)
    for part, old in zip(model, before, strict=True):
        for (name, tensor), kept in zip(part.named_buffers(), old.buffers(), strict=True):
            assert tensor.dtype == torch.float32 and torch.equal(tensor, kept), name
    dtype = model[1](torch.arange(3)).dtype
    assert dtype == model[1].dtype != torch.float32
    assert model.float()[1](torch.arange(3)).dtype == torch.float32


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_what_can_be_packed(scheme):
    layer = BitLinear(20, 9, scheme=scheme)
    if scheme in PACKABLE_SCHEMES:
        assert isinstance(layer.pack(), PackedBitLinear)
        return
    for method in (layer.pack, layer.empty_packed):
        with pytest.raises(ValueError, match=f"w_scheme='{scheme}' cannot be packed"):
            method()


def test_other_activation_bits_are_refused():
    with pytest.raises(ValueError, match="activation_bits=4"):
        BitLinear(20, 9, activation_bits=4).pack()
    check_packable("binary", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((9, 20), 0.5)}, "found 0.5"),
        ({"codes": torch.full((9, 20), 2.0)}, "found 2"),
        ({"scale": torch.ones(5)}, "one for each of the 9 rows"),
        ({"scale": torch.tensor(float("nan"))}, "NaN or infinity"),
        ({"bias": torch.ones(3)}, r"expected \(9,\)"),
    ],
)
def test_from_codes_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        PackedBitLinear.from_codes(**{"codes": torch.ones(9, 20), "scale": torch.ones(9)} | change)


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.full((1, 1), 2.0), torch.full((9,), 2.0)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
def test_from_codes_takes(scale, dtype):
    codes = torch.randint(-1, 2, (9, 20))
    packed = PackedBitLinear.from_codes(codes.to(dtype), scale)
    assert torch.equal(packed.dequantized_weight(), 2.0 * codes) and packed.num_weights == 180
    assert torch.equal(PackedBitEmbedding.from_codes(codes.to(dtype), scale).dequantized_weight(), 2.0 * codes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_int8(dtype):
    weight = torch.randn(50, 33).to(dtype)
    weight[7] = 0
    codes, scale = quantize_rows(weight)
    error = (codes * scale.unsqueeze(1) - weight.float()).abs()
    assert (error <= 0.5001 * scale.unsqueeze(1)).all() and (codes[7] == 0).all()
    assert (codes.abs().amax(1)[torch.arange(50) != 7] == 127).all() and scale.isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        quantize_rows(torch.full((2, 2), float("nan")))


def test_int8_embedding():
    embedding = nn.Embedding(50, 33, padding_idx=4).bfloat16()
    table = Int8Embedding.of(embedding)
    ids = torch.tensor([[4, 0, 49], [1, 1, 2]])
    rows = table(ids)
    assert rows.dtype == torch.bfloat16 and not rows[0, 0].any() and table.padding_idx == 4
    torch.testing.assert_close(rows, embedding(ids).detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_linear(bias, dtype):
    linear = nn.Linear(45, 37, bias=bias)
    packed, x = Int8Linear.of(linear), torch.randn(3, 45).to(dtype)
    codes, scale, _ = quantize_activations(x)
    y = (codes.double() * scale.double().unsqueeze(1)) @ packed.dequantized_weight(torch.float64).t()
    expected = y + linear.bias.detach().double() if bias else y
    torch.testing.assert_close(packed(x), expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(packed(x).float(), linear(x.float()).detach(), rtol=0.05, atol=0.05)
    x.requires_grad_()
    towards = torch.randn(3, 37).to(dtype)
    (gradient,) = torch.autograd.grad(packed(x), x, towards)
    torch.testing.assert_close(gradient, towards @ packed.dequantized_weight(dtype))


def test_compiles_in_one_graph():
    model = nn.Sequential(BitLinear(24, 40).pack(), nn.ReLU(), Int8Linear.of(nn.Linear(40, 8)))
    x = torch.randn(5, 24)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("ids", [-1, 20, 31, 32, 10**6, -33, 2**40, [3, -1], [[0, 5], [20, 1]]])
def test_ids_outside_the_table_are_refused_as_by_torch(ids):
    """A table of 20 rows has 32 in its tiles; none but the 20 can be looked up."""
    plain = BitEmbedding(20, 8)
    for table in (plain, plain.pack(), Int8Embedding.of(plain)):
        with pytest.raises(IndexError):
            table(torch.tensor(ids))


def test_ids_of_every_kind_that_torch_takes():
    plain = BitEmbedding(20, 8)
    packed = plain.pack()
    for ids in (torch.arange(20), torch.arange(20, dtype=torch.int32).view(4, 5), torch.zeros(0, 3, dtype=torch.long)):
        torch.testing.assert_close(packed(ids), plain(ids).detach())
    for ids in (torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(RuntimeError):
            packed(ids)


def packed_legacy() -> Legacy1BitForCausalLM:
    torch.manual_seed(0)
    return pack_model(
        Legacy1BitForCausalLM(Legacy1BitConfig(vocab_size=61, hidden_size=32, num_attention_heads=2)).eval()
    )


def test_a_packed_model_in_float64():
    """Products stay those of float32 codes; what is between the layers is computed in float64."""
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, double = packed_legacy()(ids).logits, packed_legacy().double()
        actual = double(ids).logits
        assert actual.dtype == torch.float64
        assert (actual - expected).norm() < 0.1 * expected.norm()
        assert double.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 23)
        torch.testing.assert_close(double.to(torch.float32)(ids).logits, expected)
        assert packed_legacy().to(torch.float16)(ids).logits.dtype == torch.float16


def test_a_model_without_weights_says_so():
    plain = Legacy1BitForCausalLM(Legacy1BitConfig(vocab_size=61, hidden_size=32, num_attention_heads=2)).eval()
    for model in (plain.to("meta"), packed_legacy().to("meta")):
        for ids in (torch.arange(5)[None], torch.zeros(1, 5, dtype=torch.long, device="meta")):
            with pytest.raises(ValueError, match=r"meta device and has no weights.*from_pretrained"):
                model(ids)
    layer = PackedBitLinear.from_codes(torch.ones(16, 32, dtype=torch.int8), torch.tensor(1.0)).to("meta")
    assert layer(torch.ones(2, 32, device="meta")).shape == (2, 16)
    with pytest.raises(RuntimeError, match="meta"):
        layer(torch.ones(2, 32))
