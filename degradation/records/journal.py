"""The append-only journal: one row a line, each with a checksum, safe on the disk before it counts.

    {"v":1,"crc":"9ae0daaf","row":{...}}

`v` is the schema version. `crc` is the CRC-32 (8 hex digits) of the digits of `v` followed by the bytes of the row, so
a flipped bit anywhere in the line is seen. Lines end in one newline; a carriage return before it is ignored.

A line is written by one `write` on an O_APPEND descriptor; one `fsync` for a batch. What a kill or a crash leaves at
the end is moved aside by `repair`; a bad line in the middle is copied aside and passed over, the others are kept.
"""

import errno
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frankenlm.trainer_ext.common.files import finite
from frankenlm.trainer_ext.common.kernel_lock import lock_descriptor

from ..errors import DamagedRecords, ExperimentLocked
from .row_checks import Rule, misfit
from .row_keys import SCHEMA_VERSION, load_json

logger = logging.getLogger(__name__)

LINE = re.compile(rb'\{"v":([1-9][0-9]{0,8}),"crc":"([0-9a-f]{8})","row":(\{.*\})\}', re.DOTALL)
TEMPORARY_ENDING = ".tmp"


class Line(NamedTuple):
    """One line of a journal: its place in bytes, and its row, None where the line is bad."""

    offset: int
    length: int
    row: dict[str, Any] | None


# --- one line


def strict_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8; numbers that are not finite become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        value = finite(value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but an escape
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def checksum(version: int | bytes, row: bytes) -> bytes:
    """Return the checksum of a line as its 8 hex digits."""
    version = version if isinstance(version, bytes) else b"%d" % version
    return b"%08x" % zlib.crc32(row, zlib.crc32(version))


def encode_line(row: Mapping[str, Any]) -> bytes:
    """Return the line of a row, newline included."""
    text = strict_json(row)
    return b'{"v":%d,"crc":"%s","row":%s}\n' % (SCHEMA_VERSION, checksum(SCHEMA_VERSION, text), text)


def row_bytes(line: bytes) -> bytes | None:
    """Return the row of a line as the JSON it was written as, None where the line is bad or not complete.

    Raises:
        DamagedRecords: a whole line of a newer schema.
    """
    if not line.endswith(b"\n"):
        return None
    found = LINE.fullmatch(line.rstrip(b"\r\n"))
    if found is None or checksum(found[1], found[3]) != found[2]:
        return None
    if int(found[1]) > SCHEMA_VERSION:
        refuse_newer("a line of the journal", int(found[1]))
    return found[3]


def refuse_newer(what: str, version: int) -> None:
    """Raise DamagedRecords: `what` was written by a newer version of this package."""
    raise DamagedRecords(
        f"{what} has schema version {version}, this package reads up to {SCHEMA_VERSION}: use a newer frankenlm."
    )


# --- reading


class JournalReader:
    """Reads the good lines of one file, from where it stopped the last time.

    Args:
        rules: what the fields of its rows must be, see row_checks.py; a line whose row breaks one is bad, too.

    Attributes:
        good_end: the offset after the last good line read so far.
        bad: the bad lines found so far, by offset; those beyond `good_end` may be the work of a writer in progress.
    """

    def __init__(self, path: Path, rules: Mapping[str, Rule] | None = None):
        self.path = path
        self.rules = rules or {}
        self.good_end = 0
        self.bad: dict[int, Line] = {}

    def new_lines(self) -> Iterator[Line]:
        """Yield the good lines written since the last call."""
        with open(self.path, "rb") as file:
            file.seek(self.good_end)
            offset = self.good_end
            for raw in file:
                if not raw.endswith(b"\n"):
                    # a line that is being written: what comes next is its rest, to be read as a whole next time
                    self.bad[offset] = Line(offset, len(raw), None)
                    return
                line = Line(offset, len(raw), self._parsed(row_bytes(raw)))
                offset += len(raw)
                if line.row is None:
                    self.bad[line.offset] = line
                    continue
                self.bad.pop(line.offset, None)
                self.good_end = offset
                yield line

    def _parsed(self, row: bytes | None) -> dict[str, Any] | None:
        """Return a row, None where there is none or its JSON is none, whatever its checksum says."""
        if row is None:
            return None
        try:
            parsed = load_json(row)
        except ValueError:
            return None
        return None if self.rules and misfit(parsed, self.rules) else parsed


def read_rows(path: Path, rules: Mapping[str, Rule] | None = None) -> list[dict[str, Any]]:
    """Return the good rows of a small journal; nothing is repaired. A file that is not there holds none."""
    return [line.row for line in JournalReader(path, rules).new_lines()] if path.exists() else []


# --- repair


def repair(reader: JournalReader) -> None:
    """Put a file right after all of it was read: no writer may be at work.

    Bytes after the last good line are appended to FILE.torn and cut off. Bad lines before it are copied to
    FILE.quarantine, once, with a warning, and stay where they are.

    Raises:
        ExperimentLocked: a process of an earlier run still writes this file.
    """
    with open(reader.path, "r+b") as file:
        refuse_second_writer(reader.path, file.fileno())
        _repair(reader)


def _repair(reader: JournalReader) -> None:
    quarantined = [line for line in reader.bad.values() if line.offset < reader.good_end]
    if quarantined:
        _quarantine(reader.path, quarantined)
    size = reader.path.stat().st_size
    if size > reader.good_end:
        _move_tail(reader.path, reader.good_end)
        logger.warning(
            "%s: the last %d bytes were never finished; moved to %s. Their rows will be written again.",
            reader.path.name,
            size - reader.good_end,
            beside(reader.path, ".torn").name,
        )
    reader.bad = {line.offset: line for line in quarantined}


def beside(path: Path, ending: str) -> Path:
    """Return the file of the same name with `ending` added."""
    return path.with_name(path.name + ending)


def _move_tail(path: Path, good_end: int) -> None:
    with open(path, "r+b") as file:
        file.seek(good_end)
        write_and_sync(beside(path, ".torn"), file.read() + b"\n", os.O_APPEND)
        os.ftruncate(file.fileno(), good_end)  # only now: a kill in between leaves the bytes twice, not never
        os.fsync(file.fileno())


def _quarantine(path: Path, lines: Sequence[Line]) -> None:
    target = beside(path, ".quarantine")
    known = {(entry["offset"], entry["sha1"]) for entry in read_rows(target)}
    fresh = b""
    with open(path, "rb") as file:
        for line in lines:
            file.seek(line.offset)
            raw = file.read(line.length)
            entry = {"offset": line.offset, "sha1": hashlib.sha1(raw).hexdigest()}
            if (entry["offset"], entry["sha1"]) not in known:
                logger.warning(
                    "%s: the line at byte %d is damaged; copied to %s. Its row will be written again.",
                    path.name,
                    line.offset,
                    target.name,
                )
                fresh += encode_line({**entry, "text": raw.decode("utf-8", "backslashreplace")})
    if fresh:
        write_and_sync(target, fresh, os.O_APPEND)


# --- writing


def refuse_second_writer(path: Path, descriptor: int) -> None:
    """Take the kernel lock of a journal that was opened; raise ExperimentLocked where another process has it."""
    if lock_descriptor(descriptor) is False:
        raise ExperimentLocked(f"{path} is being written by another process; wait for it or end it.")


def sync_folder(folder: Path) -> None:
    """Make names created in, or moved into, a folder survive a crash; without effect where folders cannot be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_and_sync(path: Path, data: bytes, mode: int = os.O_TRUNC) -> None:
    """Write a small file in full, safe on the disk on return; with `mode` O_APPEND its end only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Return the file that is written before it takes the place of another; one a kill left goes at the next start."""
    return path.with_name(f".{path.name}{TEMPORARY_ENDING}")


def replace_file(path: Path, data: bytes) -> None:
    """Put a small file in the place of another: at any moment one of the two is there in full."""
    temporary = temporary_of(path)
    write_and_sync(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a full disk may take only a part at first and refuse the rest."""
    while data:
        data = data[os.write(descriptor, data) :]


class Journal:
    """The writing end of one file. One process has it: an flock on the file itself, where there is such a thing.

    Raises:
        ExperimentLocked: another process writes this file.
        OSError: the storage is full, read-only or failing.
    """

    def __init__(self, path: Path):
        self.path = path
        fresh = not path.exists()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            refuse_second_writer(self.path, self._descriptor)
            if fresh:
                sync_folder(path.parent)
            self.end = os.fstat(self._descriptor).st_size
        except BaseException:
            os.close(self._descriptor)
            raise
        self._usable = True

    def append(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """Write rows, all or none; on return they are safe on the disk.

        Returns:
            Offset and length in bytes of every row's line.

        Raises:
            OSError: the storage is full, read-only or failing; the file was cut back to where it was.
        """
        if not self._usable:
            raise OSError(errno.EIO, "could not be cut back after a write that failed", str(self.path))
        lines = [encode_line(row) for row in rows]  # all of them first: what cannot be encoded leaves no trace
        start, places = self.end, []
        try:
            for line in lines:
                write_all(self._descriptor, line)
                places.append((self.end, len(line)))
                self.end += len(line)
            os.fsync(self._descriptor)
        except BaseException:  # an exception out of a signal handler must leave whole lines, too
            self._cut_back(start)
            raise
        return places

    def _cut_back(self, offset: int) -> None:
        self.end = offset
        try:
            os.ftruncate(self._descriptor, offset)
        except OSError as error:
            self._usable = False
            logger.warning("%s could not be cut back to byte %d: %s", self.path, offset, error.strerror)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
