"""By which configuration the rows of an experiment are known, and whether those that are there are of this one.

The key of a row holds a hash of the configuration. Journals that were begun before some fields were recorded
(READING_FIELDS) have keys without these; such rows are taken as made with what is there now, and the manifest keeps it.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigConflict
from .manifest import ExperimentFiles, differences, new_manifest, without
from .recovery import fitting_hash
from .row_keys import READING_FIELDS, canonical_json, config_hash

logger = logging.getLogger(__name__)

UNRECORDED = "unrecorded"  # in the manifest: fields that the first rows were written without, as first seen
CONFLICT_WAYS_OUT = "Choose another name_suffix, or --on-conflict new-suffix or archive."


class KnownRows:
    """The configuration of a run beside that of the rows there.

    Attributes:
        unrecorded: the fields, with their values now, that the rows were written without.
        config_hash: of the others, by which the rows are known.
    """

    def __init__(self, files: ExperimentFiles, config_fields: Mapping[str, Any]):
        self.files = files
        self.config_fields = config_fields
        self.unrecorded: dict[str, Any] = {}
        self.config_hash = config_hash(config_fields)

    def leave_out(self, names: Iterable[str]) -> None:
        """Know rows as those were known that were written before fields of these names were recorded."""
        self.unrecorded = {name: self.config_fields[name] for name in names if name in self.config_fields}
        self.config_hash = config_hash(self._recorded())

    def _recorded(self) -> dict[str, Any]:
        return without(self.config_fields, self.unrecorded)

    def check_manifest(self, known: Mapping[str, Any]) -> None:
        """Raise ConfigConflict where a manifest is of another configuration; the message says in what."""
        fields = {**known["config_fields"], **known.get(UNRECORDED, {})}
        self.leave_out([name for name in READING_FIELDS if name not in known["config_fields"]])
        unknown = [name for name in self.unrecorded if name not in fields]
        fits = known["config_hash"] == self.config_hash and known["names"] == self.files.names
        old, new = {**fields, **known["names"]}, without({**self.config_fields, **self.files.names}, unknown)
        if not fits or canonical_json(old) != canonical_json(new):
            raise ConfigConflict(
                f"{self.files.journal_dir} holds rows of another configuration ({differences(old, new)}). "
                f"{CONFLICT_WAYS_OUT}"
            )

    def check_rows(self, rows: Iterable[Mapping[str, Any]], unrecorded: Sequence[Iterable[str]]) -> None:
        """Without a manifest the rows themselves must show that they are of this configuration.

        Args:
            unrecorded: names of fields that the rows may have been written without; the first that fit are taken.

        Raises:
            ConfigConflict: they are of another one.
        """
        hashes = {}
        for names in unrecorded:
            self.leave_out(names)
            hashes.setdefault(self.config_hash, names)
        fitting = fitting_hash(rows, list(hashes))
        if fitting is None:
            raise ConfigConflict(
                f"{self.files.manifest_path} is gone or damaged, and the rows there are not of this configuration. "
                f"{CONFLICT_WAYS_OUT}"
            )
        self.leave_out(hashes[fitting])

    def manifest(self) -> dict[str, Any]:
        """Return a manifest for these rows."""
        return new_manifest(self.files, self._recorded())

    def note_unrecorded(self, manifest: dict[str, Any]) -> bool:
        """Take what the first rows were made with, which nobody knows, for what is there now; from now on it counts.

        Returns:
            Whether the manifest was changed.
        """
        if self.unrecorded and UNRECORDED not in manifest:
            logger.warning(
                "%s was begun before %s were recorded: its rows are taken as made with what is there now. Said once; "
                "from now on a change is a conflict.",
                self.files.journal_dir,
                ", ".join(self.unrecorded),
            )
        if manifest.get(UNRECORDED, {}) == self.unrecorded:
            return False
        manifest[UNRECORDED] = json.loads(canonical_json(self.unrecorded))
        return True
