"""Whose the files in an output folder are: what an earlier report or measurement wrote is replaced, no other file is.

A report's record (report.json, NAME_measures.json) lists under "written" what was written beside it. It is written
first, so that what a killed run leaves behind is known as its own.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records.row_keys import load_json

WRITTEN = "written"
MARKS = ("bootstrap", "not_shown")  # keys that every record has had from the first


def check_free(folder: Path, record: str, names: Sequence[str]) -> list[str]:
    """Make sure that everything about to be written takes the place of nothing, or of what an earlier run wrote.

    Args:
        record: name of the record. names: of the other files, as paths from `folder` with "/" between.

    Returns:
        What earlier runs wrote and is still there; the new record lists it, too, or it would be nobody's.

    Raises:
        ValueError: a link, a folder or a file of somebody else stands in the place of one; the message names it.
        OSError: a place cannot be looked at, as its name is too long.
    """
    inner = {str(parent) for name in names for parent in Path(name).parents if str(parent) != "."}
    for place in (folder / name for name in sorted(inner)):
        if os.path.lexists(place) and not stat.S_ISDIR(place.lstat().st_mode):
            raise ValueError(f"{place} is a file or a link where a folder is to be made: move it away.")
    if not folder.is_dir():
        return []
    ours = _ours(folder / record)
    for name in (record, *names):
        _check_place(folder / name, name in ours)
    return sorted(name for name in ours - {record} if _is_inside(name) and (folder / name).is_file())


def _is_inside(name: str) -> bool:
    """Whether a name of a record, which anybody may have edited, stays in the folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _check_place(path: Path, ours: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a folder or a link where a file is to be written: move it away.")
    if not ours:
        raise ValueError(
            f"{path} is there already, and no earlier run of this command wrote it: move it away, or choose another "
            "--output_dir."
        )


def _ours(record: Path) -> frozenset[str]:
    """Return the names that an earlier run has written, its record among them; none where there is no such record."""
    found = _read(record)
    if found is None:
        return frozenset()
    names = found.get(WRITTEN)
    if not isinstance(names, list):  # of a version that listed its figures only
        names = ["report.html", "cells.csv", "curves.csv", *_beside(record), *_figures(found.get("plots"))]
    return frozenset({record.name, *(name for name in names if isinstance(name, str))})


def _read(record: Path) -> Mapping[str, Any] | None:
    if record.is_symlink() or not record.is_file():
        return None
    try:
        found = load_json(record.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(mark in found for mark in MARKS) else None


def _beside(record: Path) -> list[str]:
    stem = record.name.removesuffix("_measures.json")
    return [f"{stem}_{kind}.csv" for kind in ("rows", "cells", "curves")]


def _figures(plots: Any) -> list[Any]:
    entries = plots if isinstance(plots, list) else []
    return [entry.get(kind) for entry in entries if isinstance(entry, dict) for kind in ("png", "csv")]
