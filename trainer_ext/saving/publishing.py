"""Folders that appear whole: written beside their place, renamed when all of it is on the disk.

While it is written, `checkpoint-12` lies below `.checkpoint-12.partial`. A run that was killed leaves that behind, and
the next one settles it: what has its resume.json was whole, and moves on; the rest goes.
"""

import os
import re
from pathlib import Path

from ..common.files import write_text
from ..common.folder_lock import locked_folder
from .checkpoint_record import RECORD, read_record_or_none
from .output_folder import AVERAGE, MODEL, PARTIAL, discard, remove_checkpoint
from .saved_checkpoints import PREFIX

# The names that runs give to what is on its way in or out.
OURS = re.compile(rf"\.({PREFIX}\d+|{AVERAGE}|{MODEL})(\.gone)?{re.escape(PARTIAL)}")


def partial_of(folder: Path) -> Path:
    """Where `folder` is written, as a folder below this one."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


def publish(written: Path, folder: Path) -> None:
    """Put a written folder in its place, for what a run left there; files of somebody else stay beside it.

    Raises:
        OSError: the storage is full or read-only.
    """
    _flush(written)
    # one that was being moved when the run was killed is moved to its end
    begun = folder.exists() and read_record_or_none(folder) == read_record_or_none(written) is not None
    if begun or (folder.exists() and remove_checkpoint(folder)):
        _move_files(written, folder)
    else:
        written.rename(folder)
    discard(written.parent)


def publish_files(written: Path, folder: Path) -> None:
    """Move what was written into a folder that holds other things too: each of its files is the old or the new one."""
    _flush(written)
    _move_files(written, folder)
    discard(written.parent)


def settle(output_dir: Path) -> None:
    """Publish the checkpoints that a killed run had written whole, and remove what it had not.

    Raises:
        UserError: the run is going on.
    """
    if not partials(output_dir):
        return
    with locked_folder(output_dir):
        for partial in partials(output_dir):
            for written in sorted(partial.glob(f"{PREFIX}*")):
                if (written / RECORD).is_file():
                    publish(written, output_dir / written.name)
            discard(partial)


def partials(output_dir: Path) -> list[Path]:
    """What was being written or removed when a run was killed."""
    found = (path for path in output_dir.glob(f".*{PARTIAL}") if OURS.fullmatch(path.name))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _flush(written: Path) -> None:
    """Put the files onto the disk: a power cut leaves the earlier checkpoint, or this one."""
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move_files(written: Path, folder: Path) -> None:
    """Move file by file; resume.json, copied first and moved last, tells what is still missing."""
    record = written / RECORD
    if record.is_file():
        write_text(folder / RECORD, record.read_text(encoding="utf-8"))
    for path in sorted((path for path in written.rglob("*") if path.is_file()), key=lambda path: path == record):
        target = folder / path.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
