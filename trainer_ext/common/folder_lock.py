"""The lock of a run's folder: a kernel lock, which goes with its holder and the data workers that it forked."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .cli import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger("frankenlm.folder_lock")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which leaves no file in it; where there are no such locks, a line of the log says so.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"{folder} is in use by another run: wait for it or choose another folder.") from error
    except OSError as error:
        logger.info("%s cannot be locked against a second run: %s", folder, error.strerror)
    try:
        yield
    finally:
        os.close(descriptor)
