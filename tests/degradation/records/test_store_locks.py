"""One process at a time holds an experiment's files, with flock and without."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import record_rows
from frankenlm.degradation.errors import ExperimentLocked
from frankenlm.degradation.records import locks
from frankenlm.degradation.records.export_again import export_command
from frankenlm.degradation.records.locks import ExperimentLock
from frankenlm.trainer_ext.common import kernel_lock
from record_rows import make_row
from store_files import open_store, paths


class Clock:
    """Time that passes only where somebody sleeps; `naps` gets what happens meanwhile, a call for each."""

    def __init__(self, *naps):
        self.now = 1000.0
        self.naps = list(naps)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.naps.pop(0)()


def test_one_process_at_a_time(tmp_path, monkeypatch):
    opened = open_store(tmp_path)
    with pytest.raises(ExperimentLocked, match=rf"process {os.getpid()} on .+ since 20.+--wait-lock"):
        open_store(tmp_path)
    clock = Clock(lambda: None, lambda: None, opened.close)
    monkeypatch.setattr(locks, "time", clock)
    open_store(tmp_path, wait_lock=True).close()
    assert clock.naps == [] and clock.now == pytest.approx(1000 + 3 * locks.POLL)
    open_store(tmp_path).close()


HOLDER = """
import sys, time
from frankenlm.degradation.records.store import Store
sys.path.insert(0, sys.argv[1])
from record_rows import CONFIG, NAMES, make_row
store = Store.open(sys.argv[2], *NAMES, config_fields=CONFIG, manifest={})
store.append([make_row()])
print("open", flush=True)
time.sleep(60)
"""


def test_sigkill_of_the_holder_frees_the_lock(tmp_path):
    helpers = str(Path(record_rows.__file__).parent)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, helpers, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(ExperimentLocked, match=f"process {holder.pid} on"):
        open_store(tmp_path)
    with pytest.raises(ExperimentLocked):
        export_command(paths(tmp_path)[1])
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with open_store(tmp_path) as opened:
        assert list(opened.finished) == [make_row()["row_key"]]


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without flock, and a heart that beats when the test says so."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(kernel_lock.fcntl, "flock", refuse)


def test_without_flock_a_heartbeat_keeps_the_lock(tmp_path, no_flock):
    opened = open_store(tmp_path)
    held = paths(tmp_path)[1] / "lock.held"
    os.utime(held, (1, 1))  # as if it had not beaten for long
    opened._lock._beats.beat()
    with pytest.raises(ExperimentLocked, match=f"process {os.getpid()}"):
        open_store(tmp_path)
    opened.append([make_row()])
    opened.close()
    assert not held.exists()
    open_store(tmp_path).close()


def test_the_heart_beats_by_itself(tmp_path, no_flock, monkeypatch):
    beaten, utime = threading.Event(), os.utime
    monkeypatch.setattr(locks, "HEARTBEAT", 0.001)
    monkeypatch.setattr(locks.os, "utime", lambda path: (utime(path), beaten.set()))
    with open_store(tmp_path):
        assert beaten.wait(60)


@pytest.mark.parametrize("why", ["old", "gone", "fresh elsewhere"])
def test_without_flock_a_lock_left_behind_is_taken_over(tmp_path, no_flock, why):
    open_store(tmp_path).close()
    held = paths(tmp_path)[1] / "lock.held"
    done = subprocess.Popen(["true"])
    done.wait()
    host = locks.socket.gethostname() if why == "gone" else "elsewhere"
    held.write_text(json.dumps({"pid": done.pid, "host": host, "start": "then"}))
    if why == "fresh elsewhere":
        with pytest.raises(ExperimentLocked, match="on elsewhere since then"):
            open_store(tmp_path)
        return
    if why == "old":
        os.utime(held, (1, 1))
    open_store(tmp_path).close()
    assert sorted(path.name for path in held.parent.glob("lock*")) == ["lock"]


def test_without_flock_a_lock_that_was_lost_stops_the_writing(tmp_path, no_flock):
    opened = open_store(tmp_path)
    held = paths(tmp_path)[1] / "lock.held"
    other = json.dumps({"pid": 1, "host": "elsewhere", "start": "now"})
    held.write_text(other)
    opened._lock._beats.beat()
    with pytest.raises(ExperimentLocked, match="on elsewhere since now"):
        opened.append([make_row()])
    opened.close()
    assert held.read_text() == other


def test_without_flock_a_heart_that_fails_for_long_gives_the_lock_up(tmp_path, no_flock, monkeypatch):
    """Two failures in a row are borne, and forgotten after the next beat; at the third others may have the lock."""
    clock, failing, utime = Clock(), False, os.utime

    def beat(works):
        nonlocal failing
        failing = not works
        clock.now += locks.HEARTBEAT
        opened._lock._beats.beat()

    def touch(*arguments):
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return utime(*arguments)

    monkeypatch.setattr(locks, "time", clock)
    monkeypatch.setattr(locks.os, "utime", touch)
    opened = open_store(tmp_path)
    for works in (False, False, True, False, False):
        beat(works)
        opened.append([make_row()])
    beat(False)
    with pytest.raises(ExperimentLocked):
        opened.append([make_row()])
    opened.close()


def test_a_lock_waited_for_may_lose_its_folder_to_an_archive(tmp_path):
    lock = ExperimentLock(tmp_path / "outputs.journal" / "lock")
    lock.acquire(wait=True)
    lock.release()
    assert lock.path.exists()


def test_a_lock_whose_file_was_moved_away_is_taken_anew(tmp_path, monkeypatch):
    """An archive moves the file between another process's opening and locking it."""
    path, moved, real = tmp_path / "lock", tmp_path / "moved", locks.lock_descriptor

    def move_first(descriptor):
        if not moved.exists():
            os.rename(path, moved)
        return real(descriptor)

    monkeypatch.setattr(locks, "lock_descriptor", move_first)
    lock = ExperimentLock(path)
    lock.acquire(wait=True)
    assert locks.read_holder(path)["pid"] == os.getpid() and moved.read_bytes() == b""
    lock.release()
