"""Targeted lesions and their controls as experiments: found, matched in size, resumed, and no other when scores are."""

import json
import signal

import numpy as np
import pytest

from frankenlm.degradation import get_config, run_experiment
from frankenlm.degradation.errors import ConfigConflict
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.records.store import Store
from frankenlm.degradation.report.bootstrap import draw_counts, mean_curve
from frankenlm.trainer_ext.common.cli import Interrupted
from small_runs import essence, rows_of


@pytest.fixture
def carry_out(planted, tmp_path):
    """carry_out(method, **changes) -> the rows of an experiment on a planted model, and its lesions."""

    def run(method, folder="results", of=planted, **changes):
        config = get_config("smoke") | {
            "dtype": "float32",
            "method": method,
            "group": of.group,
            "unit": of.kind,
            "levels": (0, 1, 2),
            "prompts": str(of.prompts),
            "do_sample": False,
            "n_rep": 3,
            "perplexity": False,
            "max_new_tokens": 2,
            **changes,
        }
        path = run_experiment(
            config, model=of.model, tokenizer=of.tokenizer, output_dir=tmp_path / folder, progress=False
        )
        written = (path.with_suffix(".journal") / "lesions.jsonl").read_text(encoding="utf-8")
        return rows_of(path), [json.loads(line)["row"] for line in written.splitlines()]

    return run


def accuracy(rows, repeats, levels):
    """[repeats, levels]: the share of answers that are the letter asked for."""
    found = np.zeros((repeats, levels))
    for row in rows:
        found[row["repeat_index"], row["level_index"]] += row["completion"] == row["prompt_text"][-1]
    return found / (len(rows) / repeats / levels)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("circuit", "importance"),
    [
        ("planted", "gradient"),
        ("planted_expert", "ablation"),
        pytest.param("planted", "ablation", marks=SLOW),
        pytest.param("planted_expert", "gradient", marks=SLOW),
        pytest.param("trained_head", "gradient", marks=SLOW),
        pytest.param("trained_head", "ablation", marks=SLOW),
        pytest.param("trained_expert", "ablation", marks=SLOW),
    ],
)
def test_the_targeted_lesion_finds_what_carries_the_task_and_random_ones_do_not(
    circuit, importance, carry_out, request
):
    """One head, or one expert; as many others of its layer are drawn, and what they leave is whole."""
    planted = request.getfixturevalue(circuit)
    rows, lesions = carry_out("targeted", of=planted, importance=importance)
    assert (accuracy(rows, 3, 3)[:, 0] == 1).all() and accuracy(rows, 3, 3)[:, 1].max() < 0.5
    cut = [lesion for lesion in lesions if lesion["level_value"] == 1]
    assert all(lesion["units_named"] == [planted.name] and lesion["units_by_layer"] == {"1": 1} for lesion in cut)
    others, drawn = carry_out("matched", of=planted, importance=importance, n_rep=8, levels=(0, 1))
    hits = [lesion["units_named"] == [planted.name] for lesion in drawn if lesion["level_value"] == 1]
    assert len(hits) - sum(hits) > 0
    assert (accuracy(others, 8, 2)[:, 1][~np.array(hits)] == 1).all()
    sizes = {(each["level_value"], each["units"], str(each["units_by_layer"])) for each in drawn if each["level_value"]}
    assert sizes == {(1, 1, "{'1': 1}")}


def test_a_stopped_run_goes_on_with_the_same_units(carry_out, monkeypatch, tmp_path):
    unbroken, lesions = carry_out("targeted", "unbroken")
    append, written = Store.append, []

    def stop_after(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= 11:
            raise Interrupted(signal.SIGTERM, "stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", stop_after)
        with pytest.raises(Interrupted):
            carry_out("targeted", "stopped")
    with monkeypatch.context() as patch:
        measured = "frankenlm.degradation.run.targets_of_run.measure_importance"
        patch.setattr(measured, lambda *args, **options: pytest.fail("measured once already"))
        rows, again = carry_out("targeted", "stopped")
        assert essence(rows) == essence(unbroken)
        carry_out("matched", "stopped")  # the control reads the same scores
    named = [(each["level_value"], each["repeat_index"], each.get("units_named")) for each in lesions]
    assert named == [(each["level_value"], each["repeat_index"], each.get("units_named")) for each in again]
    assert len(list((tmp_path / "stopped").glob("importance_*.safetensors"))) == 1


def test_other_scores_under_the_same_rows_are_a_conflict(carry_out, tmp_path, monkeypatch):
    carry_out("targeted", n_rep=1)
    (scores,) = (tmp_path / "results").glob("importance_*.safetensors")
    scores.rename(tmp_path / "away")
    carry_out("targeted", n_rep=2)  # the same ones on the same machine: no other rows
    scores.unlink()
    measured = "frankenlm.degradation.run.targets_of_run.measure_importance"
    with monkeypatch.context() as patch:
        patch.setattr(measured, lambda model, baseline, table, *args, **options: np.ones((1, table.count), np.float32))
        with pytest.raises(ConfigConflict, match="put its file importance_.* back"):
            carry_out("targeted", n_rep=3)
    scores.write_bytes(b"no scores")
    with pytest.raises(Exception, match="is damaged: move it away"):
        carry_out("targeted", n_rep=3)


def test_more_prompts_extend_a_run_whose_importance_prompts_are_named(carry_out, planted, tmp_path):
    """By a file of any name: what counts is the scores, by which the rows that are there were made."""
    carry_out("targeted", n_rep=1, levels=(0, 1), max_prompts=2)
    with pytest.raises(ConfigConflict, match="name a file of the prompts of then by importance_prompts"):
        carry_out("targeted", n_rep=1, levels=(0, 1), max_prompts=3)
    first = tmp_path / "first.jsonl"
    first.write_text("".join(planted.prompts.read_text(encoding="utf-8").splitlines(True)[:2]), encoding="utf-8")
    rows, _ = carry_out("targeted", n_rep=1, levels=(0, 1), max_prompts=3, importance_prompts=str(first))
    assert len(rows) == 6 and all(row["attempt"] == 1 for row in rows)
    with pytest.raises(ConfigConflict, match="importance"):
        carry_out("targeted", n_rep=2, levels=(0, 1), max_prompts=3, importance_prompts="smoke")


@pytest.mark.parametrize("repeats", [pytest.param(8), pytest.param(40, marks=pytest.mark.slow)])
def test_with_shuffled_importance_targeted_and_random_lesions_agree(repeats, carry_out):
    """The scores then say nothing, so the two curves lie within each other's intervals."""
    curves = []
    for method in ("targeted", "matched"):
        rows, lesions = carry_out(method, shuffle_importance=True, n_rep=repeats, levels=(0, 1, 3))
        found = mean_curve(accuracy(rows, repeats, 3), draw_counts(repeats))
        curves.append(found)
        assert len({str(lesion.get("units_named")) for lesion in lesions if lesion["level_value"] == 1}) > 2
    (a, b) = curves
    assert ((a["low"] <= b["high"]) & (b["low"] <= a["high"]))[1:].all()


EQUAL = {"importance": "magnitude", "do_sample": False}


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        (EQUAL, True),
        (EQUAL | {"do_sample": True, "top_k": 1}, True),
        ({"max_prompts": 1, "do_sample": False}, True),
        ({"unit": "element", "do_sample": False}, True),
        (EQUAL | {"do_sample": True}, False),
        (EQUAL | {"n_rep": 1}, False),
        (EQUAL | {"method": "matched"}, False),
        (EQUAL | {"shuffle_importance": True}, False),
        ({"do_sample": False}, False),
    ],
)
def test_repeats_that_cannot_differ_are_told_with_a_way_out(changes, warned, planted, caplog):
    base = {"method": "targeted", "group": "attn_o", "unit": "head", "levels": (0, 1), "dtype": "float32", "n_rep": 3}
    lab = Lab(planted.model, tokenizer=planted.tokenizer)
    lab.plan(get_config("smoke") | base | {"prompts": str(planted.prompts)} | changes)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "all 3 repeats will be the same; n_rep=1 is enough" in text] == said
    assert len(said) == warned


def test_importance_reads_no_further_than_the_model_has_positions(tiny_model, tiny_tokenizer, tmp_path):
    model, tokenizer = tiny_model("gpt2", n_layer=1, n_positions=49), tiny_tokenizer()
    lab = Lab(model, RunOptions(output_dir=tmp_path, progress=False), tokenizer=tokenizer)
    path = tmp_path / "prompts.jsonl"
    config = get_config("smoke") | {
        "method": "targeted",
        "group": "attn_o",
        "unit": "head",
        "levels": (0, 1),
        "n_rep": 1,
        "dtype": "float32",
        "max_new_tokens": 2,
        "perplexity": False,
        "prompts": str(path),
    }
    # the template takes 16 tokens
    path.write_text(json.dumps({"text": "x" * 29}) + "\n", encoding="utf-8")  # 4 positions left for an answer
    rows = rows_of(lab.run(lab.plan(config)))
    assert {row["tokens_prompt_rendered"] for row in rows} == {45} and len(rows) == 2
    path.write_text(json.dumps({"text": "say a"}) + "\n", encoding="utf-8")
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"text": "x" * 33}) + "\n", encoding="utf-8")  # none
    with pytest.raises(ValueError, match="a prompt has 49 tokens, which leaves none of the 49 positions"):
        lab.plan(config | {"importance_prompts": str(others)})
    others.write_text(json.dumps({"text": "x" * 600}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="more than max_seq_length=512"):
        lab.plan(config | {"importance_prompts": str(others)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (0, 17)}, "17 units are more than the 16 of unit='head'"),
        ({"levels": (0, 0.5)}, "takes whole numbers of units"),
        ({"importance": "gradiant"}, "Did you mean 'gradient'"),
        ({"unit": "neuron"}, "has none; choose mlp_only"),
        ({"method": "ablation", "unit": "neuron", "levels": (0, 0.5)}, "take targeted or matched"),
        ({"unit": "element", "importance": "ablation"}, "choose a larger unit than element"),
        ({"importance_prompts": "drems_it"}, "Did you mean 'dreams_it'"),
    ],
)
def test_what_cannot_be_is_told_before_the_model_is_loaded(changes, message, tiny_dir, tiny_model, tiny_tokenizer):
    """Of a model by its name, and of one in memory before a folder is made for its rows."""
    base = {"method": "targeted", "group": "attn_o", "unit": "head", "levels": (0, 1), "dtype": "float32"}
    for lab in (Lab(str(tiny_dir("llama"))), Lab(tiny_model("llama"), tokenizer=tiny_tokenizer())):
        with pytest.raises(ValueError, match=message):
            lab.plan(get_config("smoke") | (base | changes))
