"""Sentences of the report that must not claim more than the repeats, levels and measures hold."""

import pytest

from frankenlm.degradation.records.journal import encode_line
from frankenlm.degradation.report.sentences import ranking, what_broke_first
from frankenlm.degradation.report.write import analyse, facts
from simulated_results import cell_records, measure, simulated_rows, write_experiment


def analysed(*paths):
    return analyse(paths, measure=measure, measure_texts=None, draws=100, progress=False)


@pytest.fixture
def once(tmp_path):
    """Two groups, five repeats; perplexity in the first repeat alone, as by default."""
    rows = [
        row
        for group, half in (("attn_only", 0.4), ("mlp_only", 0.3))
        for row in simulated_rows("mult_gauss", group, half)
    ]
    path = write_experiment(tmp_path, rows, "mult_gauss", cells=False)
    kept = [record for record in cell_records(rows) if record["repeat_index"] == 0]
    (path.with_suffix(".journal") / "cells.jsonl").write_bytes(b"".join(map(encode_line, kept)))
    return analysed(path)


def test_intervals_that_are_not_there_do_not_overlap(once):
    curves = [curve for curve in once.curves if curve.measure.name == "log_perplexity"]
    sentence = ranking(curves, curves[0].measure)
    assert "attn_only at" in sentence and "mlp_only at" in sentence
    assert "overlap" not in sentence


def test_an_order_with_a_measure_of_one_repeat_says_which(once):
    curves = [curve for curve in once.curves if curve.series.key.group == "mlp_only"]
    found = what_broke_first(curves, ["log_perplexity", "accuracy"])
    assert len(found["order"]) == 2
    assert "With log-perplexity measured in one repeat only nothing can be said" in found["sentence"]


def test_one_damaged_level_has_no_order(tmp_path):
    rows = simulated_rows("mult_gauss", "mlp_only", 0.3, levels=(0.0, 0.6))
    (found,) = facts(analysed(write_experiment(tmp_path, rows, "mult_gauss")))["broke_first"]
    assert (
        found["sentence"] == "mult_gauss on mlp_only: with one damaged level there is no order in which measures break."
    )


def test_groups_with_one_damaged_level_are_ranked_by_how_far_they_fell(tmp_path):
    halves = {"mlp_only@1of2": 0.2, "mlp_only@2of2": 0.6, "attn_only@1of2": 0.38}
    rows = [
        row
        for group, half in halves.items()
        for row in simulated_rows("mult_gauss", group, half, levels=(0.0, 0.4), repeats=4)
    ]
    found = analysed(write_experiment(tmp_path, rows, "mult_gauss"))
    curves = [curve for curve in found.curves if curve.measure.name == "accuracy"]
    sentence = ranking(curves, curves[0].measure)
    assert "change at the one damaged level (noise σ (multiplicative) 0.4), most vulnerable first" in sentence
    assert "(-100.0 % to " in sentence  # no share falls by more
    assert sentence.index("mlp_only@1of2") < sentence.index("attn_only@1of2") < sentence.index("mlp_only@2of2")
    change = curves[0].values[:, 1] - curves[0].values[:, 0]
    assert f"mlp_only@1of2 by {100 * change.mean():.1f} % (" in sentence
    mixed = [*curves[:2], *once_more(tmp_path)]
    assert ranking(mixed, curves[0].measure) is None  # one level here, many there: nothing they could be ranked by


def once_more(folder):
    rows = simulated_rows("mult_gauss", "embed_only", 0.3)
    return [
        curve
        for curve in analysed(write_experiment(folder, rows, "mult_gauss", suffix="many")).curves
        if curve.measure.name == "accuracy"
    ]


def test_experiments_that_differ_in_settings_alone_are_told_apart(tmp_path):
    paths = [
        write_experiment(
            tmp_path, simulated_rows("mult_gauss", "mlp_only", 0.3, suffix=name), "mult_gauss", suffix=name
        )
        for name in ("dense", "packed")
    ]
    leads = [found["lead"].partition(":")[0] for found in facts(analysed(*paths))["broke_first"]]
    assert leads == ["mult_gauss on mlp_only (dense)", "mult_gauss on mlp_only (packed)"]


@pytest.mark.parametrize(("same", "unfinished"), [(True, False), (False, False), (False, True), (True, True)])
def test_repeats_that_do_not_differ_are_one(tmp_path, same, unfinished):
    rows = list(simulated_rows("uni_quant", "mlp_only", -6, repeats=2, levels=(None, 64, 4)))
    if same:
        first = {(row["level_index"], row["prompt_id"]): row for row in rows if row["repeat_index"] == 0}
        said = ("completion", "finish_reason")
        rows = [row | {name: first[row["level_index"], row["prompt_id"]][name] for name in said} for row in rows]
    if unfinished:  # the second repeat has come as far as the undamaged cell
        rows = [row for row in rows if row["repeat_index"] == 0 or row["level_index"] == 0]
    told = analysed(write_experiment(tmp_path, rows, "uni_quant")).warnings
    expected = same and not unfinished
    assert any("All repeats gave the same answers" in text for text in told) == expected


def test_no_interval_reaches_below_what_a_measure_can_be(tmp_path):
    """Two repeats that differ widely: a t interval of their mean alone would reach below no tokens at all."""
    rows = list(simulated_rows("mult_gauss", "mlp_only", 0.3, repeats=2, levels=(0.0, 0.3)))
    length = {0: "5.0", 1: "90.0"}
    rows = [row | {"completion": f"1 0 {length[row['repeat_index']]}"} for row in rows]
    (tokens,) = (
        curve
        for curve in analysed(write_experiment(tmp_path, rows, "mult_gauss")).curves
        if curve.measure.name == "tokens"
    )
    assert tokens.stats["low"].tolist() == [0.0, 0.0] and (tokens.stats["high"] > 90).all()
