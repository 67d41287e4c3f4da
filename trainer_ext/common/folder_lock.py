"""The lock of a run's folder: a kernel lock, which goes with its holder and the data workers that it forked."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from .cli import UserError
from .kernel_lock import lock_descriptor

logger = logging.getLogger("frankenlm.folder_lock")


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[int | None]:
    """Hold a folder's lock, which leaves no file in it; where there are no such locks, a line of the log says so.

    Yields the descriptor, with which a child process holds the lock too; None where no folder can be opened.

    Raises:
        UserError: another process holds it.
    """
    if os.name == "nt":  # no folder can be opened there
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        taken = lock_descriptor(descriptor)
        if taken is False:
            raise UserError(f"{folder} is in use by another run: wait for it or choose another folder.")
        if taken is None:
            logger.info("%s cannot be locked against a second run: its file system has no such locks", folder)
        yield descriptor
    finally:
        os.close(descriptor)
