"""The operators `torch.ops.frankenlm.*`: the native library, or plain PyTorch where it cannot be built.

`load()` makes them exist; models call them by name, through `modeling/native_ops.py`. They mean what the functions of
the same names in `modeling/packed_reference.py` and `modeling/fake_quantize.py` say; kernels/README.md tells how the
native code does it.
"""

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from .build import BuildError, NoCompilerError, build
from .fakes import FAKES, register_fakes
from .shipped import shipped_library

logger = logging.getLogger(__name__)
PATH_VARIABLE = "FRANKENLM_TERNARY_PATH"
REFERENCE = "reference"
ARM_PATHS, X86_PATHS = ("neon", "neon_dotprod"), ("sse41", "avx2", "avx_vnni", "avx512_vnni")
# The native code paths of this kind of processor, slowest first; it need not have them all.
NATIVE_PATHS = ("scalar", *(ARM_PATHS if platform.machine() in ("aarch64", "arm64") else X86_PATHS))

# Schemas of the operators that have a reference; binding.cpp defines the same when the library is there.
SCHEMAS = {
    "quantize_activations": "(Tensor x, float norm_eps=-1) -> (Tensor codes, Tensor scale, Tensor sum)",
    "ternary_linear": (
        "(Tensor x, Tensor packed, Tensor scale, int out_features, Tensor? bias=None, float norm_eps=-1, "
        "int group_size=0) -> Tensor"
    ),
    "ternary_linear_quantized": (
        "(Tensor codes, Tensor x_scale, Tensor x_sum, Tensor packed, Tensor scale, int out_features, "
        "Tensor? bias=None, ScalarType? dtype=None, int group_size=0) -> Tensor"
    ),
    "int8_linear": "(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor",
}


_lock = threading.Lock()
_path: str | None = None
_library: ctypes.CDLL | None = None
_definitions: torch.library.Library | None = None  # what it registers lasts as long as it does


def load(reference: Mapping[str, Callable]) -> None:
    """Make `torch.ops.frankenlm.*` exist: find or build the native library, else register the reference.

    Repeated calls do nothing. FRANKENLM_TERNARY_PATH forces a path: reference or one of NATIVE_PATHS. Without a
    compiler one warning is logged and the reference runs.

    Args:
        reference: a function in plain PyTorch for each name of `SCHEMAS`.

    Raises:
        ValueError: FRANKENLM_TERNARY_PATH names no path, or one that this processor or machine cannot run.
    """
    global _path
    with _lock:
        if _path is None:
            _path = _load_reference(reference) if _wanted() == REFERENCE else _load_native(reference)


def which_path() -> str | None:
    """Return the code path in use; None until the operators are loaded."""
    return _path


def _wanted() -> str:
    return os.environ.get(PATH_VARIABLE, "")


def _load_native(reference: Mapping[str, Callable]) -> str:
    global _library
    try:
        _library = _open_shipped() or _open(build())
    except (NoCompilerError, BuildError) as problem:
        if _wanted():
            raise ValueError(f"{PATH_VARIABLE}={_wanted()} cannot be had here: {problem}.") from None
        logger.warning("The native operators cannot be built (%s); plain PyTorch runs instead, slower.", problem)
        return _load_reference(reference)
    path = _ask_path(None)
    torch.ops.load_library(_library._name)
    register_fakes("frankenlm", FAKES)
    return path


def _open_shipped() -> ctypes.CDLL | None:
    """Open the library that came with the package; None where none fits, or extra flags ask for one of one's own."""
    library = None if os.environ.get("FRANKENLM_CXXFLAGS") else shipped_library()
    if library is None:
        return None
    try:
        return ctypes.CDLL(str(library))
    except OSError as problem:
        logger.warning("The operators that came with the package cannot be opened (%s); they are built here.", problem)
        return None


def _open(library: Path) -> ctypes.CDLL:
    """Open a built library; one that cannot be opened, a damaged or foreign file, is built anew once.

    Raises:
        BuildError: it cannot be opened even so.
    """
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        try:
            library.unlink()
            return ctypes.CDLL(str(build()))
        except OSError as problem:
            raise BuildError(f"{library} cannot be opened: {problem}") from None


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
        ValueError: there is no path of this name, this processor lacks it, or no native operators are loaded.
    """
    global _path
    if _library is None:
        raise ValueError(f"code path {name}: no native operators are loaded")
    with _lock:
        _path = _ask_path(name)


def _load_reference(reference: Mapping[str, Callable]) -> str:
    global _definitions
    _definitions = torch.library.Library("frankenlm", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        _definitions.define(name + schema)
        _definitions.impl(name, reference[name], "CompositeExplicitAutograd")
    register_fakes("frankenlm", SCHEMAS)
    return REFERENCE
