"""The scans through flash-linear-attention: what its kernels are handed, held by recurrences in their place.

The kernels themselves run under `python -m pytest -m gpu tests/modeling/test_scan_fla.py`, where they are installed.
"""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from causal_cases import CONV, HYBRID, greedy
from frankenlm.modeling import scan_fla
from frankenlm.modeling.scan_delta import delta_scan_chunked
from frankenlm.modeling.scan_linear import linear_scan_chunked
from packed_rows import LENGTHS, PADS, PackedRows, assert_apart, distance, gradients

B, H, K, V, L = 2, 3, 6, 5, 37
SCANNING = ("titan_memory", "retnet", "mamba")
WITHOUT = importlib.util.find_spec("fla") is None


def by_sequences(recurrence):
    """Return a function with the arguments of fla's kernels, for a recurrence over (N, T, H, ...) and a state."""

    def kernel(q, k, v, g, scale, initial_state, output_final_state, beta=None, cu_seqlens=None):
        assert output_final_state and q.shape[:3] == k.shape[:3] == v.shape[:3] == g.shape
        given = {
            name: x for name, x in (("q", q * scale), ("k", k), ("v", v), ("g", g), ("beta", beta)) if x is not None
        }
        count = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
        state = v.new_zeros(count, q.shape[2], k.shape[3], v.shape[3]) if initial_state is None else initial_state
        assert state.shape == (count, q.shape[2], k.shape[3], v.shape[3])
        if cu_seqlens is None:
            return recurrence(given, state)
        assert len(q) == 1 and cu_seqlens[0] == 0 and cu_seqlens[-1] == q.shape[1] and (cu_seqlens.diff() > 0).all()
        parts = [
            recurrence({name: x[:, start:stop] for name, x in given.items()}, state[number : number + 1])
            for number, (start, stop) in enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True))
        ]
        return torch.cat([output for output, _ in parts], dim=1), torch.cat([state for _, state in parts])

    return kernel


def gated_linear_attention(given, state):
    """S_t = exp(g_t) S_{t-1} + k_t^T v_t, o_t = q_t S_t, a scalar g per head (GLA, arXiv:2312.06635, with one gate)."""
    outputs = []
    for t in range(given["q"].shape[1]):
        q, k, v, g = (given[name][:, t] for name in ("q", "k", "v", "g"))
        state = g.exp()[..., None, None] * state + k[..., :, None] * v[..., None, :]
        outputs.append((q[..., None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def gated_delta_rule(given, state):
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t^T v_t, o_t = q_t S_t (arXiv:2412.06464, eq. 10)."""
    outputs = []
    for t in range(given["q"].shape[1]):
        q, k, v, g, beta = (given[name][:, t] for name in ("q", "k", "v", "g", "beta"))
        state = g.exp()[..., None, None] * state
        error = beta[..., None] * (v - (k[..., None, :] @ state).squeeze(-2))
        state = state + k[..., :, None] * error[..., None, :]
        outputs.append((q[..., None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


@pytest.fixture
def recurrences(monkeypatch):
    """Recurrences, on any device, in the place of fla's kernels; returns which of them were called."""
    called = []

    def recorded(recurrence):
        kernel = by_sequences(recurrence)
        return lambda **given: called.append(recurrence.__name__) or kernel(**given)

    kernels = recorded(gated_linear_attention), recorded(gated_delta_rule)
    monkeypatch.setattr(scan_fla, "load_kernels", lambda: kernels)
    monkeypatch.setattr(scan_fla, "check_fit", lambda values: None)
    return called


def linear_inputs(groups=H, rows=B):
    q, k = torch.randn(2, B, L, groups, K, dtype=torch.float64).unbind(0)
    return q, k, torch.randn(B, L, H, V, dtype=torch.float64), -torch.rand(rows, L, H, dtype=torch.float64)


def delta_inputs():
    q, k = F.normalize(torch.randn(2, B, H, L, K, dtype=torch.float64), dim=-1).unbind(0)
    gates = F.logsigmoid(2 * torch.randn(B, H, L, dtype=torch.float64)), torch.rand(B, H, L, dtype=torch.float64)
    return q, k, torch.randn(B, H, L, V, dtype=torch.float64), *gates


SCANS = {
    "linear": (linear_scan_chunked, linear_inputs, (B, H, K, V)),
    "one group": (linear_scan_chunked, lambda: linear_inputs(1), (B, H, K, V)),
    "one decay for all rows": (linear_scan_chunked, lambda: linear_inputs(rows=1), (B, H, K, V)),
    "delta": (delta_scan_chunked, delta_inputs, (B, H, V, K)),
}
IDS = {
    "one document": None,
    "documents": torch.tensor([[0] * 9 + [1] * 28, [0] + [1] * 2 + [2] * 34]),
    "the same documents": torch.tensor([[0] * 9 + [1] * 5 + [2] * 23]),
    "begun before": torch.tensor([[1] * 9 + [2] * 28, [0] * 37]),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("with_state", [False, True])
def test_both_backends_are_one_scan(scan, ids, with_state, recurrences):
    function, inputs_of, shape = SCANS[scan]
    inputs = [x.requires_grad_() for x in inputs_of()]
    state = torch.randn(shape, dtype=torch.float64, requires_grad=True) if with_state else None
    wanted = [*inputs, state] if with_state else inputs
    results = []
    for backend in ("torch", "fla"):
        output, after = function(*inputs, 8, state, document_ids=IDS[ids], backend=backend)
        results.append((output, after, *torch.autograd.grad((output.square().sum() + after.sum()), wanted)))
    for expected, actual in zip(*results, strict=True):
        assert actual.shape == expected.shape and distance(actual, expected) <= 1e-10
    assert len(recurrences) == 1


def test_a_token_that_forgets_all_stays_finite(recurrences):
    q, k, v, log_alpha, eta = (x.float() for x in delta_inputs())
    log_alpha[..., 5] = -200.0
    log_alpha.requires_grad_()
    expected, actual = (delta_scan_chunked(q, k, v, log_alpha, eta, 8, backend=each)[0] for each in ("torch", "fla"))
    assert distance(actual, expected) <= 1e-5
    assert torch.autograd.grad(actual.sum(), log_alpha)[0].isfinite().all()


@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
@pytest.mark.parametrize("form", [None, "position_ids"])
def test_a_model_scans_with_what_it_is_told(form, is_decoder, recurrences, tiny_model):
    model = tiny_model(SCANNING, "rms_norm", is_decoder, dtype=torch.float64, **CONV)
    packed = PackedRows(LENGTHS, PADS)
    inputs = packed.inputs(form) if form else {"input_ids": packed.ids, "attention_mask": packed.mask}
    weights = torch.randn(*packed.ids.shape, 61, dtype=torch.float64)
    results = []
    for backend in ("torch", "fla"):
        model.set_scan_backend(backend)
        logits = packed.real(model(use_cache=False, **inputs).logits)
        results.append((logits, gradients(model, logits, weights)))
    (expected, wanted), (actual, found) = results
    assert distance(actual, expected) <= 1e-10
    assert all(distance(found[name], gradient) <= 1e-8 for name, gradient in wanted.items())
    assert sorted(set(recurrences)) == ["gated_delta_rule", "gated_linear_attention"]
    assert len(recurrences) == (3 if is_decoder else 6)
    assert_apart(model, "seq_idx", 1e-10, with_gradients=False)


def test_generation_goes_on_from_a_prefill(recurrences, tiny_model, tokens):
    model, ids = tiny_model(SCANNING, "rms_norm", True, dtype=torch.float64), tokens(2, 11)
    expected = greedy(model, ids, max_new_tokens=8)
    model.set_scan_backend("fla")
    assert torch.equal(greedy(model, ids, max_new_tokens=8), expected)
    assert len(recurrences) == 3  # the prompt; a token by itself is a step


# --- the switch


def test_a_checkpoint_does_not_keep_the_choice(recurrences, tiny_model, tmp_path):
    model = tiny_model(SCANNING, "rms_norm", True)
    model.set_scan_backend("fla")
    model.save_pretrained(tmp_path)
    assert "scan_backend" not in (tmp_path / "config.json").read_text()
    assert (tmp_path / "scan_fla.py").exists()
    assert type(model).from_pretrained(tmp_path).model.scan_backend == "torch"


def test_what_cannot_be_is_refused(tiny_model, tokens, monkeypatch):
    model = tiny_model(SCANNING, "rms_norm", True)
    with pytest.raises(ValueError, match=r"scan_backend='flaa' is not known. Did you mean 'fla'"):
        model.set_scan_backend("flaa")
    monkeypatch.setattr(scan_fla, "load_kernels", lambda: ())
    with pytest.raises(ValueError, match="does nothing: no layer of this FrankensteinForCausalLM is a retnet"):
        tiny_model("standard_attn", position_type="rope", is_decoder=True).set_scan_backend("fla")
    model.set_scan_backend("fla")
    with pytest.raises(ValueError, match=r"takes CUDA tensors, but got cpu ones: move the model, or call"):
        model(tokens(1, 7))
    with pytest.raises(ValueError, match="the model is in float64"):
        scan_fla.check_fit(_on_cuda(torch.float64))


def _on_cuda(dtype):
    return type("Tensor", (), {"device": torch.device("cuda"), "dtype": dtype})()


@pytest.mark.skipif(not WITHOUT, reason="flash-linear-attention is installed")
def test_a_missing_package_is_told_in_one_line(tiny_model):
    with pytest.raises(ImportError, match=r"scan_backend='fla' needs flash-linear-attention.*frankenlm\[cuda\]"):
        tiny_model(SCANNING, "rms_norm", True).set_scan_backend("fla")


# --- the kernels


@pytest.mark.gpu
@pytest.mark.skipif(WITHOUT or not torch.cuda.is_available(), reason="needs CUDA and flash-linear-attention")
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("with_state", [False, True])
def test_the_kernels_are_our_scans(scan, ids, with_state):
    """Heads as wide as a kernel's tile wants, and float32 in the precision that Triton multiplies it in."""
    function, _, _ = SCANS[scan]
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    if scan == "delta":
        q, k = (F.normalize(draw(B, H, L, 64), dim=-1) for _ in range(2))
        inputs = [q, k, draw(B, H, L, 64), F.logsigmoid(draw(B, H, L) + 3), draw(B, H, L).sigmoid()]
    else:
        groups, rows = (1 if scan == "one group" else H), (1 if scan == "one decay for all rows" else B)
        inputs = [draw(B, L, groups, 64), draw(B, L, groups, 64) / 8, draw(B, L, H, 64), -0.1 * draw(rows, L, H).abs()]
    inputs = [x.requires_grad_() for x in inputs]
    state = draw(B, H, 64, 64) if with_state else None
    document_ids, results = IDS[ids] if IDS[ids] is None else IDS[ids].cuda(), []
    for backend in ("torch", "fla"):
        output, after = function(*inputs, 16, state, document_ids=document_ids, backend=backend)
        results.append((output, after, *torch.autograd.grad(output.square().sum(), inputs)))
    for expected, actual in zip(*results, strict=True):
        assert distance(actual, expected) <= 2e-2


@pytest.mark.gpu
@pytest.mark.skipif(WITHOUT or not torch.cuda.is_available(), reason="needs CUDA and flash-linear-attention")
def test_a_model_in_half_precision_runs_on_the_kernels(tiny_model):
    model, packed = tiny_model(HYBRID, "rms_norm", True, dtype=torch.bfloat16).cuda(), PackedRows()
    inputs = {name: value.cuda() for name, value in packed.inputs("seq_idx").items()}
    with torch.no_grad():
        expected = model(use_cache=False, **inputs).logits
        model.set_scan_backend("fla")
        assert distance(model(use_cache=False, **inputs).logits, expected) <= 5e-2
