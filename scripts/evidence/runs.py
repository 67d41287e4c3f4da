"""The runs of the memory evidence on disk: one JSON file a run, written in one go, and kept checkpoints.

    runs/<table>/<model>_lr<rate>_seed<seed>.json
    checkpoints/<table>/<model>_lr<rate>_seed<seed>/    only of models that are measured again later

A finished run is not repeated. One that was made with other settings is never mixed with new ones.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_json

KEYS = {
    "table",
    "model",
    "learning_rate",
    "seed",
    "settings",
    "processor",
    "threads",
    "versions",
    "parameters",
    "held_out",
    "memory",
    "same_document_neighbours",
    "evaluation_cpu_seconds",
}
MEASURES = {"loss", "perplexity", "bits_per_byte"}
# the key of a run whose loss was no number any more: what training said; its measures are null
GAVE_UP = "gave_up"


@dataclass(frozen=True)
class RunKey:
    """Which run: table, model, peak learning rate, seed."""

    table: str
    model: str
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.table}/{self.model}_lr{self.learning_rate:g}_seed{self.seed}"


class RunStore:
    """Reads and writes the runs below one output folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: RunKey) -> Path:
        return self.folder / "runs" / f"{key}.json"

    def checkpoint(self, key: RunKey) -> Path:
        return self.folder / "checkpoints" / str(key)

    def read(self, key: RunKey) -> dict[str, Any] | None:
        """Return a finished run, or None.

        Raises:
            UserError: its file is damaged.
        """
        path = self.path(key)
        return _read_json(path) if path.is_file() else None

    def finished(self, key: RunKey, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a finished run made with these settings, or None.

        Raises:
            UserError: it was made with others; the message names them.
        """
        run = self.read(key)
        if run is None:
            return None
        changes = differences(run["settings"], _as_json(settings))
        if changes:
            raise UserError(
                f"{self.path(key)} was made with other settings ({'; '.join(changes[:4])}). Use another --output_dir, "
                "or remove the file to run it again."
            )
        return run

    def write(self, key: RunKey, run: Mapping[str, Any]) -> None:
        """Write a finished run; the file is there whole or not at all."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run)

    def keep_model(self, key: RunKey, model: PreTrainedModel) -> None:
        """Save a model as safetensors, in place of what an interrupted run may have left there."""
        folder = self.checkpoint(key)
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        model.save_pretrained(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)

    def all_runs(self, table: str) -> list[dict[str, Any]]:
        """Return every finished run of a table, sorted by file name."""
        return [_read_json(path) for path in sorted((self.folder / "runs" / table).glob("[!.]*.json"))]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `name: old, now new` for every value that differs between two nested dicts."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "nothing"), new.get(name, "nothing")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before}, now {after}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to run it again.") from error
    if not _is_run(run):
        raise UserError(f"{path} holds no run; remove it to run it again.")
    return run


def _is_run(run: Any) -> bool:
    """Whether a file says what every run says, so that a report can read it."""
    if not isinstance(run, dict) or not run.keys() >= KEYS:
        return False
    held_out, settings = run["held_out"], run["settings"]
    return (
        isinstance(settings, dict)
        and {"recipe", "data", "config"} <= settings.keys()
        and isinstance(held_out, dict)
        and all(isinstance(split, dict) and split.keys() >= MEASURES for split in held_out.values())
        and isinstance(held_out.get("validation"), dict)
    )


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings look like after a journey through a file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(settings))
