"""Checkpoints on the disk: which are whole, in which order they were written, and what is wrong with the others.

Nothing is unpickled: files are held to the sizes and sums that resume.json has; without it (older versions) to what
their formats allow to check, tensors alone being read of what torch.save wrote.
"""

import contextlib
import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from ..common.cli import one_line
from .checkpoint_record import CheckpointRecord, digest, read_record, read_record_or_none

logger = logging.getLogger("frankenlm.saved_checkpoints")

STATE = "trainer_state.json"
PREFIX = "checkpoint-"
# What a training goes on from besides the weights; without one of them it goes on, but not as it would have.
STATE_FILES = ("optimizer.pt", "scheduler.pt")
# What the readers of JSON, safetensors, zip files and tensors raise.
DAMAGE = (ValueError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)
# Weights that FSDP gathers for going on, beside model.safetensors; its optimizer.bin is gathered too.
WHOLE_FSDP = "pytorch_model_fsdp.bin"
# Folders of FSDP and DeepSpeed, which keep optimizers in a form of their own.
SHARDED = ("pytorch_model_fsdp_*", "optimizer_*", "global_step*")


@dataclass(frozen=True)
class SavedCheckpoint:
    """damage: why it cannot be used, None if it can. missing: state files without which it only goes on inexactly."""

    folder: Path
    record: CheckpointRecord | None
    damage: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.damage is None and not self.missing

    @property
    def fault(self) -> str:
        """What is wrong with it, in words."""
        return self.damage or f"{', '.join(self.missing)} {'is' if len(self.missing) == 1 else 'are'} missing"


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """Return the folders named checkpoint-STEP, whoever made them, by step."""
    found = (path for path in output_dir.glob(f"{PREFIX}*") if path.is_dir())
    return sorted((path for path in found if step_of(path) is not None), key=step_of)


def step_of(folder: Path) -> int | None:
    """The step that a folder's name claims; None for other names."""
    step = folder.name.removeprefix(PREFIX)
    return int(step) if step.isascii() and step.isdigit() else None


def newest_first(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, the one written last first: after going back to an earlier one, steps mislead."""
    return sorted(checkpoint_folders(output_dir), key=lambda folder: (_saved(folder), step_of(folder)), reverse=True)


def _saved(folder: Path) -> int:
    """When a checkpoint was written, in nanoseconds; without a record, as the file system has it."""
    record = read_record_or_none(folder)
    if record is not None:
        return record.saved
    state = folder / STATE
    return (state if state.is_file() else folder).stat().st_mtime_ns


def examine(folder: Path, world_size: int) -> SavedCheckpoint:
    """Look a checkpoint over, for a run of `world_size` processes."""
    try:
        check_state(folder)
        record = read_record(folder)
        damaged, missing = _held_to_record(folder, record) if record else (None, ())
        if damaged is None and record is None:
            _check_formats(folder)
    except (OSError, *DAMAGE) as error:
        return SavedCheckpoint(folder, None, one_line(error))
    if damaged is None and record is not None and record.health.fault is not None:
        damaged = f"not healthy: {record.health.fault}"
    missing = tuple(dict.fromkeys([*missing, *_expected_but_missing(folder, world_size)]))
    return SavedCheckpoint(folder, record, damaged, missing)


def check_state(folder: Path) -> None:
    """Raises ValueError where trainer_state.json is missing, cut short or lacks what a run goes on from."""
    path = folder / STATE
    if not path.is_file():
        raise ValueError(f"incomplete (no whole {STATE})")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"incomplete (no whole {STATE})") from error
    kinds = {"global_step": int, "max_steps": int, "log_history": list, "stateful_callbacks": dict}
    for name, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(name), kind) or isinstance(state[name], bool):
            raise ValueError(f"incomplete (no whole {STATE}: {name} is missing or odd)")
    if state["global_step"] < 0 or any(not isinstance(logs, dict) for logs in state["log_history"]):
        raise ValueError(f"{STATE} is damaged")


def _held_to_record(folder: Path, record: CheckpointRecord) -> tuple[str | None, tuple[str, ...]]:
    """Compare the files with what was written: (the first damage, missing state files)."""
    missing = []
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            if not _is_state_file(name):
                return f"{name} is missing", ()
            missing.append(name)
        elif path.stat().st_size != expected[0]:
            return f"{name} is damaged ({path.stat().st_size} bytes, {expected[0]} were written)", ()
        elif digest(path) != expected:
            return f"{name} is damaged (its bytes are not those that were written)", ()
    return None, tuple(missing)


def _is_state_file(name: str) -> bool:
    return name in (*STATE_FILES, "optimizer.bin", "scaler.pt") or name.startswith("rng_state")


def _expected_but_missing(folder: Path, world_size: int) -> list[str]:
    if any(True for pattern in SHARDED for _ in folder.glob(pattern)):
        return []
    state_files = STATE_FILES if not (folder / WHOLE_FSDP).is_file() else ("optimizer.bin", "scheduler.pt")
    rngs = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    return [name for name in (*state_files, *rngs) if not (folder / name).is_file()]


def _check_formats(folder: Path) -> None:
    """Raises an error of the format for weights or state files that are cut short or are something else."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not any(True for pattern in ("*.bin", *SHARDED) for _ in folder.glob(pattern)):
        raise ValueError("it holds no weights")
    for path in weights:
        with _named(path), safe_open(path, framework="pt") as file:
            list(file.keys())
    for path in (*folder.glob("*.pt"), *folder.glob("*.pth")):
        with _named(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("its checksum is wrong")
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put a file's name before what is wrong with it."""
    try:
        yield
    except (*DAMAGE, KeyError) as error:
        raise ValueError(f"{path.name} is damaged ({one_line(error)})") from error


def examined(output_dir: Path, world_size: int) -> Iterator[SavedCheckpoint]:
    """Yield the checkpoints of a folder, the one written last first, each examined as it is asked for."""
    for folder in newest_first(output_dir):
        yield examine(folder, world_size)
