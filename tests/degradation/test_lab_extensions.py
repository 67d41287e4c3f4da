"""Experiments that grow, shrink or change their prompts: which rows are written, and which numbers they carry."""

import json

import pytest

from frankenlm.degradation.cells import level_places
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.report.result_files import read_results
from frankenlm.degradation.report.write import analyse
from frankenlm.degradation.run.runner import ExperimentRun
from small_runs import SMALL, essence, rows_of


def test_more_repeats_and_levels_add_exactly_theirs(lab):
    first = {row["row_key"]: row for row in lab()}
    second = {row["row_key"]: row for row in lab(SMALL | {"n_rep": 3, "levels": (0.0, 0.025, 0.03, 0.3)})}
    assert len(second) == 4 * 3 * 4
    for key, row in first.items():
        assert second[key]["completion"] == row["completion"]
        assert second[key]["duration"] == row["duration"], "rows that were there are not written again"
    assert {row["level_value"] for row in second.values()} == {0.0, 0.025, 0.03, 0.3}
    assert [row["level_index"] for row in second.values() if row["level_value"] == 0.3] == [3] * 12


def test_fewer_levels_leave_the_numbers_of_the_others_alone(lab, caplog):
    first = lab(SMALL | {"levels": (0.0, 0.2, 0.6), "group": "mlp_only"})
    with caplog.at_level("WARNING"):
        again = lab(SMALL | {"levels": (0.0, 0.6), "group": "mlp_only", "n_rep": 1, "max_prompts": 2})
    assert again == first and not caplog.records
    found = lab(SMALL | {"levels": (0.0, 0.4), "group": "mlp_only"})
    assert sorted({(row["level_index"], row["level_value"]) for row in found}) == [(0, 0), (1, 0.2), (2, 0.4), (3, 0.6)]
    assert {row["completion"] for row in first} <= {row["completion"] for row in found}


def test_taking_over_old_rows_numbers_levels_as_a_run_does(lab, tiny_tokenizer, tmp_path):
    lab(SMALL | {"levels": (0.0, 0.2, 0.4)})
    (tmp_path / "old.json").write_text("[]")
    again = Lab(lab.model, RunOptions(output_dir=tmp_path / "results", progress=False), tokenizer=tiny_tokenizer())
    again.adopt(again.plan(SMALL | {"levels": (0.0, 0.3)}), tmp_path / "old.json")
    (path,) = (tmp_path / "results").glob("*.json")
    found = {(row["level_value"], row["level_index"]) for row in rows_of(path)}
    assert found == {(0.0, 0), (0.2, 1), (0.4, 3)}


def test_prompts_that_came_in_between_move_the_numbers_of_all_rows(lab, tmp_path):
    """Also of rows whose levels and repeats this run leaves out."""
    path = tmp_path / "mine.jsonl"

    def ask(*texts, **fields):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return lab(SMALL | {"prompts": str(path), "name_suffix": "mine"} | fields)

    ask("One.", "Two.")
    found = ask("Before.", "One.", "Two.", levels=(0.0,), n_rep=1)
    assert {(row["prompt_text"], row["prompt_id"]) for row in found} == {("Before.", 1), ("One.", 2), ("Two.", 3)}
    assert len(found) == 2 * 2 * 2 + 1


@pytest.mark.parametrize(
    ("method", "levels", "others", "places"),
    [
        ("mult_gauss", (0.6, 0.1), (0.1,), {"0": 0, "0.6": 1, "0.1": 2}),  # as the experiment names them
        ("mult_gauss", (0.6, 0.1), (0.3,), {"0": 0, "0.1": 1, "0.3": 2, "0.6": 3}),
        ("uni_quant", (64, 4), (None, 1024, 16), {"null": 0, "1024": 1, "64": 2, "16": 3, "4": 4}),
    ],
)
def test_levels_are_numbered_with_those_that_have_rows(method, levels, others, places):
    assert level_places(SMALL | {"method": method, "levels": levels}, others) == places


def test_rows_of_the_whole_vocabulary_go_on_with_the_noise_they_began_with(lab, monkeypatch):
    config = SMALL | {"top_k": 0, "top_p": 1.0}
    rows = lab(config, "new")
    assert {row["sampler"] for row in rows} == {"gumbel_philox4/rng"}
    with monkeypatch.context() as patch:
        patch.setattr(ExperimentRun, "_has_older_noise", lambda self: True)
        begun = lab(config | {"n_rep": 1}, "old")
        expected = lab(config, "whole")
    assert {row["sampler"] for row in begun} == {"gumbel_philox/rng"}
    assert essence(lab(config, "old")) == essence(expected) != essence(rows)


def test_prompts_are_rendered_once_for_all_experiments_of_a_run(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    from frankenlm.degradation.run import plan

    rendered, render = [], plan.render_prompts
    monkeypatch.setattr(plan, "render_prompts", lambda *args, **options: rendered.append(1) or render(*args, **options))
    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    planned = [lab.plan(SMALL | {"n_rep": 1, "group": group}) for group in ("attn_only", "mlp_only")]
    for experiment in planned:
        lab.run(experiment)
    assert len(rendered) == 1
    lab.plan(SMALL | {"system_prompt": "Be brief."})
    assert len(rendered) == 2


def test_scores_of_an_earlier_run_stay(lab, tmp_path):
    def cells():
        (path,) = (tmp_path / "results").glob("*.json")
        return {
            (cell["level_index"], cell["repeat_index"]): cell["kl_to_baseline"]
            for cell in read_results([path])[0].cells
        }

    lab(SMALL | {"perplexity": True, "perplexity_per_repeat": True, "max_prompts": 1})
    before = cells()
    lab(SMALL | {"perplexity": False})
    assert cells() == before and None not in before.values()


def test_repeats_that_cannot_differ_are_told(lab, tmp_path, caplog):
    config = SMALL | {"method": "uni_quant", "levels": (0, 4), "group": "mlp_only"}
    lab(config)
    assert not caplog.records
    lab(config | {"do_sample": False}, folder="greedy")
    assert "all 2 repeats will be the same" in caplog.text
    for folder, expected in (("results", False), ("greedy", True)):
        (path,) = (tmp_path / folder).glob("*.json")
        assert any("All repeats gave the same" in text for text in analyse([path], progress=False).warnings) == expected


def test_an_edited_prompt_is_run_again_alone_and_equal_ones_are_both_kept(lab, tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One.", "Two.", "Two.")))
    config = SMALL | {"prompts": str(path), "name_suffix": "mine"}
    first = lab(config)
    assert len(first) == 12 and len({row["row_key"] for row in first}) == 12
    twins = [row["completion"] for row in first if row["prompt_text"] == "Two." and row["level_index"] == 0]
    assert twins[0] != twins[1]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One!", "Two.", "Two.")))
    with caplog.at_level("WARNING"):
        second = lab(config)
    assert "4 rows are of prompts that" in caplog.text
    old = {row["row_key"]: row["timestamp"] for row in first}
    fresh = [row for row in second if row["row_key"] not in old]
    assert {row["prompt_text"] for row in fresh} == {"One!"} and len(fresh) == 4
    assert all(old[row["row_key"]] == row["timestamp"] for row in second if row["row_key"] in old)
