"""The one door from a model to the native operators `torch.ops.frankenlm.*`.

A checkpoint that travels with its code may arrive where the package is not installed: then the door stays shut, and the
layers compute in plain PyTorch. The packed layers' operators are asked for in packed_operators.py, training's rounding
in fake_quantize.py, and here those of a decoding step: one token at a time, torch composes attention and RMS
normalisation from kernels made for many.
Shapes: B batch, H heads, L queries, T keys, K head width.
"""

from collections.abc import Callable

import torch

from .packed_reference import int8_linear, quantize_activations, ternary_linear, ternary_linear_quantized

# What runs in place of the native operators where they cannot be built.
REFERENCE = {
    "quantize_activations": quantize_activations,
    "ternary_linear": ternary_linear,
    "ternary_linear_quantized": ternary_linear_quantized,
    "int8_linear": int8_linear,
}
_which_path: Callable[[], str] | None = None
_tried = False


@torch.compiler.assume_constant_result
def native_path() -> str | None:
    """Load the operators once; return their path ("reference" without a compiler), or None without our package.

    Raises:
        ValueError: FRANKENLM_TERNARY_PATH asks for a path that this machine cannot run.
    """
    global _which_path, _tried
    if not _tried:
        try:
            from frankenlm.kernels.ops import load, which_path
        except ImportError:
            _which_path = None
        else:
            load(REFERENCE)
            _which_path = which_path
        _tried = True
    return None if _which_path is None else _which_path()


def native_code_runs() -> bool:
    """Load the operators once; return whether they are native code. An exported program holds none of them."""
    return not torch.compiler.is_exporting() and native_path() not in (None, "reference")


def _is_native_step(x: torch.Tensor, *dtypes: torch.dtype) -> bool:
    return x.dtype in dtypes and x.device.type == "cpu" and not torch.is_grad_enabled() and native_code_runs()


def attends_natively(q, k, v, visible: torch.Tensor | None, dropout: float) -> bool:
    """Whether `attend_step` can take q (B, H, Lq, K), k and v (B, H, T, K) and a mask, None or bool (B or 1, 1, Lq, T).

    Under autocast it cannot: torch's attention casts its inputs, this one takes them as they are.
    """
    if q.shape[2] != 1 or dropout or not _is_native_step(q, torch.float32, torch.bfloat16):
        return False
    if not q.dtype == k.dtype == v.dtype or k.shape != v.shape or torch.is_autocast_enabled("cpu"):
        return False
    return visible is None or (visible.dtype == torch.bool and visible.shape[1] == visible.shape[2] == 1)


def attend_step(q, k, v, visible: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Return softmax(scale q k^T) v, (B, H, 1, K), of one query a head over T keys; zeros where none is visible."""
    return torch.ops.frankenlm.attend_step(q, k, v, visible, scale)


def rotates_natively(x: torch.Tensor) -> bool:
    """Whether `rotate_step` can take x, float32 (B, H, 1, K)."""
    return x.shape[2] == 1 and _is_native_step(x, torch.float32)


def rotate_step(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x (B, H, 1, K) turned by the angles of `rotary_tables`, each (B or 1, 1, 1, K)."""
    return torch.ops.frankenlm.rotate_step(x, cos, sin)


def normalizes_natively(x: torch.Tensor) -> bool:
    """Whether `rms_norm_step` can take x: few float32 tokens on a CPU, without gradients."""
    return _is_native_step(x, torch.float32) and x.numel() <= 65536


def rms_norm_step(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) over the last axis, as torch.nn.functional.rms_norm."""
    return torch.ops.frankenlm.rms_norm(x, weight, eps)
