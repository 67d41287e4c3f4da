"""One experiment's files, as one object: open, ask what is finished, append, export.

with Store.open("results", "mult_gauss", "gemma-3-4b-it", "dreams", config_fields=..., manifest=...) as store:
    store.preflight(rows_left)
    if key not in store.finished:
        store.append([row])          # safe on the disk on return
    store.export()

The journals are the source of truth, the JSON file is derived from them. Rank 0 opens first: it holds the lock,
repairs all ranks' files and owns the manifest; the other ranks open afterwards and write files of their own.
"""

import dataclasses
import errno
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frankenlm.trainer_ext.common.checks import check_choice

from ..errors import ConfigConflict
from .claims import Claims
from .export import (
    SIDE_FILES,
    RowIndex,
    attempt_of,
    check_export,
    check_places,
    export_folder,
    rank_files,
    remove_temporaries,
    side_key,
    side_records,
)
from .journal import Journal, sync_folder
from .known_rows import KnownRows
from .locks import ExperimentLock
from .manifest import ExperimentFiles, note_run, read_manifest, write_manifest
from .recovery import (
    adopt_rows,
    archive,
    check_exported,
    exported_rows,
    refuse_lost_rows,
    repair_side_files,
)
from .row_keys import READING_FIELDS, ROW_FIELDS, SCHEMA_VERSION, check_row

logger = logging.getLogger(__name__)

BYTES_PER_ROW = 3000
COPIES = 2  # every row is in the journal and in the JSON file
EXPORT_SHARE = 20  # export_if_due spends at most 1/20 of the time on exports
ON_CONFLICT = ("stop", "new-suffix", "archive")


class Store:
    """The files of one experiment, open for one process. Made by `Store.open`.

    Attributes:
        files: where they lie; their suffix is another than was asked for after on_conflict="new-suffix".
        known: the configuration that decides whether the rows there are this run's.
        claims: of cells, by which processes share the work.
    """

    def __init__(self, files: ExperimentFiles, config_fields: Mapping[str, Any], rank: int, world_size: int):
        self.files = files
        self.rank = rank
        self.world_size = world_size
        self.claims = Claims(files.journal_dir / "claims", rank)
        self.known = KnownRows(files, config_fields)
        self._lock = ExperimentLock(files.journal_dir / "lock")
        self._index = RowIndex(files.journal_dir)
        self._journals: dict[str, Journal] = {}
        self._side: dict[str, dict[tuple, dict[str, Any]]] = {}  # the last record of each cell
        self._manifest: dict[str, Any] = {}
        self._rows_left: int | None = None
        self._export_ended = self._export_took = 0.0

    # --- opening

    @classmethod
    def open(
        cls,
        results_dir: str | os.PathLike,
        method: str,
        model_short_name: str,
        suffix: str,
        *,
        config_fields: Mapping[str, Any],
        manifest: Mapping[str, Any],
        rank: int = 0,
        world_size: int = 1,
        wait_lock: bool = False,
        on_conflict: str = "stop",
        rebuild: bool = False,
    ) -> "Store":
        """Open an experiment, new or begun, and put right what a kill or a crash left behind.

        Args:
            config_fields: all that decides what a row holds, apart from its cell and prompt; JSON values.
            manifest: versions, hardware, prompt list, full configuration: kept once for every run that differs.
            rank, world_size: of this process. Rank 0 opens first, the others after it is done.
            wait_lock: wait for another process instead of raising ExperimentLocked.
            on_conflict: where rows of other `config_fields` are: stop; new-suffix: take the first free of suffix-2,
                suffix-3 ...; archive: move them to names with a time in them.
            rebuild: take rows that the journal has lost from the JSON file.

        Raises:
            ConfigConflict: rows of other `config_fields` are there; the message says which fields differ.
            ExperimentLocked: another process works on this experiment.
            DamagedRecords: the journal is gone while the JSON file is there, or something is of a newer schema.
            OSError: the storage is full, read-only or failing.
            ValueError: `on_conflict` is none of the three.
        """
        check_choice("on_conflict", on_conflict, ON_CONFLICT)
        suffixes = itertools.chain([suffix], (f"{suffix}-{number}" for number in itertools.count(2)))
        files = ExperimentFiles(Path(results_dir), method, model_short_name, next(suffixes))
        while True:
            store = cls(files, config_fields, rank, world_size)
            try:
                store._open(manifest, wait_lock, rebuild)
                return store
            except BaseException as error:
                try:
                    if not isinstance(error, ConfigConflict) or on_conflict == "stop":
                        raise
                    files = store._evade(on_conflict, suffixes)
                finally:
                    store.close()

    def _evade(self, on_conflict: str, suffixes: Iterator[str]) -> ExperimentFiles:
        """Return the files to try next, after rows of another configuration were found here."""
        logger.warning("%s holds rows of another configuration.", self.files.journal_dir)
        if on_conflict == "new-suffix":
            return dataclasses.replace(self.files, suffix=next(suffixes))
        if self.rank == 0:
            logger.warning("They are now in %s.", archive(self.files))
            return self.files
        raise RuntimeError(f"rank {self.rank} opened {self.files.journal_dir} before rank 0 was done.")

    def _open(self, manifest: Mapping[str, Any], wait_lock: bool, rebuild: bool) -> None:
        if self.rank == 0:
            self._open_first(manifest, wait_lock, rebuild)
        else:
            self._open_later()
        self._read_side_files()
        for name in ("rank", *SIDE_FILES):
            self._journals[name] = Journal(self.files.journal_dir / f"{name}-{self.rank:05d}.jsonl")

    def _open_first(self, manifest: Mapping[str, Any], wait_lock: bool, rebuild: bool) -> None:
        check_places(self.files.journal_dir, self.files.json_path, self.world_size)
        self._make_folder(rebuild)
        self._lock.acquire(wait_lock)
        remove_temporaries(self.files.journal_dir, self.files.json_path)
        known = read_manifest(self.files.manifest_path)
        if known is not None:
            self.known.check_manifest(known)
        self._index.refresh()
        self._index.repair()
        repair_side_files(self.files.journal_dir)
        if known is None:
            self.known.check_rows(self.rows(), ((), READING_FIELDS))
        self._manifest = known or self.known.manifest()
        self._find_lost_rows(rebuild, known is None)
        check_export(self.files.json_path)
        changed = self.known.note_unrecorded(self._manifest)
        if note_run(self._manifest, manifest, self.world_size) or changed:
            write_manifest(self.files.manifest_path, self._manifest)
        self.claims.forget()

    def _open_later(self) -> None:
        known = read_manifest(self.files.manifest_path)
        if known is None:
            raise RuntimeError(f"rank {self.rank} opened {self.files.journal_dir} before rank 0 was done.")
        self.known.check_manifest(known)
        self._index.refresh()

    def _make_folder(self, rebuild: bool) -> None:
        self.files.results_dir.mkdir(parents=True, exist_ok=True)
        if self.files.journal_dir.is_dir():
            return
        if not rebuild:
            path = self.files.json_path
            refuse_lost_rows(f"{self.files.journal_dir.name} is gone", path, exported_rows(path))
        self.files.journal_dir.mkdir(exist_ok=True)
        sync_folder(self.files.results_dir)

    def _find_lost_rows(self, rebuild: bool, new: bool) -> None:
        """Refuse to go on, or rebuild, where the JSON file holds rows of a journal that is gone.

        Args:
            new: the manifest was gone too.
        """
        marker = self.files.journal_dir / "rebuilding"  # a rebuild agreed to before a kill is carried on
        gone = [name for name in self._manifest["rank_files"] if not (self.files.journal_dir / name).exists()]
        if self._index.entries and not gone and not marker.exists():
            return
        rows = [row for row in exported_rows(self.files.json_path) if row.get("row_key") not in self._index.entries]
        if not rebuild and not marker.exists():
            refuse_lost_rows(f"{', '.join(gone) or 'every row of the journal'} is gone", self.files.json_path, rows)
            return
        check_exported(self.files.json_path, rows)
        as_known = tuple(self.known.unrecorded)
        self.known.check_rows(rows, ((), READING_FIELDS) if new and not self._index.entries else (as_known,))
        if new:
            self._manifest = self.known.manifest()
        marker.touch()
        adopt_rows(self.files.journal_dir, rows)
        self._index.refresh()
        self._note_rank_files()
        marker.unlink()

    # --- what is there

    @property
    def finished(self) -> dict[str, int]:
        """The rows that need not be written again, of all ranks: row_key -> attempt."""
        return self._index.finished()

    def refresh(self) -> None:
        """Take in what other ranks have written since this store was opened."""
        self._index.refresh()
        self._read_side_files()

    def _read_side_files(self) -> None:
        for name in SIDE_FILES:
            self._side[name] = {side_key(name, record): record for record in side_records(self.files.journal_dir, name)}

    def places(self, group: str) -> dict[str, tuple[float | None, int]]:
        """Return level and repeat_index of every row of a group, by row_key; read from memory."""
        entries = self._index.entries.items()
        return {key: (entry.level, entry.order[2]) for key, entry in entries if entry.order[0] == group}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the order of the export."""
        return map(json.loads, self._index.rows())

    def lesions(self) -> list[dict[str, Any]]:
        """Return the lesion records of all ranks, one a cell."""
        return side_records(self.files.journal_dir, "lesions")

    def cells(self) -> list[dict[str, Any]]:
        """Return the cell records of all ranks, one a cell."""
        return side_records(self.files.journal_dir, "cells")

    def known_cell(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the last record of the same cell as `record`, as of the last refresh; None where there is none."""
        return self._side["cells"].get(side_key("cells", record))

    # --- writing

    def preflight(self, rows: int) -> None:
        """Make sure that there is room for so many more rows, before any work is done.

        Raises:
            OSError: (ENOSPC) there is not; the message names the bytes needed and free.
        """
        self._rows_left = rows
        needed, free = rows * BYTES_PER_ROW * COPIES, shutil.disk_usage(self.files.journal_dir).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{rows} rows need about {needed:,} bytes, only {free:,} are free where {self.files.journal_dir} lies",
            )

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, all or none; on return they are safe on the disk.

        `schema_version`, `rank` and `attempt` (one above the last of the same key) are set here.

        Raises:
            ValueError: a row breaks the contract, or two of them have one key; nothing was written.
            OSError: the storage is full, read-only or failing; the message names the bytes needed.
        """
        ready = [self._complete(row) for row in rows]
        if len({row["row_key"] for row in ready}) < len(ready):
            raise ValueError("two rows of one call have the same row_key.")
        journal = self._journals["rank"]
        places = self._write(journal, ready)
        self._index.add_written(self.rank, journal.path, places, ready)
        if self._rows_left is not None:
            self._rows_left = max(0, self._rows_left - len(ready))

    def _complete(self, row: Mapping[str, Any]) -> dict[str, Any]:
        last = self._index.entries.get(row["row_key"])
        attempt = last.attempt + 1 if last else 1
        row = {**row, "schema_version": SCHEMA_VERSION, "rank": self.rank, "attempt": attempt}
        check_row(row)
        return {name: row[name] for name in ROW_FIELDS}

    def _write(self, journal: Journal, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        self._lock.check()
        try:
            return journal.append(rows)
        except OSError as error:
            raise self._explained(error, journal.path) from error

    def _explained(self, error: OSError, path: Path) -> OSError:
        left = self._rows_left
        needed = "" if left is None else f"; the {left} rows left need about {left * BYTES_PER_ROW * COPIES:,} bytes"
        return OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}){needed}. Rows written before are safe: make room and "
            "start again",
        )

    def renumber(self, plan: Mapping[str, tuple[int, int | None]]) -> int:
        """Give rows that exist the places they have in lists of levels and prompts that have grown.

        Args:
            plan: row_key -> (level_index, prompt_id); prompt_id None: as it is.

        Returns:
            How many rows were written again under new numbers, as another attempt.
        """
        moved = {}
        for key in plan.keys() & self._index.entries.keys():
            _, level_index, _, prompt_id = self._index.entries[key].order
            place = plan[key][0], prompt_id if plan[key][1] is None else plan[key][1]
            if place != (level_index, prompt_id):
                moved[key] = place
        if moved:
            found = [row for row in self.rows() if row["row_key"] in moved]
            for row in found:
                row["level_index"], row["prompt_id"] = moved[row["row_key"]]
            self.append(found)
        return len(moved)

    def append_lesion(self, record: Mapping[str, Any]) -> None:
        """Write the lesion record of a cell; a later one of the same cell takes its place."""
        self._append_side("lesions", record)

    def append_cell(self, record: Mapping[str, Any]) -> None:
        """Write the record of a finished cell; a later one of the same cell takes its place."""
        self._append_side("cells", record)

    def _append_side(self, name: str, record: Mapping[str, Any]) -> None:
        missing = [field for field in SIDE_FILES[name] if field not in record]
        if missing:
            raise ValueError(f"a record of {name} lacks {', '.join(missing)}.")
        key = side_key(name, record)
        last = self._side[name].get(key)
        record = {**record, "attempt": attempt_of(last) + 1 if last else 1}
        self._write(self._journals[name], [record])
        self._side[name][key] = record

    # --- export and end

    def export(self) -> Path:
        """Write the JSON file, `lesions.jsonl` and `cells.jsonl` from the journals of all ranks; rank 0 only.

        Returns:
            The JSON file.

        Raises:
            OSError: the storage is full, read-only or failing; the old file is intact.
        """
        if self.rank:
            raise RuntimeError(f"rank {self.rank} must not export; rank 0 does.")
        started = time.monotonic()
        self._index.refresh()
        try:
            export_folder(self.files.journal_dir, self.files.json_path, self._index)
            self._note_rank_files()
        except OSError as error:
            raise self._explained(error, self.files.json_path) from error
        self._export_ended = time.monotonic()
        self._export_took = self._export_ended - started
        return self.files.json_path

    def export_if_due(self) -> Path | None:
        """Export unless that would take up more than a small share of the time; None where it was not due."""
        due = time.monotonic() - self._export_ended >= EXPORT_SHARE * self._export_took
        return self.export() if due else None

    def _note_rank_files(self) -> None:
        names = [path.name for path in rank_files(self.files.journal_dir, "rank").values()]
        if names != self._manifest["rank_files"]:
            self._manifest["rank_files"] = names
            write_manifest(self.files.manifest_path, self._manifest)

    def close(self) -> None:
        """Close the files and give the lock back; closing twice is allowed."""
        for journal in self._journals.values():
            journal.close()
        self._journals = {}
        self._lock.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
