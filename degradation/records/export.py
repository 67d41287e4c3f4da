"""From journals to the files that others read: the JSON array of all rows, the lesions and the cells.

The union of all ranks' rows by `row_key`, of each the highest attempt, ordered by group, level, repeat and prompt: the
same file whatever the number of processes. Rows are copied as the bytes they were written as, checked once more, so
the largest experiments take seconds. Files are replaced whole; a kill leaves the old one.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .journal import JournalReader, encode_line, read_rows, repair, row_bytes, sync_folder, temporary_of
from .row_checks import JOURNAL, SIDE
from .row_keys import FINISHED, ROW_FIELDS

JOURNAL_ENDING = ".journal"
START = 1 << 20  # bytes of a JSON file in which its first row's key is found
EXPORT_START = b'[\n{"%s":' % next(iter(ROW_FIELDS)).encode()  # where the file is cut off before that key
# what lies beside the rows, one file a rank, merged at export: file name -> fields a record must have
SIDE_FILES = {
    "lesions": ("group", "method", "level_value", "level_index", "repeat_index"),
    "cells": ("param_group_name", "degradation_method", "level_value", "level_index", "repeat_index"),
}


class IndexedRow(NamedTuple):
    """Where the row of a key lies, and where it goes: order is its group, level_index, repeat_index, prompt_id."""

    attempt: int
    rank: int
    offset: int
    length: int
    status: str
    level: float | None
    order: tuple[str, int, int, int]

    def beats(self, other: "IndexedRow | None") -> bool:
        """Whether this row stands for its key: the highest attempt, then the lowest rank, then the latest line."""
        return other is None or (self.attempt, -self.rank, self.offset) > (other.attempt, -other.rank, other.offset)


class RowIndex:
    """Where every row of an experiment lies. A few hundred bytes a row; the rows themselves stay on the disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: dict[str, IndexedRow] = {}
        self._readers: dict[int, JournalReader] = {}

    def refresh(self) -> None:
        """Take in what all ranks have written since the last call.

        Raises:
            DamagedRecords: a row of a newer schema.
        """
        for rank, path in rank_files(self.folder, "rank").items():
            reader = self._readers.setdefault(rank, JournalReader(path, JOURNAL))
            for line in reader.new_lines():
                self._add(rank, line.offset, line.length, line.row)

    def repair(self) -> None:
        """Repair the files that were read; see `journal.repair`."""
        for reader in self._readers.values():
            repair(reader)

    def add_written(self, rank: int, path: Path, places: list[tuple[int, int]], rows: list[dict[str, Any]]) -> None:
        """Take in rows this process has just written, without reading them."""
        reader = self._readers.setdefault(rank, JournalReader(path, JOURNAL))
        for (offset, length), row in zip(places, rows, strict=True):
            self._add(rank, offset, length, row)
            reader.good_end = offset + length

    def _add(self, rank: int, offset: int, length: int, row: dict[str, Any]) -> None:
        order = (row["param_group_name"], row["level_index"], row["repeat_index"], row["prompt_id"])
        entry = IndexedRow(row["attempt"], rank, offset, length, row["status"], row["level_value"], order)
        if entry.beats(self.entries.get(row["row_key"])):
            self.entries[row["row_key"]] = entry

    def finished(self) -> dict[str, int]:
        """Return the attempt of every row that need not be written again, by key."""
        return {key: entry.attempt for key, entry in self.entries.items() if entry.status in FINISHED}

    def rows(self) -> Iterator[bytes]:
        """Yield the rows in the order of the export, as JSON.

        Raises:
            OSError: a line that was good does not read back the same.
        """
        ordered = sorted(self.entries.items(), key=lambda item: (item[1].order, item[0]))
        with contextlib.ExitStack() as stack:
            files = {rank: stack.enter_context(open(r.path, "rb")) for rank, r in self._readers.items()}
            for _, entry in ordered:
                file = files[entry.rank]
                file.seek(entry.offset)
                row = row_bytes(file.read(entry.length))
                if row is None:
                    raise OSError(errno.EIO, f"the line at byte {entry.offset} was good before", str(file.name))
                yield row


def rank_files(folder: Path, name: str) -> dict[int, Path]:
    """Return the files NAME-00000.jsonl, NAME-00001.jsonl ... of a journal's folder, by rank."""
    return {int(path.stem[len(name) + 1 :]): path for path in sorted(folder.glob(f"{name}-[0-9]*.jsonl"))}


# --- writing


def write_array(path: Path, rows: Iterable[bytes]) -> None:
    """Write rows as one JSON array, one a line, in the place of the file that is there.

    Raises:
        OSError: the storage is full, read-only or failing; the old file is intact.
    """
    with _replacing(path) as file:
        separator = b"[\n"
        for row in rows:
            file.write(separator)
            file.write(row)
            separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def remove_temporaries(folder: Path, json_path: Path) -> None:
    """Remove what a kill during an export left behind; nothing else of that ending is ours."""
    written = (*(f"{name}.jsonl" for name in SIDE_FILES), "manifest.json", "manifest.json.damaged")
    for path in (json_path, *(folder / name for name in written)):
        temporary_of(path).unlink(missing_ok=True)


def side_key(name: str, record: Mapping[str, Any]) -> tuple[str, str, str, int]:
    """Return the cell that a record of lesions or cells is of."""
    group, method = SIDE_FILES[name][:2]
    return record[group], record[method], str(record["level_value"]), record["repeat_index"]


def attempt_of(record: Mapping[str, Any]) -> int:
    """Return how often a record of lesions or cells was written; the first journals counted none."""
    return record.get("attempt", 1)


def side_records(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return all ranks' lesions or cells, of each cell the highest attempt, ordered."""
    group, method = SIDE_FILES[name][:2]
    latest: dict[tuple, dict[str, Any]] = {}
    for path in rank_files(folder, name).values():
        for record in read_rows(path, SIDE[name]):
            key = side_key(name, record)
            if key not in latest or attempt_of(record) >= attempt_of(latest[key]):
                latest[key] = record
    return sorted(latest.values(), key=lambda r: (r[group], r[method], r["level_index"], r["repeat_index"]))


def export_folder(folder: Path, json_path: Path, index: RowIndex) -> None:
    """Write the JSON array, `lesions.jsonl` and `cells.jsonl` from what the index and the folder hold."""
    write_array(json_path, index.rows())
    for name in SIDE_FILES:
        records = side_records(folder, name)
        if records:
            with _replacing(folder / f"{name}.jsonl") as file:
                file.writelines(map(encode_line, records))


# --- what stands there already


def check_places(folder: Path, json_path: Path, world_size: int = 1) -> None:
    """Raise ValueError where a folder, a link or a device stands in the place of a file that is to be written."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is no folder, and the journal belongs there: move it away.")
    journals = (f"{name}-{rank:05d}.jsonl" for name in ("rank", *SIDE_FILES) for rank in range(world_size))
    names = ("lock", "manifest.json", "rebuilding", *(f"{name}.jsonl" for name in SIDE_FILES), *journals)
    others = (path for name in ("rank", *SIDE_FILES) for path in rank_files(folder, name).values())
    for path in (json_path, *(folder / name for name in names), *others):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path} is no file of this program (a folder or a link): move it away.")


def check_export(path: Path) -> None:
    """Raise ValueError where there is a file that does not begin as an export does, be it cut off or damaged later.

    Nothing, and the zeros that a crash of the system may leave, are nobody's.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(START).strip(b"\0 \r\n")
    begun = start == b"[]" or EXPORT_START.startswith(start) or start.startswith(EXPORT_START)
    if not begun and not (start.startswith(b"[") and b'"row_key"' in start):
        raise ValueError(f"{path} is there already and holds no rows of this program: move it away.")
