"""An experiment's files of 18 rows, for the tests of the store."""

import json

from frankenlm.degradation.records.store import Store
from record_rows import CONFIG, NAMES, make_row

MANIFEST = {"versions": {"torch": "2"}}
# what a row of another run, rank or attempt may differ in
LOOSE = {"attempt", "rank", "timestamp", "duration", "batch_duration"}
ROWS = [make_row(prompt, repeat, level) for level in range(3) for repeat in range(2) for prompt in (1, 2, 3)]


def open_store(folder, config=CONFIG, **options):
    return Store.open(folder, *NAMES, config_fields=config, manifest=MANIFEST, **options)


def open_and_count(folder, **options):
    with open_store(folder, **options) as opened:
        return opened.finished


def paths(folder):
    stem = folder / "outputs_mult_gauss_tiny_test"
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".journal")


def exported(opened):
    return json.loads(opened.files.json_path.read_text(encoding="utf-8"))


def shape(rows):
    """Rows without what may differ."""
    return [{name: value for name, value in row.items() if name not in LOOSE} for row in rows]
