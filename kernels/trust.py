"""Whether a built library may be loaded: loading runs what is in it, with this user's rights.

A place is trusted if nobody but this user and root can put or swap a file there: every folder from it up to the root
belongs to one of the two, and others cannot write to it, or cannot rename in it what is not theirs (the sticky bit, as
on /tmp). The library itself belongs to one of the two, is no link, and has the hash that was written beside it.
"""

import hashlib
import os
import stat
from pathlib import Path


def _owner_problem(path: Path, found: os.stat_result) -> str | None:
    if found.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to another user (uid {found.st_uid})"
    return None


def _mode_problem(path: Path, found: os.stat_result) -> str | None:
    group_is_private = found.st_gid == found.st_uid  # a group of one's own, as most systems make for every user
    writable = found.st_mode & (stat.S_IWOTH if group_is_private else stat.S_IWOTH | stat.S_IWGRP)
    if not writable or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return None
    return f"{path} can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"


def distrust(path: Path) -> str | None:
    """Return why a file, or the folders that lead to it, cannot be trusted; None if they can.

    What does not exist yet is no problem, and neither is a system without users (Windows).

    Args:
        path: absolute, links resolved but for the last part, which must not be one.
    """
    if not hasattr(os, "geteuid"):
        return None
    for part in (path, *path.parents):
        try:
            found = os.lstat(part)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it will be made, or found in the way
        except OSError as problem:
            return f"{part} cannot be looked at ({problem.strerror})"
        if stat.S_ISLNK(found.st_mode):
            return f"{part} is a link"
        problem = _owner_problem(part, found) or _mode_problem(part, found)
        if problem is not None:
            return problem
    return None


def make_private(folder: Path) -> None:
    """Make a folder and what is missing above it, for this user alone whatever the umask."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _hash_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _sha256(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def record(library: Path) -> None:
    """Write the hash of a library that was just built beside it, whole or not at all."""
    unfinished = library.with_name(f"{library.name}.sha256.{os.getpid()}")
    unfinished.write_text(_sha256(library))
    os.replace(unfinished, _hash_file(library))


def is_as_recorded(library: Path) -> bool:
    """Whether a library is there, with the hash that was recorded."""
    try:
        return library.is_file() and _hash_file(library).read_text() == _sha256(library)
    except (OSError, UnicodeDecodeError):
        return False
