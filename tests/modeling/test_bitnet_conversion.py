"""Exchange with transformers' BitNet checkpoints, against transformers' own packing and layers."""

import warnings

import pytest
import torch
from torch import nn

from frankenlm.modeling.bitnet_conversion import (
    bias_from_bitnet,
    layer_from_bitnet,
    pack_bitnet,
    scale_from_bitnet,
    scale_to_bitnet,
    state_to_bitnet,
    unpack_bitnet,
)
from frankenlm.modeling.packed_linear import PackedBitLinear
from frankenlm.modeling.ternary import unpack_ternary


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while its compiler is imported
        from transformers.integrations import bitnet
    return bitnet


def draw(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=generator)


@pytest.mark.parametrize("shape", [(4, 1), (8, 5), (12, 33), (36, 20), (64, 64)])
def test_packs_as_transformers_does(shape, theirs):
    codes = draw(*shape)
    packed = theirs.pack_weights(codes.clone())
    assert torch.equal(pack_bitnet(codes), packed) and torch.equal(unpack_bitnet(packed), codes)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(theirs.unpack_weights(packed, torch.int8), unpack_bitnet(packed))


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_agree_and_come_back(linear_class, dtype, bias, theirs):
    torch.manual_seed(0)
    codes = draw(36, 20)
    build = theirs.BitLinear if linear_class == "bitlinear" else theirs.AutoBitLinear
    layer = build(20, 36, bias=bias, dtype=dtype)
    layer.weight_scale = torch.tensor([0.37 if linear_class == "autobitlinear" else 1 / 0.37], dtype=dtype)
    if bias:
        with torch.no_grad():
            layer.bias.copy_(torch.randn(36))
    with torch.no_grad():
        layer.weight.copy_(pack_bitnet(codes) if linear_class == "bitlinear" else codes)
    state = {f"a.{name}": tensor for name, tensor in layer.state_dict().items()}
    ours = layer_from_bitnet(state["a.weight"], state["a.weight_scale"], linear_class)
    if bias:
        ours["bias"] = bias_from_bitnet(state["a.bias"], state["a.weight_scale"], linear_class)
    assert torch.equal(unpack_ternary(ours["weight"], 36, 20), codes)
    packed = PackedBitLinear(20, 36, bias, input_norm=False)
    packed.load_state_dict(ours)
    x = torch.randn(5, 20)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = layer.float()(x) if linear_class == "autobitlinear" else as_float32(layer)(x)
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-5)
    ours = {f"a.{name}": tensor for name, tensor in ours.items()} | {"norm": torch.ones(3)}
    back = state_to_bitnet(ours, {"a": (36, 20)}, linear_class, dtype)
    assert torch.equal(back["a.weight"], pack_bitnet(codes)) and back["norm"] is ours["norm"]
    for name in state.keys() - {"a.weight"}:
        assert back[name].dtype == state[name].dtype, name
        torch.testing.assert_close(back[name], state[name], rtol=2e-7 if dtype == torch.float32 else 0, atol=0)


def as_float32(layer):
    layer.dtype = torch.float32
    return layer.float()


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scales_come_back_bit_for_bit(linear_class, dtype):
    """Every value of one binade, and a few decades."""
    values = torch.cat([torch.linspace(1, 2, 2049), torch.logspace(-3, 3, 50)]).to(dtype).unique()
    for value in values:
        scale = scale_from_bitnet(value.reshape(1), linear_class, 5)
        assert torch.equal(scale_to_bitnet(scale, linear_class, dtype), value.reshape(1))


def test_master_weights_are_quantised_as_at_every_call(theirs):
    torch.manual_seed(0)
    layer = theirs.AutoBitLinear(20, 36, bias=False, online_quant=True)
    packed = PackedBitLinear(20, 36, False, input_norm=False)
    packed.load_state_dict(layer_from_bitnet(layer.weight.detach(), None, "autobitlinear"))
    x = torch.randn(5, 20)
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.full((9, 20), 255, dtype=torch.uint8)}, "damaged: it holds a code 3"),
        ({"weight": torch.zeros(9, dtype=torch.uint8)}, "expected uint8 with 2 axes"),
        ({"weight": torch.full((36, 20), 0.5)}, "codes must be -1, 0 or 1"),
        ({"weight_scale": torch.zeros(1)}, "scale holds NaN or infinity"),
        ({"weight_scale": torch.ones(2)}, "scale has shape"),
    ],
)
def test_damaged_layers_say_how(change, message):
    parts = {"weight": pack_bitnet(draw(36, 20)), "weight_scale": torch.ones(1)} | change
    with pytest.raises(ValueError, match=message):
        layer_from_bitnet(parts["weight"], parts["weight_scale"], "bitlinear")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(20, 36), "a: its rows have scales of their own"),
        (nn.Linear(20, 35), "a: 35 rows are no multiple of 4"),
    ],
)
def test_what_transformers_has_no_form_for(layer, message):
    rows, columns = layer.weight.shape
    packed = PackedBitLinear.from_codes(draw(rows, columns), 1.0 + torch.arange(rows))
    state = {f"a.{name}": tensor for name, tensor in packed.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        state_to_bitnet(state, {"a": (rows, columns)}, "bitlinear", torch.float32)
