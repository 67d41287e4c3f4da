"""What a start puts right or refuses: lost journals, damaged manifests, half-done rebuilds, rows in the way."""

import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..configs import level_key
from ..errors import DamagedRecords
from .export import JOURNAL_ENDING, SIDE_FILES, rank_files
from .journal import Journal, JournalReader, repair, sync_folder
from .manifest import ExperimentFiles
from .row_checks import SIDE
from .row_keys import check_row, load_json, row_key

logger = logging.getLogger(__name__)


def repair_side_files(folder: Path) -> None:
    """Repair all ranks' lesion and cell files."""
    for name in SIDE_FILES:
        for path in rank_files(folder, name).values():
            reader = JournalReader(path, SIDE[name])
            for _ in reader.new_lines():
                pass
            repair(reader)


def fitting_hash(rows: Iterable[Mapping[str, Any]], hashes: Sequence[str]) -> str | None:
    """Return the first configuration whose keys rows carry, None where it is another one; all of a folder are of one.

    Without rows, the first. Equal prompts after the first do not tell: one row that fits is enough.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return hashes[0]
    for row in itertools.chain([first], rows):
        cell = (row["param_group_name"], row["degradation_method"], level_key(row["level_value"]))
        place = row["repeat_index"], row["prompt_text"], 0, row["image_sha256"]
        for each in hashes:
            if row_key(each, *cell, *place) == row["row_key"]:
                return each
    return None


def archive(files: ExperimentFiles) -> Path:
    """Move an experiment's files to names with a time in them; return the journal's new folder."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for number in itertools.count(1):
        stem = f"{files.stem}.archived-{stamp}-{number}"
        folder = files.journal_dir.with_name(stem + JOURNAL_ENDING)
        if not folder.exists():
            break
    # The JSON file first: it alone would look like an experiment that has lost its journal.
    if files.json_path.exists():
        os.replace(files.json_path, files.json_path.with_name(f"{stem}.json"))
    os.rename(files.journal_dir, folder)
    sync_folder(files.results_dir)
    return folder


# --- rows that only the JSON file has


def exported_rows(json_path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON file, none where there is no file or it is empty.

    Raises:
        DamagedRecords: it is not a JSON list of rows.
    """
    way_out = "and its journal is gone: move it away to start anew."
    try:
        rows = load_json(json_path.read_bytes() or b"[]")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DamagedRecords(f"{json_path} is no JSON ({error}), {way_out}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DamagedRecords(f"{json_path} is not a list of rows, {way_out}")
    return rows


def refuse_lost_rows(what: str, json_path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise DamagedRecords if there are rows that only the JSON file holds."""
    if rows:
        raise DamagedRecords(
            f"{what}, but {json_path} holds {len(rows)} rows: --rebuild takes them into a new journal "
            "(files of the original program: import-legacy); or move that file away to start anew."
        )


def check_exported(json_path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise DamagedRecords if a row of a JSON file breaks the contract."""
    try:
        for row in rows:
            check_row(row)
    except ValueError as error:
        raise DamagedRecords(f"{json_path}: {error} Files of the original program: import-legacy.") from error


def adopt_rows(journal_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows as they are, attempts included, to the first rank's journal."""
    journal = Journal(journal_dir / "rank-00000.jsonl")
    try:
        journal.append(rows)
    finally:
        journal.close()
    logger.warning("%s: %d rows taken from the JSON file.", journal_dir, len(rows))
