"""Whether processes can share memory here: a container may come without /dev/shm, or with one that nobody can write."""

import multiprocessing

import torch

from .cli import UserError, one_line


def why_nothing_is_shared() -> str | None:
    """Return what stands against locks and tensors that several processes share; None where they work."""
    try:
        multiprocessing.get_context().Lock()
        torch.zeros(1).share_memory_()
    except (ImportError, OSError, RuntimeError) as error:
        return one_line(error)
    return None


def check_processes(option: str, count: int | None, alone: int) -> None:
    """Make sure that the processes an option asks for can be started.

    Args:
        count: as given. alone: the largest count that starts no process.

    Raises:
        UserError: they could not share memory.
    """
    reason = why_nothing_is_shared() if count is not None and count > alone else None
    if reason:
        raise UserError(
            f"{option} {count}: processes cannot share memory here ({reason}): leave it out, or give the container a "
            "writable /dev/shm."
        )
