"""The one door from a model to the native operators `torch.ops.frankenlm.*`.

A checkpoint that travels with its code may arrive where the package is not installed: then the door stays shut, and the
layers compute in plain PyTorch.
"""

import torch

_path: str | None = None
_tried = False


@torch.compiler.assume_constant_result
def native_path() -> str | None:
    """Load the operators once; return their path ("reference" without a compiler), or None without our package.

    Raises:
        ValueError: FRANKENLM_TERNARY_PATH asks for a path that this machine cannot run.
    """
    global _path, _tried
    if not _tried:
        try:
            from frankenlm.kernels.ops import load, which_path
        except ImportError:
            _path = None
        else:
            load()
            _path = which_path()
        _tried = True
    return _path


def load_native_ops() -> bool:
    """Load the operators once; return whether `torch.ops.frankenlm.*` exist, as native code or as the reference."""
    return native_path() is not None


def native_code_runs() -> bool:
    """Load the operators once; return whether they are native code."""
    return native_path() not in (None, "reference")
