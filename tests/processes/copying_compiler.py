"""A compiler that copies: for tests of what happens around a build, where the library itself is no matter."""

import shlex
import sys
from pathlib import Path

COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[sys.argv.index('-o') + 1])"


def copying_compiler(path: Path, library: Path) -> str:
    """Write a compiler to `path` whose every output is a copy of `library`; return what $CXX is to be."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", COPY, str(library)])} "$@"\n')
    path.chmod(0o755)
    return str(path)
