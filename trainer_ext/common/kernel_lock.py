"""The kernel's lock of an open file or folder: it goes with its holder, however that dies, and leaves no file."""

import errno

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# what file systems without such locks answer; EBADF: NFS, of a folder, which cannot be opened for writing
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF})


def lock_descriptor(descriptor: int) -> bool | None:
    """Take the kernel lock of an open file: True when taken, False when another has it, None without such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True
