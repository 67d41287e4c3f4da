"""The JSON file that is made from an experiment's journal."""

import errno
import json
import logging
import time

import pytest

from frankenlm.degradation.records import store
from frankenlm.degradation.records.export_again import export_command, journal_of
from record_rows import make_row
from store_files import ROWS, exported, open_store, paths


def test_the_export_is_one_strict_array_with_a_row_a_line(tmp_path):
    with open_store(tmp_path) as opened:
        opened.export()
        assert exported(opened) == []
        opened.append([make_row(perplexity=float("inf"), output="line\u2028 and\nline")])
        lines = opened.export().read_text(encoding="utf-8").split("\n")
    assert lines[0] == "[" and lines[2:] == ["]", ""]
    assert json.loads(lines[1])["perplexity"] is None


def test_an_original_schema_reader_finds_what_it_knows(filled):
    """The thesis' loader: a key of five fields, levels to two decimals, prompts stripped."""
    keys = set()
    for row in json.loads(paths(filled)[0].read_text(encoding="utf-8")):
        cell = (row["param_group_name"], round(float(row["std_dev"]), 2), row["repeat_index"])
        keys.add((*cell, row["degradation_method"], row["prompt_text"].strip()))
    assert len(keys) == len(ROWS)


def test_the_export_command_takes_any_of_the_paths(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    for path in (json_path, folder, folder / "rank-00000.jsonl", str(folder)):
        json_path.unlink()
        assert export_command(path) == json_path and json_path.read_bytes() == before
    with pytest.raises(ValueError, match="no journal"):
        journal_of(filled / "else.json")


def test_exports_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0, 102.0, 103.0, 141.9, 142.0, 142.0, 142.0])
    with open_store(tmp_path) as opened:
        monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
        assert opened.export_if_due()  # took 2 s
        assert opened.export_if_due() is None  # 1 s later
        assert opened.export_if_due() is None  # 39.9 s later
        assert opened.export_if_due()  # 40 s later


def test_a_line_that_went_bad_after_reading_is_never_exported(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    with open_store(filled) as opened:
        journal = folder / "rank-00000.jsonl"
        journal.write_bytes(journal.read_bytes().replace(b"Prompt 1", b"Prompt 9", 1))
        with pytest.raises(OSError, match="was good before") as caught:
            opened.export()
    assert caught.value.errno == errno.EIO and json_path.read_bytes() == before


@pytest.mark.slow
def test_ninety_thousand_rows_take_seconds(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = [make_row(p, r, k, output="x" * 2000) for k in range(3) for r in range(300) for p in range(1, 101)]
    with open_store(tmp_path) as opened:
        for start in range(0, len(rows), 40):
            opened.append(rows[start : start + 40])
        started = time.monotonic()
        opened.export()
        assert time.monotonic() - started < 15
        assert len(exported(opened)) == 90_000
