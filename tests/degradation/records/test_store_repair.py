"""An experiment's files after kills, damage and loss: repaired, rebuilt, or left alone with a reason."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from frankenlm.degradation.errors import ConfigConflict, DamagedRecords
from frankenlm.degradation.records import store
from frankenlm.degradation.records.journal import encode_line
from record_rows import CONFIG, lesion, make_row
from store_files import ROWS, exported, open_and_count, open_store, paths, shape

# --- kills


def test_cuts_at_random_places_cost_the_last_row_at_most(filled):
    json_path, folder = paths(filled)
    journal, draw = folder / "rank-00000.jsonl", random.Random(0)
    whole, before = journal.read_bytes(), json_path.read_bytes()
    for cut in [draw.randrange(len(whole) // 2, len(whole)) for _ in range(25)]:
        journal.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        with open_store(filled) as opened:
            assert set(opened.finished) == {row["row_key"] for row in ROWS[:kept]}
            opened.append(ROWS[kept:])
            opened.export()
        assert json_path.read_bytes() == before


def test_a_kill_during_export_leaves_the_old_file(filled, monkeypatch):
    json_path, _ = paths(filled)
    before = json_path.read_bytes()

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with open_store(filled) as opened:
        opened.append([make_row(4)])
        monkeypatch.setattr(os, "replace", kill)
        monkeypatch.setattr(Path, "unlink", kill)  # a killed process does not clean up
        with pytest.raises(Killed):
            opened.export()
        monkeypatch.undo()
    (left,) = set(filled.iterdir()) - set(paths(filled))
    assert left.name.endswith(".tmp") and json_path.read_bytes() == before
    with open_store(filled) as opened:
        assert not left.exists()
        opened.export()
        assert len(exported(opened)) == 19


def test_a_bad_line_costs_its_row_alone(filled, caplog):
    _, folder = paths(filled)
    journal = folder / "rank-00000.jsonl"
    damaged = journal.read_bytes().replace(ROWS[4]["completion"].encode()[:9], b"scribbled", 1)
    journal.write_bytes(damaged)
    with open_store(filled) as opened:
        assert set(opened.finished) == {row["row_key"] for row in ROWS} - {ROWS[4]["row_key"]}
        assert "is damaged" in caplog.text
        opened.append([ROWS[4]])
        opened.export()
        assert shape(exported(opened)) == shape(ROWS)


def test_torn_side_files_are_repaired(filled):
    _, folder = paths(filled)
    with open(folder / "lesions-00000.jsonl", "ab") as file:
        file.write(b'{"v":1,"crc"')
    with open_store(filled) as opened:
        opened.append_lesion(lesion(2, 1))
        assert [record["level_index"] for record in opened.lesions()] == [1, 2]
    assert (folder / "lesions-00000.jsonl.torn").exists()


# --- damage and loss


def test_a_lost_journal_stops_or_is_rebuilt(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    shutil.rmtree(folder)
    with pytest.raises(DamagedRecords, match=r"holds 18 rows: --rebuild"):
        open_store(filled)
    assert not folder.exists() and json_path.read_bytes() == before
    with open_store(filled, rebuild=True) as opened:
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before
    open_store(filled).close()


@pytest.mark.parametrize("how", ["emptied", "all files gone", "one rank gone"])
def test_lost_rank_files_stop_or_are_rebuilt(filled, how):
    json_path, folder = paths(filled)
    with open_store(filled) as first, open_store(filled, rank=1, world_size=2) as second:
        second.append([make_row(4)])
        first.export()
    before = json_path.read_bytes()
    if how == "emptied":
        for rank in (0, 1):
            (folder / f"rank-0000{rank}.jsonl").write_bytes(b"")
    else:
        for path in folder.glob("rank-00001.jsonl" if how == "one rank gone" else "*"):
            path.unlink()
    with pytest.raises(DamagedRecords, match=f"holds {1 if how == 'one rank gone' else 19} rows"):
        open_store(filled)
    with open_store(filled, rebuild=True) as opened:
        opened.export()
        assert shape(exported(opened)) == shape(json.loads(before))
        assert "rebuilding" not in os.listdir(folder)


def test_a_rebuild_that_was_killed_goes_on(filled, monkeypatch):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    shutil.rmtree(folder)
    real = store.adopt_rows

    def half(journal_dir, rows):
        real(journal_dir, rows[:7])
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "adopt_rows", half)
    with pytest.raises(KeyboardInterrupt):
        open_store(filled, rebuild=True)
    monkeypatch.undo()
    with open_store(filled) as opened:  # it was agreed to
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before


def test_a_rebuild_takes_rows_of_this_configuration_only(filled):
    _, folder = paths(filled)
    shutil.rmtree(folder)
    with pytest.raises(ConfigConflict, match="not of this configuration"):
        open_store(filled, CONFIG | {"top_k": 1}, rebuild=True)
    assert len(open_and_count(filled, rebuild=True)) == 18


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"row_key": "a"', "is no JSON.*move it away"),
        (b'{"rows": []}', "not a list of rows"),
        (b'[{"std_dev": 0.1, "output": "x"}]', "import-legacy"),
    ],
)
def test_a_json_file_that_cannot_be_adopted_is_left_alone(tmp_path, content, message):
    json_path, _ = paths(tmp_path)
    json_path.write_bytes(content)
    with pytest.raises(DamagedRecords, match=message):
        open_store(tmp_path, rebuild=True)
    with pytest.raises(DamagedRecords):
        open_store(tmp_path)
    assert json_path.read_bytes() == content


def test_a_damaged_or_empty_json_file_is_made_anew_from_the_journal(filled):
    json_path, _ = paths(filled)
    before = json_path.read_bytes()
    for content in (b"", before[:700], b"\0" * 100):
        json_path.write_bytes(content)
        with open_store(filled) as opened:
            opened.export()
        assert json_path.read_bytes() == before


def test_an_empty_json_file_without_a_journal_is_a_new_start(tmp_path):
    paths(tmp_path)[0].write_bytes(b"")
    open_store(tmp_path).close()


def test_a_damaged_manifest_is_made_anew_if_the_rows_fit(filled, caplog):
    _, folder = paths(filled)
    manifest = folder / "manifest.json"
    whole, draw = manifest.read_bytes(), random.Random(1)
    contents = [b"", b"\0" * 50, b"[]", whole[:100]]
    for _ in range(20):  # a flipped bit that JSON survives, too
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole) - 2)] ^= 1 << draw.randrange(7)
        contents.append(bytes(flipped))
    for content in contents:
        manifest.write_bytes(content)
        caplog.clear()
        with pytest.raises(ConfigConflict, match="not of this configuration"):
            open_store(filled, CONFIG | {"top_k": 1})
        assert "is damaged" in caplog.text and (folder / "manifest.json.damaged").read_bytes() == content
        manifest.write_bytes(content)
        assert len(open_and_count(filled)) == 18
        assert json.loads(manifest.read_bytes())["config_fields"] == CONFIG
    manifest.unlink()
    assert len(open_and_count(filled)) == 18


def test_white_space_in_the_manifest_is_no_damage(filled):
    manifest = paths(filled)[1] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert len(open_and_count(filled)) == 18
    assert not manifest.with_name("manifest.json.damaged").exists()


@pytest.mark.parametrize("what", ["manifest", "row"])
def test_files_of_a_newer_schema_are_refused_and_kept(filled, monkeypatch, what):
    _, folder = paths(filled)
    module = {"manifest": "records.manifest", "row": "records.journal"}[what]
    monkeypatch.setattr(f"frankenlm.degradation.{module}.SCHEMA_VERSION", 2)
    if what == "row":
        line = encode_line(ROWS[0])
        with open(folder / "rank-00000.jsonl", "ab") as file:
            file.write(line)
    else:
        from frankenlm.degradation.records.manifest import read_manifest, write_manifest

        known = read_manifest(folder / "manifest.json")
        write_manifest(folder / "manifest.json", known | {"schema_version": 2})
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(DamagedRecords, match="schema version 2.*newer frankenlm"):
        open_store(filled)
    assert {path: path.read_bytes() for path in before} == before


def test_crlf_in_every_file(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    for path in [json_path, *folder.glob("*.json*")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with open_store(filled) as opened:
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before


# --- what is not ours


@pytest.mark.parametrize("name", ["lock", "manifest.json", "rank-00000.jsonl", "cells-00000.jsonl", "lesions.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_or_link_in_the_place_of_a_file_is_one_line(name, kind, tmp_path):
    with open_store(tmp_path) as opened:
        place, theirs = opened.files.journal_dir / name, tmp_path / "theirs"
    place.unlink(missing_ok=True)
    theirs.write_text("precious")
    place.mkdir() if kind == "folder" else place.symlink_to(theirs)
    with pytest.raises(ValueError, match="is no file of this program"):
        open_store(tmp_path)
    assert theirs.read_text() == "precious"


def test_strangers_in_the_journals_folder_stay(tmp_path):
    with open_store(tmp_path) as opened:
        opened.claims.take("a cell")
        strangers = [opened.files.journal_dir / name for name in (".notes.tmp", "claims/theirs", "README")]
        for path in strangers:
            path.write_text("precious")
    with open_store(tmp_path) as opened:
        assert opened.claims.take("a cell")  # those of an earlier run are forgotten
    assert [path.read_text() for path in strangers] == ["precious"] * 3
