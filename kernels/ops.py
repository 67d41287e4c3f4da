"""The operators `torch.ops.frankenlm.*`: the native library, or plain PyTorch where it cannot be built.

`load()` makes them exist; models call them by name. They mean what the functions of the same names in
`modeling/packed_reference.py` and `modeling/fake_quantize.py` say; kernels/README.md tells how the native code does it.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Callable

import torch

from frankenlm.modeling import packed_reference as reference

from .build import BuildError, NoCompilerError, build

logger = logging.getLogger(__name__)
PATH_VARIABLE = "FRANKENLM_TERNARY_PATH"
REFERENCE = "reference"

# Schemas of the operators that have a reference; binding.cpp defines the same when the library is there.
SCHEMAS = {
    "quantize_activations": "(Tensor x, float norm_eps=-1) -> (Tensor codes, Tensor scale, Tensor sum)",
    "ternary_linear": (
        "(Tensor x, Tensor packed, Tensor scale, int out_features, Tensor? bias=None, float norm_eps=-1) -> Tensor"
    ),
    "ternary_linear_quantized": (
        "(Tensor codes, Tensor x_scale, Tensor x_sum, Tensor packed, Tensor scale, int out_features, "
        "Tensor? bias=None, ScalarType? dtype=None) -> Tensor"
    ),
    "int8_linear": "(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor",
}


def _fake_quantize_activations(x, norm_eps=-1.0):
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
        x.new_empty(x.shape[:-1], dtype=torch.int32),
    )


def _fake_ternary_linear(x, packed, scale, out_features, bias=None, norm_eps=-1.0):
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_ternary_linear_quantized(codes, x_scale, x_sum, packed, scale, out_features, bias=None, dtype=None):
    return codes.new_empty((*codes.shape[:-1], out_features), dtype=dtype or torch.float32)


def _fake_int8_linear(x, weight, scale, bias=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_rounded(x, bits=8, norm_eps=-1.0, dtype=None):
    return torch.empty_like(x, dtype=dtype or x.dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_rounded_backward(gradient, x, factor):
    return torch.empty_like(x)


# What torch.compile sees of each operator: shapes and dtypes only.
FAKES: dict[str, Callable] = {
    "quantize_activations": _fake_quantize_activations,
    "ternary_linear": _fake_ternary_linear,
    "ternary_linear_quantized": _fake_ternary_linear_quantized,
    "int8_linear": _fake_int8_linear,
    "fake_quantize_activations": _fake_rounded,
    "fake_quantize_activations_backward": _fake_rounded_backward,
}

_lock = threading.Lock()
_path: str | None = None
_library: ctypes.CDLL | None = None
_definitions: torch.library.Library | None = None  # what it registers lasts as long as it does


def load() -> None:
    """Make `torch.ops.frankenlm.*` exist: find or build the native library, else register the reference.

    Repeated calls do nothing. FRANKENLM_TERNARY_PATH forces a path: reference, scalar, sse41, avx2, avx_vnni or
    avx512_vnni. Without a compiler one warning is logged and the reference runs.

    Raises:
        ValueError: FRANKENLM_TERNARY_PATH names no path, or one that this processor or machine cannot run.
    """
    global _path
    with _lock:
        if _path is None:
            _path = _load_reference() if _wanted() == REFERENCE else _load_native()


def which_path() -> str:
    """Return the code path in use, loading the operators if need be."""
    load()
    return _path


def _wanted() -> str:
    return os.environ.get(PATH_VARIABLE, "")


def _load_native() -> str:
    global _library
    try:
        _library = ctypes.CDLL(str(build()))
    except (NoCompilerError, BuildError) as problem:
        if _wanted():
            raise ValueError(f"{PATH_VARIABLE}={_wanted()} cannot be had here: {problem}.") from None
        logger.warning("The native operators cannot be built (%s); plain PyTorch runs instead, slower.", problem)
        return _load_reference()
    path = _ask_path(None)
    torch.ops.load_library(_library._name)
    _register_fakes(FAKES)
    return path


def _ask_path(name: str | None) -> str:
    """Return the path that runs, after switching to `name` if one is given."""
    ask = _library.frankenlm_path
    ask.argtypes, ask.restype = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long), ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    answer = ask(None if name is None else name.encode(), error, len(error))
    if answer is None:
        raise ValueError(error.value.decode())
    return answer.decode()


def use_path(name: str) -> None:
    """Switch the native operators to another code path, for tests and benchmarks; no operator may be running.

    Raises:
        ValueError: there is no path of this name, this processor lacks it, or the reference was loaded.
    """
    global _path
    load()
    if _library is None:
        raise ValueError(f"code path {name}: only the reference is loaded")
    with _lock:
        _path = _ask_path(name)


def _load_reference() -> str:
    global _definitions
    _definitions = torch.library.Library("frankenlm", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        _definitions.define(name + schema)
        _definitions.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    _register_fakes(SCHEMAS)
    return REFERENCE


def _register_fakes(names) -> None:
    for name in names:
        torch.library.register_fake(f"frankenlm::{name}", FAKES[name])
