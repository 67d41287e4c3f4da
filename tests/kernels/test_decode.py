"""The operators of a decoding step against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from frankenlm.kernels import ops
from frankenlm.modeling import native_ops
from frankenlm.modeling.norms import RMSNorm
from frankenlm.modeling.positions import apply_rotary, rotary_tables

if not native_ops.native_code_runs():
    pytest.skip("no compiler here: these operators are native only", allow_module_level=True)

op = torch.ops.frankenlm
PATHS = ("scalar", "avx2", "avx512_vnni")  # one for each width of register
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = [(1, 1, 1, 1), (1, 32, 150, 64), (2, 3, 7, 5), (3, 4, 33, 20), (1, 2, 64, 16), (2, 5, 301, 130)]


@pytest.fixture(params=PATHS)
def path(request):
    before = ops.which_path()
    try:
        ops.use_path(request.param)
    except ValueError as missing:
        pytest.skip(str(missing))
    yield request.param
    ops.use_path(before)


def heads(batch, count, length, width, dtype):
    """Return a query and windows of two larger buffers, as the cache hands them out."""
    generator = torch.Generator().manual_seed(length)
    q = (2 * torch.randn(batch, 1, count, width, generator=generator)).to(dtype).transpose(1, 2)
    buffers = (torch.randn(batch, count, 2 * length + 3, width, generator=generator).to(dtype) for _ in range(2))
    k, v = (buffer.narrow(2, 1, length) for buffer in buffers)
    return q, k, v


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", ["none", "shared", "each"])
def test_attention_of_one_query(path, shape, dtype, masked):
    batch, _, length, width = shape
    q, k, v = heads(*shape, dtype)
    visible = None
    if masked != "none":
        visible = torch.rand(batch if masked == "each" else 1, 1, 1, length) > 0.4
        visible[..., -1] = True
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible, scale=width**-0.5)
    result = op.attend_step(q, k, v, visible, width**-0.5)
    assert result.dtype == dtype and result.shape == q.shape
    assert (result - expected).abs().max() <= TOLERANCE[dtype]


def test_what_is_masked_is_not_read_and_a_blind_query_gives_zeros(path):
    q, k, v = heads(2, 3, 9, 8, torch.float32)
    visible = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    visible[0, ..., :4] = False
    visible[1] = False
    clean = op.attend_step(q, k, v, visible, 1.0)
    k[0, :, :4], v[0, :, :4] = float("nan"), float("inf")
    assert torch.equal(op.attend_step(q, k, v, visible, 1.0), clean)
    assert (clean[1] == 0).all() and (clean[0] != 0).all()


@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(path, part, value):
    """A head that meets NaN or infinity gives NaN or infinity; the other heads are left alone."""
    q, k, v = heads(1, 2, 9, 8, torch.float32)
    clean = op.attend_step(q, k, v, None, 1.0)
    {"query": q, "key": k, "value": v}[part][0, 1, 0] = value
    spoiled = op.attend_step(q, k, v, None, 1.0)
    assert not spoiled[0, 1].isfinite().any() and torch.equal(spoiled[0, 0], clean[0, 0])


def test_large_scores_do_not_overflow(path):
    q, k, v = heads(1, 2, 20, 16, torch.float32)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1e4)
    assert torch.allclose(op.attend_step(q, k, v, None, 1e4).double(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 32, 1, 64), (3, 5, 1, 18)])
def test_rotation(path, shape):
    x = torch.randn(shape[0], 1, shape[1], shape[3]).transpose(1, 2)
    tables = rotary_tables(torch.randint(0, 5000, (shape[0], 1)), shape[3], 1e4, torch.float32)
    assert torch.allclose(op.rotate_step(x, *tables), apply_rotary(x.requires_grad_(), tables).detach(), atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 1, 2048), (0, 5), (4, 100)])
def test_rms_norm(path, shape):
    x, weight = 3 * torch.randn(shape), torch.randn(shape[-1])
    expected = F.rms_norm(x.double(), weight.shape, weight.double(), 1e-6)
    assert torch.allclose(op.rms_norm(x, weight, 1e-6).double(), expected, rtol=1e-5, atol=1e-6)


Q, K, V = heads(2, 3, 5, 4, torch.float32)
MISTAKES = {
    "two queries": ("attend_step", (torch.cat([Q, Q], 2), K, V, None, 1.0), "query must be"),
    "other heads": ("attend_step", (Q[:, :2], K, V, None, 1.0), "differ in batch, heads"),
    "other dtype": ("attend_step", (Q, K.bfloat16(), V, None, 1.0), "differ in batch, heads"),
    "half": ("attend_step", (Q.half(), K.half(), V.half(), None, 1.0), "float32 or bfloat16"),
    "float mask": ("attend_step", (Q, K, V, torch.zeros(2, 1, 1, 5), 1.0), "visible must be bool"),
    "short mask": ("attend_step", (Q, K, V, torch.ones(2, 1, 1, 4, dtype=torch.bool), 1.0), "visible must be bool"),
    "odd width": ("rotate_step", (Q[..., :3], torch.ones(1, 1, 1, 3), torch.ones(1, 1, 1, 3)), "K even"),
    "tables": ("rotate_step", (Q, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 4)), "cos and sin must be"),
    "gain": ("rms_norm", (Q, torch.ones(3), 1e-6), "weight float32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    name, arguments, message = MISTAKES[mistake]
    with pytest.raises(RuntimeError, match=message):
        getattr(op, name)(*arguments)


OPERATIONS = {
    "attend_step": (Q, K, V, torch.ones(1, 1, 1, 5, dtype=torch.bool), 0.5),
    "rotate_step": (Q, torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4)),
    "rms_norm": (Q, torch.ones(4), 1e-6),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name):
    torch.library.opcheck(getattr(op, name).default, OPERATIONS[name])


def test_layers_take_them_only_without_gradients():
    norm, x = RMSNorm(8), torch.randn(1, 1, 8)
    assert norm(x).requires_grad and not native_ops.normalizes_natively(x)
    with torch.no_grad():
        assert native_ops.normalizes_natively(x) and not native_ops.normalizes_natively(x.double())
        assert native_ops.attends_natively(Q, K, V, None, 0.0)
        assert not native_ops.attends_natively(Q, K, V, torch.ones(2, 3, 1, 5, dtype=torch.bool), 0.0)
        assert not native_ops.attends_natively(Q, K, V, None, 0.1)
        assert not native_ops.attends_natively(Q.half(), K.half(), V.half(), None, 0.0)
        assert not native_ops.attends_natively(Q, K, V.bfloat16(), None, 0.0)
        assert not native_ops.attends_natively(Q, K, V[..., :2], None, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not native_ops.attends_natively(Q, K, V, None, 0.0)
        assert native_ops.rotates_natively(Q) and not native_ops.rotates_natively(K)
