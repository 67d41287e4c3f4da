"""Result files with odd rows, records and manifests: one line that names the field, and nothing written."""

import json

import pytest

from frankenlm.degradation.errors import DamagedRecords
from frankenlm.degradation.records.journal import encode_line
from frankenlm.degradation.records.row_checks import depth
from frankenlm.degradation.report.write import analyse, write_report
from odd_rows import ODD_FIELDS, odd_name
from simulated_results import PROMPTS, measure, simulated_rows, write_experiment

ROWS = list(simulated_rows("mult_gauss", "attn_only", 0.4, repeats=2, levels=(0.0, 0.3), prompts=PROMPTS[:2]))


def looked_at(path):
    return analyse([path], measure=measure, measure_texts=None, draws=20, progress=False)


@pytest.mark.parametrize(("field", "value", "message"), ODD_FIELDS, ids=[odd_name(*case[:2]) for case in ODD_FIELDS])
def test_an_odd_field_is_named_with_its_row(field, value, message, tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_text(json.dumps([ROWS[0], {**ROWS[1], field: value}, ROWS[2]]))
    with pytest.raises(ValueError, match=rf"outputs_x\.json: row 1 has {message}=.*must be") as refused:
        looked_at(path)
    assert len(str(refused.value)) < len(str(path)) + 250 and "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["status", "level_value", "prompt_text", "repeat_index"])
def test_a_missing_field_is_named(field, tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_text(json.dumps([ROWS[0], {name: value for name, value in ROWS[1].items() if name != field}]))
    with pytest.raises(ValueError, match=rf"row 1 has no field '{field}'.*import-legacy"):
        looked_at(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2.5]",
        b"[null]",
        b'["a"]',
        b"[[]]",
        b'{"rows": []}',
        b"null",
        b"[{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" + b"1" * 5000 + b"]",
        b'[{"a": 1}, 3]',
        b"\0" * 50,
    ],
    ids=["numbers", "null", "texts", "lists", "object", "no list", "cut", "bytes", "deep", "digits", "mixed", "zeros"],
)
def test_a_file_that_is_no_list_of_rows_is_damaged(content, tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_bytes(content)
    with pytest.raises(DamagedRecords, match=r"outputs_x\.json: (this is no JSON|a result file is a JSON list)"):
        looked_at(path)


@pytest.mark.parametrize("content", ["", "[{", "{}", "a text"])
def test_the_way_out_of_a_file_without_rows_is_one_that_there_is(content, tmp_path):
    """What was never a result is a mistake; of a result its journal, where one is there, writes it anew."""
    for name in ("empty.txt", "config.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name}: .*; give the outputs_\*\.json of experiments\.$") as refused:
            looked_at(tmp_path / name)
        assert not isinstance(refused.value, DamagedRecords)
    path = tmp_path / "outputs_x.json"
    path.write_text(content)
    with pytest.raises(DamagedRecords, match=r"no journal lies beside it to write it anew from\.$"):
        looked_at(path)
    (tmp_path / "outputs_x.journal").mkdir()
    with pytest.raises(DamagedRecords, match=r"The command export .*outputs_x\.journal writes it anew\.$"):
        looked_at(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_other_encodings_of_json_are_read(encoding, tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_bytes(json.dumps(ROWS, ensure_ascii=False).encode(encoding))
    assert len(looked_at(path).rows) == len(ROWS)


def test_rows_that_hold_no_answer_may_hold_anything_else(tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_text(json.dumps([*ROWS, {**ROWS[0], "status": "error", "completion": None, "level_value": "?"}]))
    assert len(looked_at(path).rows) == len(ROWS)


def test_half_a_letter_in_a_text_is_data(tmp_path):
    path = tmp_path / "outputs_x.json"
    path.write_text(json.dumps([{**row, "completion": "a \ud835 b", "prompt_text": "\udfff?"} for row in ROWS[::2]]))
    page = write_report([path], tmp_path / "out", draws=20, progress=False)
    assert page.is_file()


# --- what lies beside the rows

CELL = {
    "param_group_name": "attn_only",
    "degradation_method": "mult_gauss",
    "level_value": 0.3,
    "level_index": 1,
    "repeat_index": 0,
    "log_perplexity": 2.0,
}
LESION = {
    "group": "attn_only",
    "method": "mult_gauss",
    "level_value": 0.3,
    "level_index": 1,
    "repeat_index": 0,
    "rel_l2": 0.5,
}


@pytest.mark.parametrize(
    ("name", "good", "changes"),
    [
        ("cells", CELL, {"level_value": "0.3"}),
        ("cells", CELL, {"repeat_index": [0]}),
        ("cells", CELL, {"log_perplexity": "2"}),
        ("cells", CELL, {"perplexity": 0}),
        ("cells", CELL, {"param_group_name": None}),
        ("cells", CELL, {"kl_to_baseline": 10**400}),
        ("lesions", LESION, {"rel_l2": {}}),
        ("lesions", LESION, {"level_value": -1}),
        ("lesions", LESION, {"group": ["attn_only"]}),
        ("lesions", LESION, {"attempt": "1"}),
    ],
)
def test_an_odd_record_of_the_journal_is_left_out_and_said(name, good, changes, tmp_path):
    path = write_experiment(tmp_path, ROWS, "mult_gauss", cells=False)
    lines = [good, {**good, **changes}, {}]
    (path.with_suffix(".journal") / f"{name}.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    found = looked_at(path)
    assert len(getattr(found.files[0], name)) == 1
    assert any(f"2 damaged lines of the journal's {name}.jsonl" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no manifest"),
        ('"x"', "no manifest"),
        ('{"runs": 5}', "no manifest"),
        ('{"runs": [1]}', "no manifest"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", "no manifest"),
        ('{"runs": [{"manifest": [', "no JSON"),
        ('{"runs": [{"manifest": 3}]}', None),
        ('{"runs": [{"manifest": {"config": null}}]}', None),
        ('{"runs": [{"manifest": {"config": {"prompts": "a\\u0000b"}}}]}', None),
    ],
)
def test_odd_manifests(content, message, tmp_path):
    path = write_experiment(tmp_path, ROWS, "mult_gauss", cells=False)
    (path.with_suffix(".journal") / "manifest.json").write_text(content)
    if message is None:
        assert looked_at(path).rows
        return
    with pytest.raises(DamagedRecords, match=rf"manifest\.json: this is {message}.*move it away"):
        looked_at(path)


@pytest.mark.parametrize(("value", "deep"), [(3, 0), ([], 1), ({"a": [1, {"b": []}]}, 4), ([[], {"a": 1}], 2)])
def test_depth(value, deep):
    assert depth(value) == deep
