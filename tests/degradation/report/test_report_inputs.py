"""Reports of results with little in them, with damage, and of files that are no results."""

import json

import numpy
import pytest

from frankenlm.degradation.errors import DamagedRecords
from frankenlm.degradation.records.journal import encode_line
from frankenlm.degradation.report.write import analyse, write_report
from simulated_results import LEVELS, PROMPTS, measure, simulated_rows, write_experiment


def test_one_repeat_without_journal_and_baseline(tmp_path):
    rows = [row for row in simulated_rows("mult_gauss", "attn_only", 0.4, repeats=1) if not row["is_baseline"]]
    rows = [{**row, "damage_rel_l2": None} for row in rows]
    path = write_experiment(tmp_path, rows, "mult_gauss", cells=False, manifest=False)
    path.with_suffix(".journal").rmdir()
    page = write_report([path], tmp_path / "out", measure=measure, measure_texts=None, draws=50)
    numbers = json.loads((page.parent / "report.json").read_text())
    text = " ".join(numbers["warnings"])
    assert "one repeat only" in text and "No undamaged cell" in text and "no journal lies beside it" in text
    assert all(curve["L50"]["status"] == "nothing to compare" for curve in numbers["curves"])
    missing = {entry["figure"] for entry in numbers["plots_without_data"]}
    assert missing >= {"vulnerability ranking", "all groups over relative L2", "perplexity, mult_gauss", "every repeat"}
    assert "no undamaged cell" in numbers["broke_first"][0]["sentence"]


@pytest.mark.parametrize(("repeats", "warned"), [(2, True), (4, True), (5, False)])
def test_few_repeats_are_warned_of(tmp_path, repeats, warned):
    path = write_experiment(tmp_path, simulated_rows("ablation", "attn_only", 0.4, repeats=repeats), "ablation")
    found = analyse([path], measure=measure, measure_texts=None, draws=50)
    assert any(f"n_rep = {repeats} is below 5" in warning for warning in found.warnings) is warned


def test_a_damaged_line_of_the_journal_is_left_out_and_said(tmp_path):
    path = write_experiment(tmp_path, simulated_rows("ablation", "attn_only", 0.4, repeats=2), "ablation")
    cells = path.with_suffix(".journal") / "cells.jsonl"
    whole = analyse([path], measure=measure, measure_texts=None, draws=20).series[0].cells["kl_to_baseline"]
    lines = cells.read_bytes().splitlines(keepends=True)
    cells.write_bytes(b"".join([lines[0], lines[1].replace(b"kl", b"lk"), *lines[2:], b'{"v":1,"cr']))
    found = analyse([path], measure=measure, measure_texts=None, draws=20)
    assert any("2 damaged lines" in warning for warning in found.warnings)
    left = found.series[0].cells["kl_to_baseline"]
    assert numpy.isfinite(whole).sum() - numpy.isfinite(left).sum() == 1
    numpy.testing.assert_array_equal(left[numpy.isfinite(left)], whole[numpy.isfinite(left)])


def test_relative_change_comes_from_lesions_too(tmp_path):
    rows = [{**row, "damage_rel_l2": None} for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2)]
    path = write_experiment(tmp_path, rows, "ablation")
    lesions = [
        {
            "group": "attn_only",
            "method": "ablation",
            "level_value": level,
            "level_index": index,
            "repeat_index": repeat,
            "rel_l2": 2 * level + repeat,
        }
        for index, level in enumerate(LEVELS["ablation"])
        if level
        for repeat in (0, 1)
    ]
    (path.with_suffix(".journal") / "lesions.jsonl").write_bytes(b"".join(map(encode_line, lesions)))
    series = analyse([path], measure=measure, measure_texts=None, draws=20).series[0]
    numpy.testing.assert_allclose(series.mean_rel_l2, [0, 0.9, 1.3, 1.7, 2.1])


def test_rows_without_an_answer_are_no_data(tmp_path):
    rows = list(simulated_rows("ablation", "attn_only", 0.4, repeats=2))
    rows[5] = {**rows[5], "status": "oom", "completion": None}
    found = analyse([write_experiment(tmp_path, rows, "ablation")], measure=measure, measure_texts=None, draws=20)
    assert len(found.rows) == len(rows) - 1 and found.series[0].answers.min() == len(PROMPTS) - 1
    text = " ".join(found.warnings)
    assert f"1 of {len(rows)} rows hold no answer" in text and "fewer answers than others: 1 of 10 in iq_it" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "JSON list of rows"),
        ("[{}", "no JSON"),
        ("[]", "no row with an answer"),
        ('[{"model_name": "x"}]', "import-legacy"),
        (None, "no such result file"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, message):
    path = tmp_path / "outputs_x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, DamagedRecords), match=message):
        analyse([path], measure=measure)


def test_the_same_rows_twice_are_refused_or_joined(tmp_path):
    rows = list(simulated_rows("ablation", "attn_only", 0.4, repeats=2))
    path = write_experiment(tmp_path, rows, "ablation")
    with pytest.raises(ValueError, match="given twice"):
        analyse([path, tmp_path / "." / path.name], measure=measure)
    copy = write_experiment(tmp_path, rows, "ablation", suffix="copy")
    with pytest.raises(ValueError, match="hold the same row"):
        analyse([path, copy], measure=measure, measure_texts=None)
    again = [*rows, {**rows[0], "attempt": 2, "completion": "0 1 999"}, {**rows[1], "attempt": 0}]
    joined = write_experiment(tmp_path, again, "ablation", suffix="joined")
    found = analyse([joined], measure=measure, measure_texts=None, draws=20)
    assert len(found.rows) == len(rows) and found.rows[0]["completion"] == "0 1 999"
    assert any("2 rows stood there twice" in warning for warning in found.warnings)


def test_runs_that_differ_in_settings_alone_stay_apart(tmp_path):
    files = []
    for suffix in ("dense", "4bit"):
        rows = simulated_rows("ablation", "attn_only", 0.4, repeats=2, suffix=suffix)
        files.append(write_experiment(tmp_path, rows, "ablation", suffix=suffix))
    found = analyse(files, measure=measure, measure_texts=None, draws=20)
    assert [series.label for series in found.series] == ["attn_only (dense)", "attn_only (4bit)"]
