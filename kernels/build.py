"""Compile the native operators: one call of the system's compiler, a few seconds, kept in a cache.

The library stands on torch's stable ABI: it is tied to no Python version, and any torch from `OLDEST_TORCH` on can load
it. The cache is keyed by sources, flags, torch and machine, so an upgrade of any of them builds anew. A place that
others can write to is passed over (trust.py).

    python -m frankenlm.kernels.build        build if needed, print where the library lies
"""

import atexit
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .trust import distrust, is_as_recorded, make_private, record

logger = logging.getLogger(__name__)
SOURCES = Path(__file__).resolve().parent / "csrc"
OLDEST_TORCH = "0x020a000000000000"  # 2.10, the first with a thread pool in the stable ABI
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # the paths must round alike: no multiply-add where another path has two operations
    "-fno-math-errno",
    "-fno-schedule-insns",  # before registers are chosen it moves loads ahead, and ARM compilers then run out of them
    "-Wno-psabi",
    f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}",
)


class NoCompilerError(RuntimeError):
    """There is no C++ compiler on this machine."""


class BuildError(RuntimeError):
    """The compiler is there and failed."""


def compiler() -> str:
    """Return the path of the C++ compiler: $CXX, else c++, g++ or clang++.

    Raises:
        NoCompilerError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompilerError("no C++ compiler (c++, g++ or clang++ on the path, or $CXX)")


def library_sources() -> list[Path]:
    """Return the files that make up the operators' library."""
    return sorted(SOURCES.glob("*.cpp"))


def cache_folder() -> Path:
    """Return where built libraries are kept: $FRANKENLM_CACHE, else the user's cache folder.

    Raises:
        BuildError: the user has no home folder.
    """
    folder = os.environ.get("FRANKENLM_CACHE")
    return Path(folder) if folder else home_cache()


def home_cache() -> Path:
    """Return the user's own folder for built libraries: in $XDG_CACHE_HOME, else in ~/.cache.

    Raises:
        BuildError: the user has no home folder.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    if not folder:
        try:
            folder = Path.home() / ".cache"
        except RuntimeError:  # a user without a home, as in some containers
            raise BuildError("there is no home folder for the cache; set FRANKENLM_CACHE") from None
    return Path(folder) / "frankenlm" / "kernels"


def source_digest() -> str:
    """Return the SHA-256 of the sources, names included."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprint(flags: Sequence[str] = ()) -> str:
    """Return a name for what a build depends on: sources, flags, torch, machine."""
    digest = hashlib.sha256(source_digest().encode())
    digest.update("\0".join([*FLAGS, *flags, torch.__version__, platform.machine(), sys.platform]).encode())
    return digest.hexdigest()[:16]


def compile_library(sources: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> Path:
    """Compile `sources` into the shared library `output`, which appears whole or not at all.

    Raises:
        NoCompilerError: there is no compiler.
        BuildError: the compiler failed; the message holds the first of its complaints.
    """
    root = Path(torch.__file__).parent
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=output.parent)
    os.close(handle)
    command = [compiler(), *FLAGS, *flags, f"-I{SOURCES}", f"-I{root / 'include'}", *map(str, sources)]
    command += ["-o", unfinished, f"-L{root / 'lib'}", "-ltorch_cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            complaints = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BuildError(f"{command[0]} failed: {complaints[0] if complaints else done.returncode}")
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, output)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return output


def trusted_place(key: str, name: str) -> Path:
    """Return where the library `name` of a build `key` is kept: in the cache; where others can write to that, in the
    user's own folder; where they can write there too, in a folder of this process.
    """
    for folder in (cache_folder, home_cache):
        try:
            library = Path(os.path.realpath(folder())) / key / name
        except BuildError:
            if folder is cache_folder:
                raise
            break  # a cache was named, but there is no home to turn to
        problem = distrust(library)
        if problem is None:
            return library
        logger.warning("No library of operators is taken from %s: %s.", library.parent, problem)
    private = Path(os.path.realpath(tempfile.mkdtemp(prefix="frankenlm-")))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private / name


def cached_library(key: str, name: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Return a library out of the cache, compiled now unless it is there as it was built.

    Raises:
        NoCompilerError: there is no compiler.
        BuildError: the compiler failed, or the cache folder cannot be written.
    """
    library = trusted_place(key, name)
    if is_as_recorded(library):
        return library
    try:
        make_private(library.parent)
        compile_library(sources, library, flags)
        record(library)
    except OSError as problem:
        raise BuildError(f"cannot write {library.parent} ({problem.strerror}); set FRANKENLM_CACHE") from None
    return library


def build() -> Path:
    """Return the operators' library, compiled now or found in the cache; $FRANKENLM_CXXFLAGS adds flags.

    Raises:
        NoCompilerError: there is no compiler.
        BuildError: the compiler failed, or the cache folder cannot be written.
    """
    flags = os.environ.get("FRANKENLM_CXXFLAGS", "").split()
    return cached_library(fingerprint(flags), "frankenlm_kernels.so", library_sources(), flags)


if __name__ == "__main__":
    try:
        print(build())
    except (NoCompilerError, BuildError) as problem:
        print(f"warning: {problem}: the operators will run as plain PyTorch", file=sys.stderr)
