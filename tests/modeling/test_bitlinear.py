"""BitLinear: transformers' AutoBitLinear as oracle, straight-through gradients, every way a training step can run."""

import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from frankenlm.modeling import fake_quantize
from frankenlm.modeling.bitlinear import BitLinear, apply_together
from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.modeling.ternary import quantize_weight

LEVELS = {"binary": 2, "ternary_absmean": 3, "ternary_absmedian": 3, "ternary_twn": 3, "int2": 4, "int2_pow": 4}
every_scheme = pytest.mark.parametrize("scheme", sorted(LEVELS))


@pytest.fixture(autouse=True, params=["native", "plain torch"])
def form(request, monkeypatch):
    """Everything holds with the native operators and without them."""
    if request.param == "plain torch":
        monkeypatch.setattr(fake_quantize, "native_code_runs", lambda: False)
    elif not native_code_runs():
        pytest.skip("no compiler here: only plain torch runs")
    return request.param


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

    weight = layer.quantized_weight().requires_grad_()
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
    assert len(layer.quantized_weight().unique()) == LEVELS[scheme]
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


# --- ways a training step can run


def gradients_of(call, layer, x, weights):
    """Return output and gradients (input first) of a weighted sum of the outputs of call(x)."""
    x = x.clone().requires_grad_()
    y = call(x)
    return y, torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])


def assert_all_equal(actual, expected):
    for a, b in zip([actual[0], *actual[1]], [expected[0], *expected[1]], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_once_and_keeps_statistics_in_float32(input_dtype):
    layer = BitLinear(45, 13)
    x, target = torch.randn(6, 45).to(input_dtype), torch.randn(6, 13)
    free = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(free)
    (y.float() * target).sum().backward()

    normed, rounded = quantised_by_definition(x, True)
    rounded = rounded.bfloat16().requires_grad_()
    weight = layer.quantized_weight().bfloat16().requires_grad_()
    expected = F.linear(rounded, weight, layer.bias.detach().bfloat16())
    (expected.float() * target).sum().backward()
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    assert layer.weight.grad.dtype == torch.float32 and torch.equal(layer.weight.grad, weight.grad.float())
    start = x.double().requires_grad_()
    quantised_by_definition(start, True)[0].backward(rounded.grad.double())
    tolerance = 1e-6 if input_dtype == torch.float32 else 1e-2
    assert free.grad.dtype == input_dtype
    torch.testing.assert_close(free.grad.double(), start.grad, atol=tolerance, rtol=tolerance)


def test_backward_inside_autocast_is_no_less_exact():
    layer, x = BitLinear(45, 13), torch.randn(6, 45, requires_grad=True)
    gradients = []
    for inside in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = layer(x).float().square().sum()
            if inside:
                gradients.append(torch.autograd.grad(loss, x)[0])
        if not inside:
            gradients.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("input_norm", [True, False])
def test_other_precisions(dtype, input_norm):
    layer = BitLinear(45, 13, input_norm=input_norm)
    same = BitLinear(45, 13, input_norm=input_norm, dtype=dtype)
    same.load_state_dict(layer.state_dict())
    layer.load_state_dict(same.state_dict())  # both hold what the lower precision can
    x = torch.randn(6, 45).to(dtype).requires_grad_()
    y = same(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == same.weight.grad.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x.detach().float()), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, autocast):
    layer, x, weights = BitLinear(45, 13), torch.randn(6, 45), torch.randn(6, 13)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = gradients_of(layer, layer, x, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        x = x.clone().requires_grad_()
        y = checkpoint(layer, x, use_reentrant=reentrant)
        loss = (y * weights).sum()
    loss.backward()
    assert_all_equal((y, [x.grad, layer.weight.grad, layer.bias.grad]), expected)


@pytest.mark.filterwarnings("ignore")  # torch's own, while its compiler is imported
@pytest.mark.parametrize("autocast", [True, False])
def test_compiles_into_one_graph(autocast):
    torch.compiler.reset()
    layers, x, weights = [BitLinear(45, 13), BitLinear(45, 13, scheme="int2")], torch.randn(6, 45), torch.randn(6, 13)

    def call(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return sum(apply_together(x, *layers))

    expected = gradients_of(call, layers[0], x, weights)
    actual = gradients_of(torch.compile(call, fullgraph=True, backend="aot_eager"), layers[0], x, weights)
    for a, b in zip([actual[0], *actual[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_second_derivative_is_refused():
    layer, x = BitLinear(24, 13), torch.randn(5, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_accumulated_gradients_add_up():
    layer, x = BitLinear(24, 13), torch.randn(6, 24)
    layer(x).square().sum().backward()
    whole = layer.weight.grad.clone()
    layer.zero_grad()
    for half in x.split(3):
        layer(half).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, whole)


DISTRIBUTED = """
import copy, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from frankenlm.modeling.bitlinear import BitLinear
rank, store, plain = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "plain torch"
if plain:
    from frankenlm.modeling import fake_quantize
    fake_quantize.native_code_runs = lambda: False
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
layer, x = BitLinear(45, 13), torch.randn(2, 6, 45)
alone, shared = copy.deepcopy(layer), DistributedDataParallel(layer)
shared(x[rank]).square().mean().backward()
alone(x).square().mean().backward()
torch.testing.assert_close(layer.weight.grad, alone.weight.grad, atol=1e-7, rtol=1e-5)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_gradients(form, tmp_path):
    command = [sys.executable, "-c", DISTRIBUTED]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), form], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors


# --- packing (the packed layer's own tests are in test_packed_layers.py)


@pytest.mark.parametrize("scheme", ["binary", "ternary_absmean", "ternary_absmedian", "ternary_twn"])
@pytest.mark.parametrize("scale_axis", ["tensor", "row"])
@pytest.mark.parametrize("input_norm", [True, False])
def test_pack_computes_the_same(scheme, scale_axis, input_norm):
    layer = BitLinear(45, 13, scheme=scheme, scale_axis=scale_axis, input_norm=input_norm)
    x = torch.randn(2, 9, 45)
    packed = layer.pack()
    assert torch.equal(packed.dequantized_weight(), layer.quantized_weight())
    with torch.no_grad():
        torch.testing.assert_close(packed(x), layer(x), atol=2e-6, rtol=2e-6)
        codes, step, *_ = packed.prepare(x)
        torch.testing.assert_close(layer.prepare(x), codes * step[..., None], atol=0, rtol=3e-7)
    empty = layer.to("meta").empty_packed()
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in packed.state_dict().items()
    }


@pytest.mark.parametrize("scheme", ["binary", "ternary_absmean", "int2"])
@pytest.mark.parametrize("scale_axis", ["tensor", "row"])
@pytest.mark.parametrize("bias", [True, False])
def test_evaluation_sums_whole_numbers(scheme, scale_axis, bias):
    """In eval() without gradients the product is exact, and equal to the last bit to the packed layer's."""
    layer = BitLinear(301, 13, bias, scheme=scheme, scale_axis=scale_axis).eval()
    x = torch.randn(2, 9, 301)
    with torch.no_grad():
        y, (codes, step, *_) = layer(x), layer.prepare(x)
    weight_codes, scale = quantize_weight(layer.weight.detach(), scheme, scale_axis)
    expected = (codes.double() @ weight_codes.double().T).float() * (step[..., None] * scale.reshape(-1))
    assert torch.equal(y, expected + layer.bias if bias else expected)
    torch.testing.assert_close(y, layer(x).detach(), atol=2e-6, rtol=2e-6)
    if scheme != "int2":
        with torch.no_grad():
            assert torch.equal(layer.pack()(x), y)


@pytest.mark.parametrize("options", [{"scheme": "int2"}, {"scheme": "int2_pow"}, {"activation_bits": 4}])
@pytest.mark.parametrize("method", ["pack", "empty_packed", "check_packable"])
def test_what_cannot_be_packed_is_refused(options, method):
    with pytest.raises(ValueError, match="cannot be packed"):
        getattr(BitLinear(24, 13, **options), method)()


# --- layers that read one input


LAYERS = {
    "three of a kind": lambda: [BitLinear(21, 13), BitLinear(21, 5, bias=False), BitLinear(21, 13, scheme="binary")],
    "one": lambda: [BitLinear(21, 13)],
    "norm and no norm": lambda: [BitLinear(21, 13), BitLinear(21, 13, input_norm=False)],
    "other bits": lambda: [BitLinear(21, 13), BitLinear(21, 13, activation_bits=4)],
    "plain": lambda: [nn.Linear(21, 13), nn.Linear(21, 5)],
    "mixed": lambda: [BitLinear(21, 13), nn.Linear(21, 5)],
    "mixed, plain first": lambda: [nn.Linear(21, 5), BitLinear(21, 13), BitLinear(21, 13)],
    "packed": lambda: [BitLinear(21, 13).pack(), BitLinear(21, 5, bias=False).pack()],
}
SHARED = {"three of a kind", "one", "packed"}


@pytest.fixture
def preparations(monkeypatch):
    """Count how often inputs are prepared."""
    calls, original = [], BitLinear.prepare
    monkeypatch.setattr(BitLinear, "prepare", lambda self, x: calls.append(self) or original(self, x))
    return calls


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_together_equals_one_by_one(name, preparations):
    layers, x = LAYERS[name](), torch.randn(2, 7, 21, requires_grad=True)
    together = apply_together(x, *layers)
    quantised = sum(isinstance(layer, BitLinear) for layer in layers)
    assert len(preparations) == (min(quantised, 1) if name in SHARED else quantised)
    alone = [layer(x) for layer in layers]
    assert isinstance(together, tuple) and len(together) == len(layers)
    weights = [torch.randn_like(y) for y in alone]
    parameters = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
    gradients = [
        torch.autograd.grad(sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), parameters)
        for outputs in (together, alone)
    ]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_a_hooked_layer_is_called(hook):
    layers, seen = [BitLinear(21, 13), BitLinear(21, 5)], []
    getattr(layers[1], hook)(lambda *arguments: seen.append(arguments[0]))
    sum(y.sum() for y in apply_together(torch.randn(3, 21, requires_grad=True), *layers)).backward()
    assert seen == [layers[1]]


def test_a_replaced_forward_is_called():
    layers = [BitLinear(21, 13), BitLinear(21, 13)]
    layers[1].forward = lambda x: x.new_zeros(7)
    assert not apply_together(torch.randn(3, 21), *layers)[1].any()
