"""The operators: every code path against a float64 oracle and, to the last bit, against plain C++."""

import itertools
import os
import random

import pytest
import torch

from frankenlm.kernels import ops
from frankenlm.modeling import packed_reference as reference
from frankenlm.modeling.column_groups import GROUP_SIZES, count_groups
from frankenlm.modeling.group_scales import GROUP_SCALE_DTYPES, pack_group_scales
from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.modeling.ternary import pack_ternary

if not native_code_runs():
    pytest.skip("no compiler here: only the reference runs", allow_module_level=True)

# `make test-kernels` forces one path after the other; otherwise all that the processor has are walked through.
FORCED = os.environ.get(ops.PATH_VARIABLE)
PATHS = (FORCED,) if FORCED else ops.NATIVE_PATHS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129, 255, 256, 257, 400)
TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31)


@pytest.fixture(params=PATHS)
def path(request):
    before = ops.which_path()
    try:
        ops.use_path(request.param)
    except ValueError as missing:
        pytest.skip(str(missing))
    yield request.param
    ops.use_path(before)


def problem(seed: int) -> dict:
    """Draw a shape, a number format and values; every other problem has a bias, some have special values."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tokens, inputs, outputs = draw.choice(TOKENS), draw.choice(SIZES), draw.choice(SIZES)
    codes = torch.randint(-1, 2, (outputs, inputs), generator=generator, dtype=torch.int8)
    group_size = draw.choice(GROUP_SIZES)
    of_groups = torch.randn(outputs, count_groups(inputs, group_size), generator=generator) * 10 ** draw.uniform(-7, 1)
    x = torch.randn(tokens, inputs, generator=generator) * 10 ** draw.uniform(-4, 3)
    if seed % 7 == 3 and tokens:
        x[draw.randrange(tokens)] = draw.choice([0.0, 1.0, -3.5, 1e-30, 65000.0])
    if seed % 11 == 5 and tokens:
        x[draw.randrange(tokens), draw.randrange(inputs)] = draw.choice([float("inf"), float("-inf"), float("nan")])
    return {
        "x": x.to(draw.choice(DTYPES)),
        "codes": codes,
        "packed": pack_ternary(codes),
        "scale": torch.rand(outputs, generator=generator) + 0.1,
        "group_size": group_size,
        "group_scale": pack_group_scales(of_groups, draw.choice(GROUP_SCALE_DTYPES)),
        "bias": torch.randn(outputs, generator=generator) if seed % 2 else None,
        "int8": torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8),
        "norm_eps": draw.choice([-1.0, 1e-6, 0.1]),
    }


def run(p: dict) -> dict[str, torch.Tensor]:
    """Return what every operator makes of a problem."""
    op = torch.ops.frankenlm
    outputs = p["codes"].shape[0]
    codes, scale, total = op.quantize_activations(p["x"], p["norm_eps"])
    return {
        "codes": codes,
        "step": scale,
        "sum": total,
        "linear": op.ternary_linear(p["x"], p["packed"], p["scale"], outputs, p["bias"], p["norm_eps"]),
        "quantized": op.ternary_linear_quantized(codes, scale, total, p["packed"], p["scale"], outputs, p["bias"]),
        "quantized half": op.ternary_linear_quantized(
            codes, scale, total, p["packed"], p["scale"], outputs, p["bias"], torch.bfloat16
        ),
        "groups": op.ternary_linear(
            p["x"], p["packed"], p["group_scale"], outputs, p["bias"], p["norm_eps"], p["group_size"]
        ),
        "groups quantized": op.ternary_linear_quantized(
            codes, scale, total, p["packed"], p["group_scale"], outputs, p["bias"], group_size=p["group_size"]
        ),
        "int8": op.int8_linear(p["x"], p["int8"], p["scale"], p["bias"]),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))


def test_every_path_equals_plain_cpp_to_the_last_bit():
    """Over 2,000 random problems; each operator, each number format."""
    before, shapes = ops.which_path(), set()
    available = []
    for name in PATHS:
        try:
            ops.use_path(name)
            available.append(name)
        except ValueError:
            continue
    try:
        for seed in range(2200):
            p = problem(seed)
            shapes.add((*p["x"].shape, p["codes"].shape[0], p["x"].dtype, p["bias"] is None))
            ops.use_path("scalar")
            expected = run(p)
            for name in available:
                ops.use_path(name)
                for what, value in run(p).items():
                    assert same(value, expected[what]), (name, what, seed, tuple(p["x"].shape))
    finally:
        ops.use_path(before)
    assert len(shapes) > 1900


@pytest.mark.parametrize("seed", range(40))
def test_against_float64(path, seed):
    """An oracle of its own: dense weights, every sum in float64, codes that may be off where rounding is a tie."""
    p = problem(seed)
    x = p["x"].double()
    finite = x.isfinite().all(-1)
    if p["norm_eps"] > 0:
        x = x / (x.square().mean(-1, keepdim=True) + p["norm_eps"]).sqrt()
    result = run(p)
    step = x.abs().amax(-1).clamp_min(1e-5) / 127 if x.numel() else torch.zeros(len(x), dtype=torch.float64)
    assert torch.allclose(result["step"][finite].double(), step[finite], rtol=1e-6)
    error = (result["codes"][finite] * step[finite, None] - x[finite]).abs()
    assert (error <= 0.5001 * step[finite, None]).all()
    assert result["step"][~finite].isnan().all()
    assert torch.equal(result["sum"], result["codes"].sum(-1, dtype=torch.int32))
    rounded = result["codes"].double() * result["step"][:, None].double()
    bias = 0 if p["bias"] is None else p["bias"].double()
    dense = rounded @ (p["codes"].double() * p["scale"][:, None].double()).t() + bias
    size = dense[finite].abs().amax().clamp_min(1e-30) if finite.any() else 1
    assert ((result["quantized"].double() - dense)[finite].abs() <= 1e-6 * size).all()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[p["x"].dtype]
    within_range = dense[finite].abs() < 6e4
    assert ((result["linear"].double() - dense)[finite][within_range].abs() <= tolerance * size).all()
    assert result["linear"][~finite].isnan().all() and result["quantized"][~finite].isnan().all()


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_reference(path, seed):
    p = problem(seed)
    result, outputs = run(p), p["codes"].shape[0]
    codes, scale, total = reference.quantize_activations(p["x"], p["norm_eps"])
    expected = {
        "codes": codes,
        "step": scale,
        "sum": total,
        "linear": reference.ternary_linear(p["x"], p["packed"], p["scale"], outputs, p["bias"], p["norm_eps"]),
        "quantized": reference.ternary_linear_quantized(
            codes, scale, total, p["packed"], p["scale"], outputs, p["bias"]
        ),
        "groups": reference.ternary_linear(
            p["x"], p["packed"], p["group_scale"], outputs, p["bias"], p["norm_eps"], p["group_size"]
        ),
        "groups quantized": reference.ternary_linear_quantized(
            codes, scale, total, p["packed"], p["group_scale"], outputs, p["bias"], group_size=p["group_size"]
        ),
        "int8": reference.int8_linear(p["x"], p["int8"], p["scale"], p["bias"]),
    }
    for what, value in expected.items():
        assert same(result[what], value), what


@pytest.mark.parametrize("inputs", [16, 400, 4096, 8193])
@pytest.mark.parametrize("code", [-1, 1])
def test_the_largest_sums_are_exact(path, inputs, code):
    """All weights alike, all activations at the end of the range, -128 included: nothing may overflow or saturate."""
    packed = pack_ternary(torch.full((17, inputs), code, dtype=torch.int8))
    for value in (-128, 127):
        codes = torch.full((3, inputs), value, dtype=torch.int8)
        one, total = torch.ones(3), codes.sum(-1, dtype=torch.int32)
        y = torch.ops.frankenlm.ternary_linear_quantized(codes, one, total, packed, torch.ones(17), 17)
        assert (y == value * code * inputs).all()
        weight = torch.full((5, inputs), -128, dtype=torch.int8)
        x = torch.full((2, inputs), 1.0)
        assert torch.allclose(
            torch.ops.frankenlm.int8_linear(x, weight, torch.ones(5)), torch.full((2, 5), -128.0 * inputs)
        )


def test_inputs_that_are_not_contiguous_or_aligned(path):
    p = problem(2)
    codes = torch.randint(-1, 2, (70, 50), dtype=torch.int8)
    packed, scale = pack_ternary(codes), torch.rand(70)
    wide = torch.randn(6, 100)
    x = wide[:, 1::2]
    expected = torch.ops.frankenlm.ternary_linear(x.contiguous(), packed, scale, 70)
    assert same(torch.ops.frankenlm.ternary_linear(x, packed, scale, 70), expected)
    odd = torch.empty(packed.numel() + 3, dtype=torch.uint8)[3:].view_as(packed).copy_(packed)
    odd_scale = torch.empty(71)[1:].copy_(scale)
    assert odd.data_ptr() % 16 and same(torch.ops.frankenlm.ternary_linear(x, odd, odd_scale, 70), expected)
    strided = torch.stack([packed, packed], -1)[..., 0]
    assert same(torch.ops.frankenlm.ternary_linear(x, strided, scale.expand(70), 70), expected)
    assert p["x"].dim() == 2


def test_leading_dimensions_and_empty_batches(path):
    packed, scale = pack_ternary(torch.ones(5, 7, dtype=torch.int8)), torch.ones(5)
    op = torch.ops.frankenlm.ternary_linear
    assert op(torch.randn(7), packed, scale, 5).shape == (5,)
    assert op(torch.randn(2, 3, 4, 7), packed, scale, 5).shape == (2, 3, 4, 5)
    assert op(torch.randn(2, 0, 7), packed, scale, 5).shape == (2, 0, 5)
    assert torch.ops.frankenlm.int8_linear(torch.randn(0, 7), torch.ones(5, 7, dtype=torch.int8), scale).shape == (0, 5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 2050, 1031), (9, 700, 401), (70, 300, 200)])
def test_threads_change_nothing(path, threads, tokens, inputs, outputs):
    packed = pack_ternary(torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8))
    x, scale = torch.randn(tokens, inputs), torch.rand(outputs)
    of_groups = pack_group_scales(torch.rand(outputs, count_groups(inputs, 128)), torch.float16)
    weight = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = torch.ops.frankenlm.ternary_linear(x, packed, scale, outputs)
        g = torch.ops.frankenlm.ternary_linear(x.bfloat16(), packed, of_groups, outputs, group_size=128)
        z = torch.ops.frankenlm.int8_linear(x, weight, scale)
    finally:
        torch.set_num_threads(before)
    assert same(y, reference.ternary_linear(x, packed, scale, outputs))
    assert same(g, reference.ternary_linear(x.bfloat16(), packed, of_groups, outputs, group_size=128))
    assert same(z, reference.int8_linear(x, weight, scale))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
def test_the_largest_sums_of_groups_are_exact(path, group_size, tokens):
    """Sums of 16 bits begin with half a correction each: every activation at the end of the range, -128 included."""
    inputs = 3 * group_size + 17
    for code, value in itertools.product((-1, 1), (-128, 127)):
        packed = pack_ternary(torch.full((17, inputs), code, dtype=torch.int8))
        codes = torch.full((tokens, inputs), value, dtype=torch.int8)
        scale = pack_group_scales(torch.ones(17, 4), torch.float16)
        one, total = torch.ones(tokens), codes.sum(-1, dtype=torch.int32)
        y = torch.ops.frankenlm.ternary_linear_quantized(codes, one, total, packed, scale, 17, group_size=group_size)
        assert (y == value * code * inputs).all()


@pytest.mark.parametrize("dtype", GROUP_SCALE_DTYPES)
def test_special_scales_of_groups(path, dtype):
    """NaN, infinity, subnormal numbers and both zeros: as in the reference, and no other row takes any harm."""
    specials = torch.tensor([float("nan"), float("inf"), float("-inf"), 6e-8, -1e-7, 1e-39, 0.0, -0.0, 65504.0])
    codes = torch.randint(-1, 2, (40, 200), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed, scale = pack_ternary(codes), pack_group_scales(torch.rand(40, 4), dtype)
    scale[0, 2, : len(specials)] = specials.to(dtype)
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    for tokens in (1, 2, 3):
        arguments = (x[:tokens], packed, scale, 40, None, -1.0, 64)
        y = torch.ops.frankenlm.ternary_linear(*arguments)
        assert y[:, 0].isnan().all() and y[:, 3:].isfinite().all()
        assert same(y, reference.ternary_linear(*arguments))


X, PACKED, SCALE = torch.randn(2, 20), pack_ternary(torch.ones(18, 20, dtype=torch.int8)), torch.ones(18)
CODES, STEP, SUM = torch.ones(2, 20, dtype=torch.int8), torch.ones(2), torch.full((2,), 20, dtype=torch.int32)
WEIGHT = torch.ones(18, 20, dtype=torch.int8)
GROUPS = pack_group_scales(torch.ones(18, 1), torch.bfloat16)
MISTAKES = {
    "double": ("ternary_linear", (X.double(), PACKED, SCALE, 18), "float32, bfloat16 or float16"),
    "no dimension": ("ternary_linear", (torch.tensor(1.0), PACKED, SCALE, 18), "at least one dimension"),
    "truncated": ("ternary_linear", (X, PACKED[:1], SCALE, 18), r"shape \(1, 2, 64\).*need \(2, 2, 64\)"),
    "other inputs": ("ternary_linear", (torch.randn(2, 33), PACKED, SCALE, 18), r"need \(2, 3, 64\)"),
    "flat": ("ternary_linear", (X, PACKED.flatten(), SCALE, 18), "as pack_ternary makes it"),
    "signed": ("ternary_linear", (X, PACKED.to(torch.int8), SCALE, 18), "uint8"),
    "short scale": ("ternary_linear", (X, PACKED, SCALE[:1], 18), r"scale must be float32 of shape \(18,\)"),
    "half scale": ("ternary_linear", (X, PACKED, SCALE.half(), 18), "scale must be float32"),
    "long bias": ("ternary_linear", (X, PACKED, SCALE, 18, torch.ones(19)), "bias must be float32"),
    "negative": ("ternary_linear", (X, PACKED, SCALE, -1), "-1 outputs"),
    "group of 16": ("ternary_linear", (X, PACKED, GROUPS, 18, None, -1.0, 16), "group_size is 16; it must be 32, 64"),
    "negative group": ("ternary_linear", (X, PACKED, GROUPS, 18, None, -1.0, -32), "group_size is -32; it must be"),
    "scales of rows": ("ternary_linear", (X, PACKED, SCALE, 18, None, -1.0, 32), r"shape \(18\); groups of 32 of 20"),
    "scales of groups": ("ternary_linear", (X, PACKED, GROUPS, 18), "scale must be float32"),
    "float32 groups": ("ternary_linear", (X, PACKED, GROUPS.float(), 18, None, -1.0, 32), "need float16 or bfloat16"),
    "too few groups": (
        "ternary_linear_quantized",
        (torch.ones(2, 33, dtype=torch.int8), STEP, SUM, pack_ternary(torch.ones(18, 33, dtype=torch.int8)))
        + (GROUPS, 18, None, None, 32),
        r"shape \(2, 1, 16\).*\(2, 2, 16\), as pack_group_scales makes it",
    ),
    "float codes": ("ternary_linear_quantized", (X, STEP, SUM, PACKED, SCALE, 18), "codes must be int8"),
    "steps": ("ternary_linear_quantized", (CODES, STEP[:1], SUM, PACKED, SCALE, 18), "x_scale must be"),
    "sums": ("ternary_linear_quantized", (CODES, STEP, SUM.float(), PACKED, SCALE, 18), "x_sum must be int32"),
    "out": ("ternary_linear_quantized", (CODES, STEP, SUM, PACKED, SCALE, 18, None, torch.int8), "float32"),
    "wide": ("int8_linear", (torch.randn(2, 21), WEIGHT, SCALE), "21 inputs, the weight has 20"),
    "float weight": ("int8_linear", (X, WEIGHT.float(), SCALE), "weight must be int8"),
    "int x": ("quantize_activations", (WEIGHT,), "float32, bfloat16 or float16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    name, arguments, message = MISTAKES[mistake]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.frankenlm, name)(*arguments)


def test_too_many_inputs_are_refused():
    with pytest.raises(RuntimeError, match="at most 65536"):
        torch.ops.frankenlm.int8_linear(torch.ones(1, 65537), torch.ones(1, 65537, dtype=torch.int8), torch.ones(1))
    with pytest.raises(RuntimeError, match="at most 500000"):
        packed = torch.zeros(1, 31251, 64, dtype=torch.uint8)
        torch.ops.frankenlm.ternary_linear(torch.ones(1, 500001), packed, torch.ones(1), 1)


OPERATIONS = {
    "quantize_activations": (X, 1e-6),
    "ternary_linear": (X, PACKED, SCALE, 18, torch.ones(18)),
    "ternary_linear_quantized": (CODES, STEP, SUM, PACKED, GROUPS, 18, None, torch.bfloat16, 32),
    "int8_linear": (X, WEIGHT, SCALE),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.frankenlm, name).default, OPERATIONS[name])


@pytest.mark.parametrize("name", OPERATIONS)
def test_schemas_are_those_of_the_reference(name):
    schema = str(getattr(torch.ops.frankenlm, name).default._schema).replace("-1.", "-1")
    assert schema == f"frankenlm::{name}{ops.SCHEMAS[name]}"


@pytest.mark.filterwarnings("ignore")
def test_compiles_into_one_graph():
    def layer(x):
        codes, step, total = torch.ops.frankenlm.quantize_activations(x, 1e-6)
        y = torch.ops.frankenlm.ternary_linear_quantized(codes, step, total, PACKED, SCALE, 18)
        return torch.ops.frankenlm.int8_linear(y.relu(), torch.ones(3, 18, dtype=torch.int8), torch.ones(3))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (2, 5):
        x = torch.randn(tokens, 20)
        assert same(compiled(x), layer(x))


def test_forced_paths_that_do_not_exist():
    with pytest.raises(ValueError, match="avx1024: there is none of this name; there are reference, "):
        ops.use_path("avx1024")


def test_tokens_do_not_depend_on_each_other(path):
    packed, scale = pack_ternary(torch.randint(-1, 2, (40, 90), dtype=torch.int8)), torch.rand(40)
    x = torch.randn(13, 90)
    together = torch.ops.frankenlm.ternary_linear(x, packed, scale, 40)
    alone = torch.cat([torch.ops.frankenlm.ternary_linear(row[None], packed, scale, 40) for row in x])
    assert same(together, alone)
    x[4, 17] = float("nan")
    spoiled = torch.ops.frankenlm.ternary_linear(x, packed, scale, 40)
    assert spoiled[4].isnan().all()
    others = list(itertools.chain(range(4), range(5, 13)))
    assert same(spoiled[others], together[others])
