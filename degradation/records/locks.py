"""One process at a time: a kernel lock on a file, and a file with a heartbeat where there are no such locks.

The kernel drops an flock when its holder dies, however it dies. Some network file systems have none (and some systems
no fcntl); there the lock is a file created with O_EXCL whose time is set anew every 30 s, and which counts as left
behind once it is older than three beats, or its process on this machine is gone.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from frankenlm.trainer_ext.common.kernel_lock import lock_descriptor

from ..errors import ExperimentLocked
from .row_keys import load_json

logger = logging.getLogger(__name__)

HEARTBEAT = 30.0  # seconds between two beats
STALE_AFTER = 3 * HEARTBEAT
POLL = 0.2  # seconds between two looks at a lock that is held


class ExperimentLock:
    """The lock of an experiment: the file `lock` of its folder, with pid, host and start of the holder in it."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = -1
        self._beats: Heartbeat | None = None

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: wait until it is free, as long as that takes.

        Raises:
            ExperimentLocked: another process has it; the message names the holder.
        """
        told = False
        while not self._try():
            if not wait:
                self._refuse()
            if not told:
                logger.warning("waiting for %s, held by %s", self.path, describe_holder(self.path))
                told = True
            time.sleep(POLL)

    def _try(self) -> bool:
        self.path.parent.mkdir(exist_ok=True)  # an archive may have moved the folder away since
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        taken = lock_descriptor(descriptor)
        if taken and _same_file(descriptor, self.path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder(), 0)
            self._descriptor = descriptor
            return True
        os.close(descriptor)  # also where the file was moved away between opening and locking it
        if taken is None:
            self._beats = Heartbeat.take(self.path.with_name(self.path.name + ".held"))
            return self._beats is not None
        return False

    def _refuse(self) -> None:
        raise ExperimentLocked(
            f"{self.path.parent} is in use by {describe_holder(self.path)}; wait for it (--wait-lock) or end it."
        )

    def check(self) -> None:
        """Raise ExperimentLocked if another process took a lock without kernel support away."""
        if self._beats is not None and self._beats.lost:
            self._refuse()

    def release(self) -> None:
        """Give the lock back; releasing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._beats is not None:
            self._beats.stop()
            self._beats = None


class Heartbeat:
    """A lock file created with O_EXCL, kept fresh by a thread."""

    def __init__(self, path: Path, content: bytes):
        self.path = path
        self.lost = False
        self._content = content
        self._beaten = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lock heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, path: Path) -> "Heartbeat | None":
        """Create the file and keep it fresh; None where another process does."""
        content = _holder()
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                if not _left_behind(path) or not _put_away(path):
                    return None
                continue
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            return cls(path, content)
        return None

    def _keep_beating(self) -> None:
        while not (self.lost or self._stopped.wait(HEARTBEAT)):
            self.beat()

    def beat(self) -> None:
        """Set the file's time anew, or find the lock lost: to another process, or after too many beats that failed."""
        try:
            self.lost = not self._ours()
            if not self.lost:
                os.utime(self.path)
                self._beaten = time.monotonic()
        except OSError as error:
            # a network file system may come back, but after STALE_AFTER others take the lock for left behind
            logger.warning("%s could not be kept fresh: %s", self.path, error.strerror)
            self.lost = time.monotonic() - self._beaten > STALE_AFTER - HEARTBEAT

    def _ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except FileNotFoundError:
            return False

    def stop(self) -> None:
        """End the beats and remove the file, unless another process has taken it over."""
        self._stopped.set()
        self._thread.join()
        if self._ours():
            self.path.unlink()


def _left_behind(path: Path) -> bool:
    """Whether the file's holder is gone: no beat for long, or no such process on this machine."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    holder = read_holder(path)
    here = holder.get("host") == socket.gethostname()
    return age > STALE_AFTER or (here and not _alive(holder["pid"]))


def _put_away(path: Path) -> bool:
    """Remove a file that was left behind; False where another process was faster and its fresh file was moved."""
    before = read_holder(path)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    if read_holder(aside) != before:
        os.link(aside, path)
        aside.unlink()
        return False
    aside.unlink()
    return True


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 is no harmless question there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _holder() -> bytes:
    start = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode()


def read_holder(path: Path) -> dict[str, Any]:
    """Return pid, host and start from a lock file; {} while its holder is still writing them."""
    try:
        found = load_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}


def describe_holder(path: Path) -> str:
    """Return who holds a lock, for messages."""
    holder = read_holder(path) or read_holder(path.with_name(path.name + ".held"))
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')} since {holder.get('start')}"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
