"""Files that are whole or not there: rename, links, lone surrogates, numbers JSON has no form for."""

import json
import math
import os

import numpy
import pytest

from frankenlm.trainer_ext.common.files import finite, replaced_file, write_csv, write_json, write_text

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


def test_a_table_has_the_columns_of_all_rows_and_nothing_for_no_value(tmp_path):
    path = tmp_path / "t.csv"
    rows = [{"a": 1 / 3, "b": "x, y"}, {"a": math.nan, "c": numpy.float32(0.25)}, {"a": None, "b": True, "c": 2}]
    write_csv(path, rows, number=".2f")
    assert path.read_bytes() == b'a,b,c\n0.33,"x, y",\n,,0.25\n,True,2\n'
    write_csv(path, rows[:1], ("b", "a"))
    assert path.read_text() == f'b,a\n"x, y",{1 / 3!r}\n'
    with pytest.raises(ValueError, match="'c'"):
        write_csv(path, rows, ("a", "b"))
    assert path.read_text().startswith("b,a\n")


def test_finite_values_are_pythons_own():
    lost = []
    value = {1: (numpy.float32("inf"), numpy.int64(2)), "x": [True, -math.inf, numpy.bool_(False)]}
    clean = finite(value, lost)
    assert clean == {"1": [None, 2], "x": [True, None, False]} and lost == ["1[0]", "x[1]"]
    assert json.dumps(clean) == '{"1": [null, 2], "x": [true, null, false]}'
