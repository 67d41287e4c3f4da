"""What the store has said to be written is on the disk, name and content, when the machine loses its power."""

import os
from pathlib import Path

import pytest

from crash_disk import CrashDisk
from frankenlm.degradation.records.export_again import export_command
from frankenlm.degradation.records.journal import Journal, JournalReader, repair
from frankenlm.degradation.records.recovery import archive
from record_rows import CONFIG, lesion, make_row
from store_files import ROWS, open_store, paths

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc/self/fd")

JSON = "outputs_mult_gauss_tiny_test.json"
JOURNALS = {"manifest.json", "rank-00000.jsonl", "lesions-00000.jsonl", "cells-00000.jsonl"}
CELL = {"param_group_name": "attn_only", "degradation_method": "mult_gauss", "level_value": 0.1, "level_index": 1}


@pytest.fixture
def disk(monkeypatch):
    return CrashDisk(monkeypatch)


def test_every_step_is_on_the_disk_when_it_is_done(tmp_path, disk):
    results = tmp_path / "results"
    with open_store(results) as opened:
        assert disk.check(results) == JOURNALS
        opened.append(ROWS[:3])
        disk.check(results)
        opened.append_lesion(lesion())
        disk.check(results)
        opened.append_cell({**CELL, "repeat_index": 0})
        disk.check(results)
        opened.export()
        assert disk.check(results) == JOURNALS | {JSON, "lesions.jsonl", "cells.jsonl"}
        opened.append(ROWS[3:])
        opened.export()
        disk.check(results)
    assert disk.replaced.count(JSON) == 2 and "manifest.json" in disk.replaced


def damage(journal):
    """Spoil a line in the middle and leave one unfinished at the end."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1].replace(b"Prompt", b"Pr0mpt", 1), *lines[2:], b'{"v":1,"cr']))


def test_what_a_repair_moves_aside_is_on_the_disk_before_it_goes(tmp_path, disk):
    path = tmp_path / "rank-00000.jsonl"
    journal = Journal(path)
    journal.append(ROWS[:3])
    journal.close()
    damage(path)
    reader = JournalReader(path)
    assert len(list(reader.new_lines())) == 2
    repair(reader)
    assert disk.check(tmp_path) == {path.name, f"{path.name}.torn", f"{path.name}.quarantine"}


def test_repairs_at_a_start_are_on_the_disk(filled, disk):
    damage(paths(filled)[1] / "rank-00000.jsonl")
    os.truncate(paths(filled)[1] / "manifest.json", 10)
    with open_store(filled) as opened:
        opened.export()
        opened.append_lesion(lesion())  # so that the other files are written in this test, too
        opened.append_cell({**CELL, "repeat_index": 0})
        opened.export()
        kept = {"rank-00000.jsonl.torn", "rank-00000.jsonl.quarantine", "manifest.json.damaged"}
        assert kept <= disk.check(filled)


def test_an_archive_is_on_the_disk(tmp_path, disk):
    with open_store(tmp_path) as opened:
        opened.append([make_row()])
        opened.export()
    archive(opened.files)
    assert all("archived" in name for name in disk.check(tmp_path) if name.startswith("outputs"))


def test_an_archive_a_rebuild_and_a_second_export_are_on_the_disk(tmp_path, disk):
    with open_store(tmp_path) as opened:
        opened.append([make_row()])
        opened.export()
    with open_store(tmp_path, CONFIG | {"top_k": 1}, on_conflict="archive") as opened:
        assert len([name for name in disk.check(tmp_path) if name.endswith(".json") and "archived" in name]) == 1
        opened.append([make_row(config=CONFIG | {"top_k": 1})])
        opened.export()
    json_path, folder = paths(tmp_path)
    for name in ("rank-00000.jsonl", "manifest.json"):
        (folder / name).unlink()
    with open_store(tmp_path, CONFIG | {"top_k": 1}, rebuild=True):
        assert disk.check(tmp_path)
    json_path.unlink()
    export_command(folder)
    assert json_path.name in disk.check(tmp_path)
