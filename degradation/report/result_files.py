"""The files of an experiment as the analysis reads them: the exported rows, and the journal's records beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DamagedRecords
from ..records.journal import JournalReader
from ..records.row_checks import DATA, SIDE, check_result_row, depth
from ..records.row_keys import load_json

DEEPEST = 50  # of a manifest; ours are 6 deep


@dataclass
class ResultFile:
    """What was read of one experiment.

    rows: the exported rows that hold an answer. lost: number of rows that hold none (out of memory, error).
    lesions, cells: the journal's records, empty where there is no journal. manifest: likewise.
    problems: what was wrong with the file, in clauses that follow its name.
    """

    path: Path
    rows: list[dict[str, Any]]
    lost: int = 0
    lesions: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """The sets or files of prompts that the manifest's runs name."""
        found: list[Any] = list(self.manifest.get("runs", ()))
        for name in ("manifest", "config", "prompts"):
            found = [entry.get(name) if isinstance(entry, dict) else None for entry in found]
        return [name for name in found if isinstance(name, str)]


def read_results(paths: Iterable[str | Path]) -> list[ResultFile]:
    """Read result files, with the lesions, cells and manifest of `<name>.journal/` beside each.

    Raises:
        ValueError: a file is missing, is given twice or is no export of this package; the message says which.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ValueError("no result file was given.")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is given twice.")
    files = [_read(path) for path in paths]
    if not any(file.rows for file in files):
        raise ValueError(f"{', '.join(path.name for path in paths)}: there is no row with an answer.")
    return files


def _read(path: Path) -> ResultFile:
    rows = _read_rows(path)
    kept = [row for row in rows if row["status"] in DATA]
    file = ResultFile(path, kept, lost=len(rows) - len(kept))
    if file.lost:
        file.problems.append(f"{file.lost} of {len(rows)} rows hold no answer (status oom or error).")
    _drop_twice(file)
    journal = path.with_suffix(".journal")
    if not journal.is_dir():
        file.problems.append("no journal lies beside it, so versions, log-perplexity and KL may be missing.")
        return file
    file.lesions = _journal_rows(journal, "lesions", file.problems)
    file.cells = _journal_rows(journal, "cells", file.problems)
    file.manifest = _read_manifest(journal / "manifest.json")
    return file


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest as far as a report tells of it: whatever checksum it has, but of the shape it is written in.

    Raises:
        DamagedRecords: it is no JSON, or of another shape.
    """
    if not path.is_file():
        return {}
    try:
        manifest = load_json(path.read_bytes())
    except ValueError as error:
        way_out = "The next run of the experiment makes it anew; or move it away to do without."
        raise DamagedRecords(f"{path}: this is no JSON ({error}). {way_out}") from error
    runs = manifest.get("runs", []) if isinstance(manifest, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs) or depth(manifest) > DEEPEST:
        raise DamagedRecords(f"{path}: this is no manifest of an experiment: move it away to do without.")
    return manifest


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such result file; give the outputs_*.json of experiments.")
    try:
        rows = load_json(path.read_bytes())
    except ValueError as error:
        raise _without_rows(path, f"this is no JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise _without_rows(path, "a result file is a JSON list of rows")
    for place, row in enumerate(rows):
        check_result_row(row, f"{path}: row {place}")
    return rows


def _without_rows(path: Path, reason: str) -> Exception:
    """The error of a file that is no list of rows: damage, but a mistake where nothing says that it was a result."""
    journal = path.with_suffix(".journal")
    if journal.is_dir():
        return DamagedRecords(f"{path}: {reason}. The command export {journal} writes it anew.")
    if path.match("outputs_*.json"):
        return DamagedRecords(f"{path}: {reason}, and no journal lies beside it to write it anew from.")
    return ValueError(f"{path}: {reason}; give the outputs_*.json of experiments.")


def _drop_twice(file: ResultFile) -> None:
    """Keep the highest attempt of rows that are there more than once, as after joining files by hand."""
    best: dict[tuple, dict[str, Any]] = {}
    for row in file.rows:
        key = identity(row)
        if key not in best or (row.get("attempt") or 0) >= (best[key].get("attempt") or 0):
            best[key] = row
    if len(best) < len(file.rows):
        file.problems.append(f"{len(file.rows) - len(best)} rows stood there twice; the latest counts.")
        file.rows = list(best.values())


def identity(row: Mapping[str, Any]) -> tuple:
    """What must be different between any two rows of an experiment."""
    return (*series_key(row), damage_level(row), row["repeat_index"], row["prompt_id"], row["prompt_text"])


def series_key(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return what a row's curve over levels belongs to: model, task, method, group, experiment."""
    return (
        row["model_name"],
        row["prompt_group"],
        row["degradation_method"],
        row["param_group_name"],
        row["experiment_id"],
    )


def run_of(experiment: str) -> str:
    """Return the last part of an experiment's id, `name_suffix`: what tells runs of a model and a method apart."""
    return experiment.rpartition("|")[2]


def damage_level(record: Mapping[str, Any]) -> float | None:
    """Return the level of a row, cell or lesion, to 12 digits; None is the baseline, whatever its level is called."""
    level = record["level_value"]
    if level is None or level == 0 or record.get("is_baseline"):
        return None
    return float(f"{level:.12g}")


def _journal_rows(folder: Path, name: str, problems: list[str]) -> list[dict[str, Any]]:
    """The good records of a side file; repairing it is the next run's work, here bad lines are only mentioned."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    reader = JournalReader(path, SIDE[name])
    rows = [line.row for line in reader.new_lines()]
    if reader.bad:
        problems.append(f"{len(reader.bad)} damaged lines of the journal's {path.name} were left out.")
    return rows


def common(values: Iterable[Any]) -> Sequence[Any]:
    """Return the different values, in order of first appearance."""
    return list(dict.fromkeys(values))
