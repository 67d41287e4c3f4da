"""Scales of groups of inputs: the quantiser, the layers that train with them, and their packed forms."""

import pytest
import torch
import torch.nn.functional as F

from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.modeling.column_groups import GROUP_SIZES, spread
from frankenlm.modeling.configuration_frankenstein import FrankensteinConfig
from frankenlm.modeling.group_scales import pack_group_scales, unpack_group_scales
from frankenlm.modeling.packed_embedding import PackedBitEmbedding
from frankenlm.modeling.packed_linear import PACKABLE_SCHEMES, PackedBitLinear
from frankenlm.modeling.packed_reference import quantize_activations, ternary_linear
from frankenlm.modeling.ternary import SCHEMES, pack_ternary, quantize_weight

SHAPES = [(5, 200), (16, 128), (17, 31), (1, 33), (3, 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_codes(rows, columns):
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8)


def by_definition(x_codes, x_step, codes, scale, size, bias):
    """The layer's sums, group after group, each operation of float32 spelt out."""
    total = torch.zeros(x_codes.shape[0], codes.shape[0])
    for group in range(scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        exact = (x_codes[:, part].long() @ codes[:, part].long().T).float()
        total = total + exact * scale[:, group].float()
    y = total * x_step[:, None]
    return y if bias is None else y + bias


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_group_is_quantised_as_a_row_of_its_own(scheme, size, shape):
    weight = torch.randn(shape) * torch.logspace(-2, 1, shape[1])
    codes, scale = quantize_weight(weight, scheme, "group", size)
    assert codes.shape == shape and scale.shape == (shape[0], -(-shape[1] // size))
    for group, first in enumerate(range(0, shape[1], size)):
        alone, of_row = quantize_weight(weight[:, first : first + size], scheme, "row")
        assert torch.equal(codes[:, first : first + size], alone)
        assert torch.equal(scale[:, [group]], of_row.bfloat16().float())


@pytest.mark.parametrize(
    ("axis", "size", "message"),
    [
        ("group", None, "needs one of 32, 64, 128"),
        ("group", 48, "needs one of"),
        ("row", 64, "goes with"),
        ("group", True, "one of"),
    ],
)
def test_sizes_that_do_not_go_with_the_axis(axis, size, message):
    for make in (
        lambda: quantize_weight(torch.ones(2, 64), "binary", axis, size),
        lambda: BitLinear(64, 2, scale_axis=axis, group_size=size),
        lambda: BitEmbedding(2, 64, scale_axis=axis, group_size=size),
        lambda: FrankensteinConfig.from_preset("mini", use_bitnet=True, scale_axis=axis, group_size=size),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"group_size|{message}"):
            make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3), (16, 1), (33, 7)])
def test_scales_come_out_as_they_went_in(dtype, shape):
    scale = torch.rand(shape)
    packed = pack_group_scales(scale, dtype)
    assert packed.shape == (-(-shape[0] // 16), shape[1], 16) and packed.is_contiguous()
    assert torch.equal(unpack_group_scales(packed, shape[0]), scale.to(dtype))
    assert not packed[-1, :, shape[0] % 16 or 16 :].any()


@pytest.mark.parametrize(
    ("scale", "message"), [(torch.tensor([[1e6]]), "beyond torch.float16"), (torch.tensor([[float("nan")]]), "NaN")]
)
def test_scales_that_cannot_be_held(scale, message):
    with pytest.raises(ValueError, match=message):
        pack_group_scales(scale, torch.float16)


@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_reference_equals_the_definition(size, shape, dtype, bias):
    codes, scale = random_codes(*shape), torch.rand(shape[0], -(-shape[1] // size))
    bias = torch.randn(shape[0]) if bias else None
    x = torch.randn(4, shape[1])
    layer = PackedBitLinear.from_codes(codes, scale, bias, input_norm=False, group_size=size, scale_dtype=dtype)
    x_codes, x_step, _ = quantize_activations(x)
    expected = by_definition(x_codes, x_step, codes, scale.to(dtype), size, bias)
    packed = (pack_ternary(codes), pack_group_scales(scale, dtype), shape[0])
    assert torch.equal(ternary_linear(x, *packed, bias, group_size=size), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected), "operators and reference agree to the last bit"
        assert torch.equal(layer.apply_prepared(layer.prepare(x)), expected)
    assert torch.equal(layer.dequantized_weight(), codes * spread(scale.to(dtype).float(), shape[1], size))
    layer.check("layer")


@pytest.mark.parametrize("scheme", PACKABLE_SCHEMES)
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_packed_layers_compute_what_trained_ones_do(scheme, size):
    layer = BitLinear(200, 37, scheme=scheme, scale_axis="group", group_size=size).eval()
    x = 3 * torch.randn(2, 5, 200)
    with torch.no_grad():
        assert torch.equal(layer.pack()(x), layer(x))
    torch.testing.assert_close(layer(x), layer.pack()(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.pack().dequantized_weight(), layer.quantized_weight())
    empty = layer.to("meta").empty_packed()
    assert {name: (v.shape, v.dtype) for name, v in empty.state_dict().items()} == {
        name: (v.shape, v.dtype)
        for name, v in BitLinear(200, 37, scale_axis="group", group_size=size).pack().state_dict().items()
    }


def test_gradients_pass_straight_through():
    layer = BitLinear(70, 5, scale_axis="group", group_size=32)
    x = torch.randn(3, 70)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, layer.prepare(x).detach().sum(0).expand(5, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables(dtype):
    table = BitEmbedding(21, 70, 2, scale_axis="group", group_size=32, dtype=dtype)
    packed, ids = table.pack(), torch.tensor([[0, 20, 2], [16, 15, 7]])
    assert torch.equal(packed(ids), table(ids)) and packed(ids).dtype == dtype
    assert torch.equal(packed.dequantized_weight(dtype)[ids], table(ids))
    for wrong in (-1, 21, 31, 32):  # 21 to 31 stand in the last tile
        with pytest.raises(IndexError):
            packed(torch.tensor([wrong]))


@pytest.mark.parametrize("packed", [PackedBitLinear(40, 20, group_size=32), PackedBitEmbedding(20, 40, group_size=32)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_scales_keep_their_format(packed, dtype):
    assert packed.to(dtype).weight_scale.dtype == torch.bfloat16 and packed.dtype == dtype


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda layer: layer.weight_scale.fill_(float("inf")), "layer.weight_scale is damaged"),
        (lambda layer: setattr(layer, "weight_scale", layer.weight_scale[:, :1]), r"have scales of .*\(1, 3, 16\)"),
        (lambda layer: setattr(layer, "weight_scale", layer.weight_scale.float()), "is torch.float32"),
    ],
)
def test_damaged_scales_are_named(damage, message):
    layer = BitLinear(70, 5, scale_axis="group", group_size=32).pack()
    damage(layer)
    with pytest.raises(ValueError, match=message):
        layer.check("layer")


def test_a_scale_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"need \(5, 3\)"):
        PackedBitLinear.from_codes(random_codes(5, 70), torch.ones(5, 2), group_size=32)


def test_linear_equals_full_precision_where_inputs_are_whole_numbers():
    """Inputs of whole numbers up to 127 are rounded to themselves: what is left is a plain product."""
    codes, scale = random_codes(9, 96), torch.rand(9, 3).bfloat16().float()
    x = torch.randint(-126, 127, (4, 96)).float()
    x[:, 0] = 127
    layer = PackedBitLinear.from_codes(codes, scale, input_norm=False, group_size=32)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized_weight()), rtol=1e-5, atol=1e-4)
