"""Text and JSON onto the disk: written beside, renamed when whole, so that a file is the old one or the new one.

What stands at the path is replaced, never written through: a symbolic link gives way to the file and its target stays
as it was. Half a surrogate pair (from a JSON escape, or a file name that is not UTF-8) has no UTF-8 form; it is written
as its escape, `\\ud835`, which JSON reads back as it was.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of what is at `path`, or leave that as it is.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    with replaced_file(path) as scratch:
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write sorted JSON without NaN or Inf: those become null, and their keys are listed under `non_finite`.

    Raises:
        TypeError: a value that JSON has no form for; the file at `path` stays as it was.
        OSError: the folder is missing, read-only or full.
    """
    lost: list[str] = []
    clean = _finite(facts, "", lost)
    if lost:
        clean["non_finite"] = sorted(lost)
    write_text(path, json.dumps(clean, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` at the end, or goes when an error is raised.

    The suffix stays, as libraries that draw or save go by it.
    """
    path = Path(path)
    scratch = path.with_name(f".{secrets.token_hex(8)}{path.suffix[:16]}")
    try:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _finite(value: Any, name: str, lost: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{name}.{key}".lstrip("."), lost) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item, f"{name}[{i}]", lost) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(name)
        return None
    return value
