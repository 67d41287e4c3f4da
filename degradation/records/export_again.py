"""The command export: an experiment's JSON file, written anew from its journal."""

import os
from pathlib import Path

from .export import JOURNAL_ENDING, RowIndex, check_export, check_places, export_folder, rank_files
from .locks import ExperimentLock
from .manifest import read_manifest
from .recovery import exported_rows, refuse_lost_rows


def export_command(path: str | os.PathLike) -> Path:
    """Write the JSON file of an experiment anew from its journal.

    Args:
        path: the JSON file, the journal's folder, or a file in it.

    Returns:
        The JSON file.

    Raises:
        ValueError: there is no journal, or something of somebody else is in the way; nothing was made.
        ExperimentLocked, DamagedRecords, OSError: as `Store.open`.
    """
    folder = journal_of(path)
    json_path = folder.with_name(folder.name.removesuffix(JOURNAL_ENDING) + ".json")
    if not rank_files(folder, "rank") and not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} holds no rank-00000.jsonl and no manifest, so it is no journal.")
    check_places(folder, json_path)
    check_export(json_path)
    lock = ExperimentLock(folder / "lock")
    lock.acquire()
    try:
        index = RowIndex(folder)
        index.refresh()
        index.repair()
        _refuse_lost_rows(folder, json_path, index)
        export_folder(folder, json_path, index)
    finally:
        lock.release()
    return json_path


def _refuse_lost_rows(folder: Path, json_path: Path, index: RowIndex) -> None:
    """Raise DamagedRecords where the JSON file holds rows of a journal that is gone: they would go, too."""
    known = read_manifest(folder / "manifest.json") or {}
    gone = [name for name in known.get("rank_files", ()) if not (folder / name).exists()]
    if not index.entries or gone:
        rows = [row for row in exported_rows(json_path) if row.get("row_key") not in index.entries]
        refuse_lost_rows(f"{', '.join(gone) or 'every row of the journal'} is gone", json_path, rows)


def journal_of(path: str | os.PathLike) -> Path:
    """Return the journal's folder of a JSON file, of itself, or of a file in it.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    beside = path.with_name(path.name.removesuffix(".json") + JOURNAL_ENDING)
    for folder in (path, beside, path.parent):
        if folder.name.endswith(JOURNAL_ENDING) and folder.is_dir():
            return folder
    raise ValueError(f"{path} is no journal, and there is none beside it (a folder named OUTPUTS{JOURNAL_ENDING}).")
