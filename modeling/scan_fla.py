"""The two scans through the kernels of flash-linear-attention (fla), where a model asks for them: CUDA tensors only.

Our own chunked forms are what these must equal; fla's kernels multiply float32 in the reduced precision that Triton
chooses there. A state, pads and documents mean the same in both.
    linear scan: fla's simple gated linear attention with g = log_decay and scale 1, shared q and k once for each head.
    delta scan: fla's gated delta rule with beta = eta / alpha, alpha v for v, g = log_alpha and scale 1.
fla tells sequences of unequal length apart in one row only: packed rows are laid end to end, document by document.
Shapes: those of scan_linear.py and scan_delta.py; N documents of all rows.
"""

from collections.abc import Callable

import torch

from .checks import check_choice

SCAN_BACKENDS = ("torch", "fla")
# A token that forgets more than this forgets all: 1 / alpha must stay finite, and e^-30 is beneath float32's rounding.
LEAST_LOG_ALPHA = -30.0


def check_scan_backend(name: str) -> None:
    """Check that scans can run through a backend.

    Raises:
        ValueError: no such backend.
        ImportError: "fla" is asked for and flash-linear-attention cannot be imported.
    """
    check_choice("scan_backend", name, SCAN_BACKENDS)
    if name == "fla":
        load_kernels()


def load_kernels() -> tuple[Callable, Callable]:
    """Return fla's chunk_simple_gla and chunk_gated_delta_rule.

    Raises:
        ImportError: flash-linear-attention, or what it needs, is missing.
    """
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        raise ImportError(
            f"scan_backend='fla' needs flash-linear-attention, which cannot be imported ({error}): "
            "pip install 'frankenlm[cuda]', or keep scan_backend='torch'."
        ) from error
    return chunk_simple_gla, chunk_gated_delta_rule


def check_fit(values: torch.Tensor) -> None:
    """Raise ValueError when fla's kernels cannot take a scan's tensors."""
    other = "or call model.set_scan_backend('torch')."
    if values.device.type != "cuda":
        raise ValueError(
            f"scan_backend='fla' takes CUDA tensors, but got {values.device} ones: move the model, {other}"
        )
    if values.dtype == torch.float64:
        raise ValueError(f"scan_backend='fla' computes in float32, but the model is in float64: convert it, {other}")


def linear_scan_fla(q, k, v, log_decay, state=None, document_ids=None):
    """`linear_scan_chunked` through fla. Returns o (B, L, H, V) and the final state (B, H, K, V)."""
    check_fit(v)
    repeats = v.shape[2] // q.shape[2]
    q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    inputs = {"q": q, "k": k, "v": v, "g": log_decay.expand(v.shape[:3])}
    return _scan_rows(load_kernels()[0], inputs, state, document_ids)


def delta_scan_fla(q, k, v, log_alpha, eta, state=None, document_ids=None):
    """`delta_scan_chunked` through fla. Returns o (B, H, L, V) and the final state (B, H, V, K)."""
    check_fit(v)
    log_alpha = log_alpha.clamp_min(LEAST_LOG_ALPHA)
    alpha = log_alpha.exp()
    given = {"q": q, "k": k, "v": alpha[..., None] * v, "g": log_alpha, "beta": eta / alpha}
    inputs = {name: x.transpose(1, 2) for name, x in given.items()}  # time before heads
    state = None if state is None else state.transpose(-1, -2)
    output, state = _scan_rows(load_kernels()[1], inputs, state, document_ids)
    return output.transpose(1, 2), state.transpose(-1, -2)


def _scan_rows(kernel: Callable, inputs: dict[str, torch.Tensor], state, document_ids):
    """Run a kernel over inputs (B, L, H, ...) from a state (B, H, K, V), which is that of each row's document 0.

    Returns o (B, L, H, V) and the state (B, H, K, V) of each row's last document.
    """
    options = {"scale": 1.0, "output_final_state": True}
    if document_ids is None:
        return kernel(**inputs, initial_state=state, **options)
    batch, length = inputs["v"].shape[:2]
    ids = document_ids.expand(batch, length)
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids.diff(dim=1) != 0
    firsts = begins.flatten().nonzero().flatten()  # (N,), the place of each document's first token
    ends = torch.cat([firsts, firsts.new_tensor([batch * length])])
    initial = None
    if state is not None:
        goes_on = (ids.flatten()[firsts] == 0)[:, None, None, None]
        initial = torch.where(goes_on, state[firsts // length], 0.0)  # (N, H, K, V)
    laid_out = {name: x.reshape(1, batch * length, *x.shape[2:]) for name, x in inputs.items()}
    output, states = kernel(**laid_out, initial_state=initial, cu_seqlens=ends, **options)
    lasts = begins.sum(1).cumsum(0) - 1  # (B,), each row's last document
    return output.unflatten(1, (batch, length)).squeeze(0), states[lasts]
