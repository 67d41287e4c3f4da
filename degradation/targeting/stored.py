"""Scores on the disk: measured once for an experiment and its controls, by whichever process is first, and kept.

A file appears whole or not at all, under a name that holds what its scores depend on; so a run that is killed, resumed
or shared by processes always removes the same units.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import DamagedRecords

SCORES = "scores"
IDENTITY = "identity"


def scores_path(folder: Path, model: str, identity: Mapping[str, Any]) -> Path:
    """Return where the scores lie that depend on `identity` (JSON values)."""
    return folder / f"importance_{model}_{_digest(identity)[:16]}.safetensors"


def kept_scores(
    folder: Path, model: str, identity: Mapping[str, Any], measure: Callable[[], np.ndarray]
) -> tuple[np.ndarray, str]:
    """Return scores and their digest: those on the disk or, where there are none, measured and put there.

    Raises:
        DamagedRecords: the file is damaged, or of other scores.
        OSError: the storage is full, read-only or failing.
    """
    path = scores_path(folder, model, identity)
    if not path.exists():
        _publish(path, measure(), identity)
    try:
        with safe_open(path, framework="numpy") as file:
            known, scores = json.loads(file.metadata()[IDENTITY]), file.get_tensor(SCORES)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedRecords(f"{path} is damaged: move it away, and the importance is measured anew.") from error
    if _digest(known) != _digest(identity):
        raise DamagedRecords(f"{path} holds the importance of something else: move it away.")
    return scores, hashlib.sha256(scores.tobytes()).hexdigest()[:16]


def _publish(path: Path, scores: np.ndarray, identity: Mapping[str, Any]) -> None:
    """Put a file in its place unless another process was first."""
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        save_file({SCORES: np.ascontiguousarray(scores)}, scratch, {IDENTITY: _text(identity)})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)  # of several processes, the first one's scores are everybody's
    finally:
        scratch.unlink(missing_ok=True)


def _text(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, ensure_ascii=False, default=str)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(identity).encode()).hexdigest()
