"""The journal's lines, its repair after every kind of damage, and writes that fail."""

import contextlib
import errno
import json
import logging
import os
import random
import resource
import zlib

import pytest

from frankenlm.degradation.errors import DamagedRecords, ExperimentLocked
from frankenlm.degradation.records import journal
from frankenlm.degradation.records.journal import (
    Journal,
    JournalReader,
    encode_line,
    read_rows,
    repair,
    row_bytes,
    strict_json,
)
from record_rows import make_row

SHORT = [{"n": n, "text": f"line {n} «é»"} for n in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rank-00000.jsonl"


def write(path, rows):
    journal = Journal(path)
    places = journal.append(rows)
    journal.close()
    return places


def repaired(path):
    """Read and repair a file; return its rows."""
    reader = JournalReader(path)
    rows = [line.row for line in reader.new_lines()]
    repair(reader)
    return rows


class StillWritten:
    """A file that another process goes on writing whenever a reader has come to its end in the middle of a line."""

    def __init__(self, path, rest):
        self.path, self.rest, self.file = path, rest, open(path, "rb")  # noqa: SIM115  closed in __exit__

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def seek(self, place):
        self.file.seek(place)

    def __iter__(self):
        for raw in self.file:
            yield raw
            if not raw.endswith(b"\n") and self.rest:
                with open(self.path, "ab") as other:
                    other.write(self.rest.pop())


def test_a_line_that_is_being_written_is_read_as_a_whole_later(path, monkeypatch):
    lines = [encode_line(row) for row in SHORT[:3]]
    path.write_bytes(lines[0] + lines[1][:30])
    rest, reader = [lines[1][30:] + lines[2]], JournalReader(path)
    monkeypatch.setattr(journal, "open", lambda name, mode: StillWritten(name, rest), raising=False)
    found = [line.row for line in reader.new_lines()]
    found += [line.row for line in reader.new_lines()]
    with open(path, "ab") as other:
        other.write(lines[1][30:] + lines[2] if rest else b"")
    found += [line.row for line in reader.new_lines()]
    assert found == SHORT[:3] and not reader.bad


# --- one line


@pytest.mark.parametrize(
    ("row", "back"),
    [
        ({"a": 'two\nlines\r\n, \u2028, \x00, \\ and "'}, None),
        ({"a": "naïve 日本 🙂"}, None),
        ({"a": "\ud83d alone"}, None),
        ({"a": float("nan"), "b": [float("inf"), 1.5]}, {"a": None, "b": [None, 1.5]}),
        ({"c": {"d": -float("inf")}}, {"c": {"d": None}}),
        ({"a": -0.0, "b": 2**70, "c": 1e-320, "d": None, "e": True}, None),
        ({}, None),
    ],
)
def test_a_row_comes_back_as_it_was(row, back):
    line = encode_line(row)
    assert line.count(b"\n") == 1 and line.endswith(b"}\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is no strict JSON")

    assert json.loads(row_bytes(line), parse_constant=refuse) == (row if back is None else back)


def test_the_line_is_what_the_format_says():
    row = {"text": "é", "value": 0.5}
    found = json.loads(encode_line(row))
    text = '{"text":"é","value":0.5}'.encode()
    assert found == {"v": 1, "crc": f"{zlib.crc32(b'1' + text):08x}", "row": row}
    assert list(found) == ["v", "crc", "row"] and strict_json(row) == text


def test_every_flipped_bit_is_seen():
    line = encode_line(SHORT[0])
    for place in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[place] ^= 1 << bit
            # a digit of the version may become a newer one: that is damage, not a newer schema
            assert row_bytes(bytes(flipped)) is None, (place, bit)


def newer_line(version=7, crc=None):
    crc = zlib.crc32(b'%d{"n":1}' % version) if crc is None else crc
    return b'{"v":%d,"crc":"%08x","row":{"n":1}}\n' % (version, crc)


def test_a_newer_schema_is_refused(path):
    write(path, SHORT)
    path.write_bytes(path.read_bytes() + newer_line())
    with pytest.raises(DamagedRecords, match="schema version 7.*newer frankenlm"):
        repaired(path)
    assert row_bytes(newer_line(crc=0)) is None
    assert row_bytes(newer_line(version=1)) == b'{"n":1}'


# --- damage


@pytest.mark.parametrize(
    "rows", [SHORT[:3], pytest.param([make_row(n) for n in (1, 2, 3)], marks=pytest.mark.slow)], ids=["short", "real"]
)
def test_cut_at_every_byte_of_the_last_two_lines(path, rows):
    places = write(path, rows)
    whole = path.read_bytes()
    torn = path.with_name(path.name + ".torn")
    for cut in range(places[1][0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = [row for row, (start, length) in zip(rows, places, strict=True) if start + length <= cut]
        good_end = sum(length for _, length in places[: len(kept)])
        assert repaired(path) == kept
        assert path.read_bytes() == whole[:good_end]
        assert (torn.read_bytes() if torn.exists() else b"\n") == whole[good_end:cut] + b"\n"
        torn.unlink(missing_ok=True)


def test_what_comes_after_a_repair_is_kept(path, caplog):
    write(path, SHORT[:2])
    path.write_bytes(path.read_bytes() + encode_line(SHORT[2])[:20])
    assert repaired(path) == SHORT[:2]
    assert "20 bytes were never finished" in caplog.text
    write(path, SHORT[3:])
    assert repaired(path) == SHORT[:2] + SHORT[3:]


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b"\n\n", b"{}\n[]\n", b"\xff" * 100 + b"\n", encode_line({"n": 1})[:-1]]
)
def test_any_bytes_at_the_end_are_cut_off(path, tail):
    write(path, SHORT)
    good = path.read_bytes()
    path.write_bytes(good + tail)
    assert repaired(path) == SHORT and path.read_bytes() == good
    assert tail in path.with_name(path.name + ".torn").read_bytes()


def test_a_bad_line_in_the_middle_costs_that_line_alone(path, caplog):
    places = write(path, SHORT)
    damaged = bytearray(path.read_bytes())
    damaged[places[2][0] + 45] ^= 4
    path.write_bytes(damaged)
    assert repaired(path) == SHORT[:2] + SHORT[3:]
    assert path.read_bytes() == damaged  # what is there stays there
    (entry,) = read_rows(path.with_name(path.name + ".quarantine"))
    assert entry["offset"] == places[2][0] and entry["text"].startswith('{"v":1,')
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"line at byte {places[2][0]} is damaged" in caplog.text
    caplog.clear()
    assert repaired(path) == SHORT[:2] + SHORT[3:]
    assert not caplog.records  # said once
    assert len(read_rows(path.with_name(path.name + ".quarantine"))) == 1


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_costs_no_other_line(path, seed):
    """Flip a few bytes anywhere, newlines included: every line without one of them is kept."""
    draw = random.Random(seed)
    rows = [{"n": n, "text": "x" * draw.randrange(80)} for n in range(30)]
    places = write(path, rows)
    damaged = bytearray(path.read_bytes())
    hit = {draw.randrange(len(damaged)) for _ in range(3)}
    for place in hit:
        damaged[place] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    # a lost newline joins a line to the one after it
    lost = {n for n, (start, length) in enumerate(places) if any(start <= h < start + length for h in hit)}
    lost |= {n + 1 for n, (start, length) in enumerate(places) if start + length - 1 in hit}
    found = [row["n"] for row in repaired(path)]
    assert found == [n for n in range(30) if n not in lost]
    assert [row["n"] for row in repaired(path)] == found


def test_empty_and_crlf_files(path):
    path.write_bytes(b"")
    assert repaired(path) == []
    write(path, SHORT)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert repaired(path) == SHORT
    write(path, [{"n": "after"}])
    assert repaired(path) == [*SHORT, {"n": "after"}]


def test_a_reader_goes_on_where_it_stopped(path):
    journal = Journal(path)
    journal.append(SHORT[:2])
    reader = JournalReader(path)
    assert [line.row for line in reader.new_lines()] == SHORT[:2]
    with open(path, "ab") as other:  # half a line, as seen while it is being written
        line = encode_line(SHORT[2])
        other.write(line[:30])
        other.flush()
        assert list(reader.new_lines()) == []
        other.write(line[30:])
    assert [line.row for line in reader.new_lines()] == SHORT[2:3]
    journal.close()


# --- writes that fail


@contextlib.contextmanager
def largest_file(size):
    """Let no file grow beyond so many bytes: the kernel takes a part of the write that crosses it, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 40, 75])
def test_a_file_that_cannot_grow_is_cut_back(path, room):
    journal = Journal(path)
    journal.append(SHORT[:2])
    before = path.read_bytes()
    with largest_file(len(before) + room), pytest.raises(OSError) as caught:
        journal.append(SHORT[2:])
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    journal.append(SHORT[2:])  # there is room again
    journal.close()
    assert repaired(path) == SHORT


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failed_call_is_cut_back_and_reported(path, monkeypatch, code, call):
    journal = Journal(path)
    journal.append(SHORT[:1])
    before, real_write, calls = path.read_bytes(), os.write, []

    def half_then_fail(descriptor, data):
        calls.append(data)
        if len(calls) == 2:
            return real_write(descriptor, data[: len(data) // 2])
        if len(calls) == 3:
            raise OSError(code, os.strerror(code))
        return real_write(descriptor, data)

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, half_then_fail if call == "write" else fail)
    with pytest.raises(OSError) as caught:
        journal.append(SHORT[1:4])
    monkeypatch.undo()
    assert caught.value.errno == code and path.read_bytes() == before
    journal.append(SHORT[4:])
    journal.close()
    assert repaired(path) == [SHORT[0], *SHORT[4:]]


def test_a_file_that_cannot_be_cut_back_takes_no_more(path, monkeypatch):
    journal = Journal(path)

    def fail(*_):
        raise OSError(errno.EIO, "failing")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="failing"):
        journal.append(SHORT[:1])
    monkeypatch.undo()
    with pytest.raises(OSError, match="could not be cut back"):
        journal.append(SHORT[1:2])
    journal.close()


def test_an_exception_out_of_a_signal_leaves_whole_lines(path, monkeypatch):
    journal = Journal(path)
    real_write, calls = os.write, []

    def interrupted(descriptor, data):
        calls.append(real_write(descriptor, data))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.append(SHORT)
    monkeypatch.undo()
    journal.append(SHORT[:1])
    journal.close()
    assert repaired(path) == SHORT[:1]


def test_a_row_that_is_no_json_leaves_no_trace(path):
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.append([SHORT[0], {"n": object()}])
    journal.close()
    assert path.read_bytes() == b""


def test_one_writer_at_a_time(path):
    journal = Journal(path)
    with pytest.raises(ExperimentLocked, match="being written by another process"):
        Journal(path)
    with pytest.raises(ExperimentLocked):
        repaired(path)
    journal.close()
    journal.close()
    Journal(path).close()


def test_rows_are_synced_once_a_batch_before_they_count(path, monkeypatch):
    journal = Journal(path)
    events, real_write, real_sync = [], os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: events.append("write") or real_write(fd, data))
    monkeypatch.setattr(os, "fsync", lambda fd: events.append("fsync") or real_sync(fd))
    journal.append(SHORT[:3])
    assert events == ["write"] * 3 + ["fsync"]
    journal.close()
