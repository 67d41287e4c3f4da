"""Text, JSON and CSV onto the disk: written beside, renamed when whole, so that a file is the old one or the new one.

What stands at the path is replaced, never written through: a symbolic link gives way to the file and its target stays
as it was. Half a surrogate pair (from a JSON escape, or a file name that is not UTF-8) has no UTF-8 form; it is written
as its escape, `\\ud835`, which JSON reads back as it was.
"""

import contextlib
import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy


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
    clean = finite(facts, lost)
    if lost:
        clean["non_finite"] = sorted(lost)
    write_text(path, json.dumps(clean, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None, *, number: str = ""
) -> None:
    """Write rows as CSV; nothing stands for a value that is missing, None or not finite.

    Args:
        columns: their names in order (default: those of all rows, as they first appear).
        number: format of floats, such as ".6g" (default: every digit).

    Raises:
        ValueError: a row has a value that is in none of the columns.
        OSError: the folder is missing, read-only or full; the file at `path` stays as it was.
    """
    rows = list(rows)
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value, number) for name, value in row.items()} for row in rows)
    write_text(path, table.getvalue())


def _cell(value: Any, number: str) -> Any:
    if not isinstance(value, (float, numpy.floating)):
        return value
    return format(value, number) if math.isfinite(value) else None


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


def finite(value: Any, lost: list[str] | None = None, name: str = "") -> Any:
    """Return a JSON value in which null stands for numbers that are not finite; numpy's scalars become Python's.

    Args:
        lost: gets the names of those numbers, such as `rows[0].loss`.
        name: of the value itself.
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item, lost, f"{name}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item, lost, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, numpy.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        if lost is not None:
            lost.append(name)
        return None
    return value


def written_out(value: float, decimals: int) -> str:
    """Return a number for a table, 12,345.6; from ten million on, where no digit is measured, 1.235e+07."""
    return f"{value:,.{decimals}f}" if abs(value) < 1e7 else f"{value:.4g}"
