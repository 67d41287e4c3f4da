"""An experiment's files and its manifest: what the rows were made with, written once, compared at every start.

results/outputs_{method}_{model}_{suffix}.json        all rows, one JSON array
results/outputs_{method}_{model}_{suffix}.journal/    manifest.json, lock, rank-00000.jsonl ..., lesions.jsonl, cells.jsonl
"""  # noqa: E501

import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .export import JOURNAL_ENDING
from .journal import beside, refuse_newer, replace_file
from .row_keys import SCHEMA_VERSION, canonical_json, config_hash, load_json

logger = logging.getLogger(__name__)

# illegal in file names somewhere, or a separator of folders
UNFIT = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
KINDS = {
    "schema_version": int,
    "names": dict,
    "config_hash": str,
    "config_fields": dict,
    "rank_files": list,
    "runs": list,
}
LONGEST_NAME = 255  # bytes, on nearly every file system
ARCHIVE_ENDING = ".archived-20250101T000000-1000"
SHOWN = 8  # differences named in a message


@dataclass(frozen=True)
class ExperimentFiles:
    """Where the files of one experiment lie."""

    results_dir: Path
    method: str
    model: str
    suffix: str

    @property
    def stem(self) -> str:
        return f"outputs_{file_part(self.method)}_{file_part(self.model)}_{file_part(self.suffix)}"

    @property
    def json_path(self) -> Path:
        return self.results_dir / f"{self.stem}.json"

    @property
    def journal_dir(self) -> Path:
        return self.results_dir / f"{self.stem}{JOURNAL_ENDING}"

    @property
    def manifest_path(self) -> Path:
        return self.journal_dir / "manifest.json"

    def check_names(self) -> None:
        """Raise ValueError where the names are longer than those of files may be."""
        longest = beside(self.journal_dir.with_name(f".{self.stem}{ARCHIVE_ENDING}"), JOURNAL_ENDING).name
        over = len(os.fsencode(longest)) - LONGEST_NAME
        if over > 0:
            raise ValueError(
                f"name_suffix={self.suffix[:40]!r}...: the names of the files would be {over} bytes too long; take a "
                "shorter suffix, or a model of a shorter name."
            )

    @property
    def names(self) -> dict[str, str]:
        """The names as given; two of them may lead to one file name."""
        return {"method": self.method, "model": self.model, "name_suffix": self.suffix}


def file_part(name: str) -> str:
    """Return a name as part of a file name: what is illegal in one on some system becomes a hyphen."""
    return UNFIT.sub("-", name)


def without(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a mapping without some of its names."""
    return {name: value for name, value in fields.items() if name not in set(names)}


def new_manifest(files: ExperimentFiles, config_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an experiment that has no rows yet, or has lost its manifest."""
    return {
        "schema_version": SCHEMA_VERSION,
        "names": files.names,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_hash": config_hash(config_fields),
        "config_fields": json.loads(canonical_json(config_fields)),
        "rank_files": [],
        "runs": [],
    }


def note_run(manifest: dict[str, Any], made_with: Mapping[str, Any], world_size: int) -> bool:
    """Add what a run is made with, unless the last one was made with the same; return whether it was added."""
    plain = json.loads(json.dumps(made_with, allow_nan=False))
    runs = manifest["runs"]
    if runs and runs[-1]["manifest"] == plain:
        return False
    started = datetime.now(UTC).isoformat(timespec="seconds")
    runs.append({"started": started, "world_size": world_size, "manifest": plain})
    return True


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with its checksum in the place of the one that is there."""
    text = json.dumps({**manifest, "crc": _checksum(manifest)}, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(path, text.encode() + b"\n")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest, None where there is none or it is damaged; a damaged one is copied aside with a warning.

    Raises:
        DamagedRecords: it is of a newer schema.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    manifest = _whole(raw)
    if manifest is None:
        logger.warning("%s is damaged; copied to %s.damaged and made anew.", path, path.name)
        replace_file(beside(path, ".damaged"), raw)
    elif manifest["schema_version"] > SCHEMA_VERSION:
        refuse_newer(str(path), manifest["schema_version"])
    return manifest


def _whole(raw: bytes) -> dict[str, Any] | None:
    try:
        manifest = load_json(raw)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or manifest.pop("crc", None) != _checksum(manifest):
        return None
    complete = all(isinstance(manifest.get(name), kind) for name, kind in KINDS.items())
    return manifest if complete else None


def _checksum(manifest: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(canonical_json(manifest).encode()):08x}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the fields in which two configurations differ, as "name: old -> new", for a message."""
    old, new = _spread(old), _spread(json.loads(canonical_json(new)))
    missing = "(not there)"
    found = [
        f"{name}: {_shown(old.get(name, missing))} -> {_shown(new.get(name, missing))}"
        for name in sorted({*old, *new})
        if old.get(name, missing) != new.get(name, missing)
    ]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _spread(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the entries of its mappings as fields of their own, such as sampling.top_k."""
    spread: dict[str, Any] = {}
    for name, value in fields.items():
        spread |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return spread


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
