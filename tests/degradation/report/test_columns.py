"""Measures of real texts in result files."""

import json

import numpy
import pytest

from frankenlm.degradation.measures import measure as measures
from frankenlm.degradation.prompts import find_prompt
from frankenlm.degradation.report.columns import measure_rows
from frankenlm.degradation.report.write import analyse, measure_file
from simulated_results import PROMPTS, measure, read_csv, simulated_rows, write_experiment


def real_rows():
    """Right answers at level 0, loops at 0.5, in two repeats."""
    for row in simulated_rows("mult_gauss", "attn_only", 0.4, levels=(0.0, 0.5), repeats=2):
        prompt = next(p for p in PROMPTS if p.text == row["prompt_text"])
        answer = prompt.answer[0] if isinstance(prompt.answer, tuple) else prompt.answer
        good = f"The answer is {answer}." if answer is not None else "A kite. A boat. A lamp."
        text = good if row["level_value"] == 0 else "the the the " * 20
        yield {**row, "completion": text, "status": "ok", "finish_reason": "eos"}


def test_measure_file_writes_rows_cells_and_curves(tmp_path):
    path = write_experiment(tmp_path, real_rows(), "mult_gauss")
    target = measure_file(path, tmp_path / "measures", draws=100)
    assert target.name == f"{path.stem}_measures.json"
    rows, cells, curves = (read_csv(target.parent / f"{path.stem}_{name}.csv") for name in ("rows", "cells", "curves"))
    assert len(rows) == 4 * len(PROMPTS) and len(cells) == 4
    assert {row["looped"] for row in rows if row["level_value"] == "0.5"} == {"1"}
    levels = {row["level"]: row for row in curves if row["measure"] == "accuracy"}
    assert levels["0"]["centre"] == "1" and levels["0.5"]["centre"] == "0"
    numbers = json.loads(target.read_text())
    assert {"self_bleu_4", "cell_distinct_2", "gzip_ratio"} <= {curve["measure"] for curve in numbers["curves"]}
    found = next(curve for curve in numbers["curves"] if curve["measure"] == "accuracy")
    assert found["L50"]["level"] == pytest.approx(0.5 * (1 - (1 + found["chance"]) / 2))
    assert found["L50"]["low"] == found["L50"]["level"]  # both repeats are alike
    assert all(entry["meaning"] for name, entry in numbers["measures"].items() if not name.startswith("accuracy/"))


@pytest.mark.slow
def test_more_processes_measure_the_same(tmp_path):
    rows = list(real_rows())
    one, two = (measure_rows(rows, measures.measure_row, find_prompt, measures.measure_cell, workers=n) for n in (1, 2))
    assert one.columns.keys() == two.columns.keys() and one.cells == two.cells
    for name, column in one.columns.items():
        numpy.testing.assert_array_equal(column, two.columns[name])


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers=0"):
        measure_rows([], measure, find_prompt, workers=0)


def test_prompts_of_a_file_of_ones_own_are_graded(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": "How many?", "skill": "count", "grader": "number", "answer": 3}) + "\n")
    rows = [
        {**row, "prompt_text": "How many?", "completion": "3" if row["level_value"] == 0 else "4"}
        for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2, prompts=PROMPTS[:1])
    ]
    path = write_experiment(tmp_path, rows, "ablation")
    manifest = path.with_suffix(".journal") / "manifest.json"
    manifest.write_text(json.dumps({"runs": [{"manifest": {"config": {"prompts": str(own)}}}]}))
    series = analyse([path], draws=20).series[0]
    assert series.cells["accuracy/count"].tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
