"""The library that a platform wheel brought along (`make wheel`), so that no compiler is needed.

It lies in the package beside its note: the sources and flags that it was made of, the machine, and its hash. Whatever
is not as the note says, or of other sources than those that lie here, is passed over and built as ever.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

from .build import FLAGS, source_digest

FOLDER = Path(__file__).resolve().parent / "built"
LIBRARY, NOTE = "frankenlm_kernels.so", "built.json"


def describe(library: Path) -> dict[str, str]:
    """Return the note of a library: what it was made of, for which machine, and its hash."""
    return {
        "flags": " ".join(FLAGS),
        "machine": platform.machine(),
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "sources": source_digest(),
        "system": sys.platform,
    }


def shipped_library(folder: Path = FOLDER) -> Path | None:
    """Return the library that came with the package; None where there is none that fits."""
    library, note = folder / LIBRARY, folder / NOTE
    try:
        return library if json.loads(note.read_text(encoding="utf-8")) == describe(library) else None
    except (OSError, ValueError):
        return None
