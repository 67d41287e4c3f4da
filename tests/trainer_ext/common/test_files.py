"""Files that are whole or not there: rename, links, lone surrogates, numbers JSON has no form for."""

import json
import os

import pytest

from frankenlm.trainer_ext.common.files import replaced_file, write_json, write_text

HALF_PAIR, NOT_UTF8 = "half \ud835 here", os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("text", [HALF_PAIR, NOT_UTF8, "\\\ud835", 'quote " and \\'])
def test_what_has_no_utf8_form_is_escaped_and_json_reads_it_back(tmp_path, text):
    path = tmp_path / "a.json"
    write_json(path, {text: [text]})
    assert json.loads(path.read_text(encoding="utf-8")) == {text: [text]}
    write_text(tmp_path / "a.md", HALF_PAIR)
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "half \\ud835 here"


def test_numbers_without_a_json_form_become_null_and_are_named(tmp_path):
    write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": [{"x": float("inf")}], "fine": 1.5})
    expected = {"loss": None, "rows": [{"x": None}], "fine": 1.5, "non_finite": ["loss", "rows[0].x"]}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(KeyboardInterrupt), replaced_file(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_not_written_through(tmp_path):
    target, link = tmp_path / "precious", tmp_path / "a.json"
    target.write_text("precious")
    link.symlink_to(target)
    write_json(link, {"new": 1})
    assert target.read_text() == "precious" and not link.is_symlink() and json.loads(link.read_text()) == {"new": 1}


def test_a_name_of_the_full_length_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    write_text(path, "x")
    assert path.read_text() == "x"
