"""resume.json, which a run leaves in each of its checkpoints: what it wrote there, and what it was told to do.

With it a checkpoint that was damaged, or that belongs to another run, is known without reading a pickle; a folder of
somebody else is never taken for one of this program's; and a run that is continued is compared with what it was.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.files import write_json

RECORD = "resume.json"
FORMAT = 1


@dataclass
class RunRecord:
    """What every checkpoint of a run carries.

    settings: what decides the result, see resuming.py. data: fingerprints of the rows. run: an id of its own.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Health:
    """Whether a checkpoint may be gone on from. fault: what is not finite in it, None where all is.

    eval_loss: of the last evaluation before it, None without one. guard: how often the gradient guard did what.
    """

    fault: str | None = None
    eval_loss: float | None = None
    guard: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint's resume.json.

    files: (size, SHA-256) of everything that the run wrote. saved: nanoseconds since 1970.
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    run: str
    step: int
    saved: int
    files: Mapping[str, tuple[int, str]]
    health: Health = Health()


def write_record(folder: Path, record: RunRecord, step: int, saved: int, health: Health | None = None) -> None:
    """Write resume.json into a checkpoint that holds nothing but what the run wrote."""
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    files = {path.relative_to(folder).as_posix(): digest(path) for path in written}
    about = {"format": FORMAT, "step": step, "saved": saved, "files": files, "health": asdict(health or Health())}
    write_json(folder / RECORD, {**about, **asdict(record)})


def read_record(folder: Path) -> CheckpointRecord | None:
    """Return a checkpoint's record; None where there is none (an older version's checkpoint, or a stranger's folder).

    Raises:
        ValueError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] > FORMAT:
            raise ValueError(f"{RECORD} was written by a newer version")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
        settings, data = dict(raw["settings"]), dict(raw["data"])
        run, step, saved = str(raw["run"]), int(raw["step"]), int(raw["saved"])
        health = Health(**raw["health"]) if "health" in raw else Health()  # unknown in those of older versions
        return CheckpointRecord(settings, data, run, step, saved, files, health)
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{RECORD} is damaged ({type(error).__name__}: {error})") from error


def read_record_or_none(folder: Path) -> CheckpointRecord | None:
    """As `read_record`, with None for a damaged one too: for what must not be deleted on its word."""
    try:
        return read_record(folder)
    except ValueError:
        return None


def digest(path: Path) -> tuple[int, str]:
    """Return a file's size and SHA-256."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
