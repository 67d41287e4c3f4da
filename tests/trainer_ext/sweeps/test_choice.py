"""A value chosen by one seed, never at an end of those tried; it is reported with other seeds and another text."""

import json
import math

import pytest

from frankenlm.trainer_ext.commands.sweep import found_by, planned_so_far, without_metric
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.sweeps.choice import MOST_MORE, ValueChoice, decide
from frankenlm.trainer_ext.sweeps.grid import decision_for, following, read_sweep
from frankenlm.trainer_ext.sweeps.run_folder import FINISHED, ImpossibleRun, PlannedRun, check_has_metric, plan_run

RATES = ValueChoice("learning_rate", (1e-3, 3e-3, 1e-2), 1000)
FILE = """
base: {preset: mini, dataset: builtin, max_steps: 3, model_name_or_path: "first/seed={seed}"}
runs: {plain: , muon: {matrix_optimizer: muon, grid: {batch_size: [2, 4]}}}
choice: {setting: learning_rate, values: [1e-3, 3e-3, 1e-2], seed: 1000}
report: {validation_dataset: test.jsonl}
seeds: [0, 1]
"""
SMALL = """
base: {{preset: mini, dataset: builtin, max_steps: 3, model.num_loops: 1, model.layer_pattern: [retnet]}}
choice: {{setting: {setting}, values: {values}, seed: 1000}}
seeds: [0, 1]
"""


def bowl(best: float):
    """Losses by rate with their lowest point at a rate."""
    return lambda rate: abs(math.log(rate / best))


def bowls(sweep) -> dict[str, float]:
    """Losses of the runs of a choice by name, lowest at 3e-3."""
    return {run.name: bowl(3e-3)(run.settings["learning_rate"]) for run in sweep.runs}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (3e-3, (1e-3, 3e-3, 1e-2)),
        (1e-2, (1e-3, 3e-3, 1e-2, 3e-2)),
        (1e-1, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
        (1e-3, (3e-4, 1e-3, 3e-3, 1e-2)),
    ],
)
def test_a_best_value_lies_between_two_others(best, tried):
    known: dict[float, float] = {}
    while True:
        decision = decide(RATES, known)
        missing = [value for value in decision.values if value not in known]
        if not missing:
            break
        assert decision.chosen is None and "not finished" in decision.reason
        known |= {value: bowl(best)(value) for value in missing}
    assert decision.values == tried
    assert decision.chosen == best and best in decision.values[1:-1]


@pytest.mark.parametrize("sign", [1, -1])
def test_without_end_none_is_called_best(sign):
    known: dict[float, float] = {}
    for _ in range(20):
        known |= {value: sign * value for value in decide(RATES, known).values}
    decision = decide(RATES, known)
    assert decision.chosen is None and len(decision.values) == len(RATES.values) + MOST_MORE
    assert ("smallest" if sign == 1 else "largest") in decision.reason
    assert decide(RATES, {value: -loss for value, loss in known.items()}, more_is_better=True) == decision


def test_a_value_at_which_training_gave_up_is_an_end_that_holds():
    assert decide(RATES, {1e-3: 3.0, 3e-3: 2.0, 1e-2: math.inf}).chosen == 3e-3
    assert "gave up at every value" in decide(RATES, dict.fromkeys(RATES.values, math.inf)).reason


def test_whole_numbers_are_followed_by_whole_ones():
    layers = ValueChoice("model.num_hidden_layers", (1, 2, 4), 1000)
    assert decide(layers, {1: 3.0, 2: 2.0, 4: 1.0}).values == (1, 2, 4, 8)
    assert all(type(value) is int for value in decide(layers, {1: 3.0, 2: 2.0, 4: 1.0}).values)
    assert decide(layers, {1: 1.0, 2: 2.0, 4: 3.0}).values[0] == 0.5  # where the setting can have it


@pytest.mark.parametrize(
    ("setting", "values", "sign", "told"),
    [
        ("model.dropout", [0.1, 0.3, 0.6], -1, "0.6 is the largest of 3 values"),  # 1.8 would be next
        ("model.num_hidden_layers", [1, 2, 4], 1, "1 is the smallest of 3 values"),  # a half
    ],
)
def test_a_list_ends_where_its_setting_does(read, tmp_path, setting, values, sign, told):
    sweep = read(SMALL.format(setting=setting, values=values))
    _, plan = planned_so_far(sweep, tmp_path / "runs")
    found = {one.run.name: sign * one.run.varied[setting] for one in plan}
    asked, again = planned_so_far(following(sweep, found), tmp_path / "runs")
    assert asked.refused  # planning goes on with what is found in the folders, where there is nothing here
    asked = following(asked, found)
    assert [run.name for run in asked.runs] == [one.run.name for one in plan] == [one.run.name for one in again]
    decision = decision_for(asked, asked.entrants[0], found)
    assert decision.chosen is None and told in decision.reason and "cannot be trained" in decision.reason


def test_what_the_file_itself_asks_for_is_no_end(read, tmp_path):
    sweep = read(SMALL.format(setting="model.dropout", values=[0.1, 0.3, 1.5]))
    with pytest.raises(ImpossibleRun, match="dropout"):
        planned_so_far(sweep, tmp_path / "runs")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "max_steps: 3",
            "max_steps: 3, early_stopping_patience: 2",
            "early_stopping_patience would choose",
        ),
        ("plain: ,", "plain: {load_best_model_at_end: true},", "load_best_model_at_end would choose the weights"),
        ("max_steps: 3", "max_steps: 3, lr_scheduler_type: reduce_lr_on_plateau", "plateau would lower the rate"),
        ("plain: ,", "plain: {lr_scheduler_type: greedy},", "greedy would lower the rate by the text"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nmetric: best_eval_loss", "best_eval_loss is chosen among evaluations"),
    ],
)
def test_nothing_peeks_at_the_text_that_is_reported(read, old, new, told):
    with pytest.raises(UserError, match=told):
        read(FILE.replace(old, new))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("early_stopping_patience: 2", "would choose the weights on the text that is reported"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "would lower the rate by the text that is reported"),
    ],
)
def test_a_file_of_settings_may_not_peek_either(read, tmp_path, setting, told):
    (tmp_path / "small.yaml").write_text(f"training: {{{setting}, eval_strategy: steps, eval_steps: 2}}")
    text = SMALL.format(setting="learning_rate", values=[1e-3, 3e-3, 1e-2]) + "report: {validation_dataset: test.jsonl}"
    sweep = read(text.replace("base: {", f"base: {{config: {tmp_path / 'small.yaml'}, "))
    (run, _) = (one for one in following(sweep, bowls(sweep)).runs if one.stage == "report")
    with pytest.raises(ImpossibleRun, match=told):
        plan_run(run, tmp_path / "runs")


@pytest.mark.parametrize(
    ("metric", "lacks", "has"),
    [
        ("ema_eval_loss", "", "--ema_decay 0.9"),
        ("best_eval_loss", "--eval_strategy no", "--eval_strategy steps"),
        ("lowest_eval_loss", "--eval_strategy no", "--eval_strategy no --eval_on_start true"),
        ("eval_accuracy", "--objective causal", "--objective classification"),
        ("eval_causal_loss", "--objective mlm", "--objective joint"),
        ("eval_masked_loss", "--objective causal", "--objective joint"),
        ("eval_perplexity", "--objective joint", "--objective mlm"),
    ],
)
def test_what_a_run_cannot_have_is_no_metric_of_a_choice(metric, lacks, has):
    words = ["--preset", "mini", "--dataset", "builtin", "--output_dir", "o"]
    check_has_metric(parse_run([*words, *has.split()]), metric)
    with pytest.raises(UserError, match=f"metric: {metric} needs .*: no value could be chosen by it"):
        check_has_metric(parse_run([*words, *lacks.split()]), metric)


def test_a_metric_is_asked_for_before_any_run_is_trained(read, tmp_path):
    sweep = read(SMALL.format(setting="learning_rate", values=[1e-3, 3e-3, 1e-2]) + "metric: ema_eval_loss")
    with pytest.raises(UserError, match="run learning_rate=0.001,seed=1000: metric: ema_eval_loss needs ema_decay"):
        planned_so_far(sweep, tmp_path / "runs")


def test_a_loss_that_is_no_number_is_the_worst_and_a_metric_that_is_not_there_is_none(read, tmp_path):
    sweep = read(SMALL.format(setting="learning_rate", values=[1e-3, 3e-3, 1e-2]) + "metric: eval_perplexity")
    facts = ({"eval_perplexity": 3.0}, {"eval_loss": None, "non_finite": ["eval_loss"]}, {"eval_loss": 2.0})
    plan = []
    for run, found in zip(sweep.runs, facts, strict=True):
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "metrics.json").write_text(json.dumps(found))
        plan.append(PlannedRun(run, tmp_path / run.name, {}, FINISHED, {"status": "finished"}))
    assert list(found_by(plan, sweep.metric).values()) == [3.0, math.inf]
    assert without_metric(plan, sweep.metric) == [sweep.runs[2].name]


def test_the_choice_itself_may_stop_early(read):
    told_off = "test.jsonl, early_stopping_patience: null, load_best_model_at_end: false}"
    text = FILE.replace("max_steps: 3", "max_steps: 3, early_stopping_patience: 2")
    assert len(read(text.replace("test.jsonl}", told_off)).runs) == 9


@pytest.fixture
def read(tmp_path):
    def read(text: str):
        path = tmp_path / "rates.yaml"
        path.write_text(text)
        return read_sweep(path)

    return read


def test_runs_follow_from_what_is_found(read):
    sweep = read(FILE)
    assert len(sweep.runs) == 9 and {run.stage for run in sweep.runs} == {"choice"}
    assert {run.settings["seed"] for run in sweep.runs} == {1000}
    found = {run.name: bowl(3e-3)(run.settings["learning_rate"]) for run in sweep.runs if run.group == "plain"}
    later = following(sweep, found)
    new = [run for run in later.runs if run not in sweep.runs]
    assert [run.name for run in new] == [f"plain,learning_rate=0.003,seed={seed}" for seed in (0, 1)]
    assert {run.stage for run in new} == {"report"}
    assert [run.settings["validation_dataset"] for run in new] == ["test.jsonl"] * 2
    assert [run.settings["model_name_or_path"] for run in new] == ["first/seed=0", "first/seed=1"]
    assert all("validation_dataset" not in run.settings for run in sweep.runs)
    assert following(later, found) == later
    grown = following(sweep, {name: -loss for name, loss in found.items()})  # worst where it was best
    assert [run.settings["learning_rate"] for run in grown.runs if run not in sweep.runs] == [3e-2]


def test_a_reported_loss_has_no_part_in_the_choice(read):
    sweep = read(FILE)
    found = {run.name: bowl(3e-3)(run.settings["learning_rate"]) for run in sweep.runs}
    later = following(sweep, found)
    reported = {run.name: -9.0 for run in later.runs if run.stage == "report"}
    assert reported and following(later, found | reported) == later


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("values: [1e-3, 3e-3, 1e-2]", "values: [1e-3, 3e-3]", "at least 3 numbers above 0"),
        ("values: [1e-3, 3e-3, 1e-2]", "values: [1e-3, 3e-3, -1]", "at least 3 numbers above 0"),
        ("values: [1e-3, 3e-3, 1e-2]", "values: [1e-2, 3e-3, 1e-3]", "rising order"),
        (", seed: 1000}", "}", "seed is missing"),
        ("seed: 1000", "seed: 1", "needs seeds beside its own, 1"),
        ("seed: 1000", "sed: 1000", "Did you mean 'seed'"),
        ("setting: learning_rate", "setting: learning_rat", "Did you mean 'learning_rate'"),
        ("seeds: [0, 1]", "", "needs seeds beside its own, 1000"),
        ("choice: {", "choice_: {", "unknown key 'choice_'"),
        ("{matrix_optimizer: muon,", "{learning_rate: 1,", "learning_rate is what is chosen"),
        ("report: {v", "report: {learning_rate: 1, v", "learning_rate is what is chosen"),
        ("report: {validation_dataset", "report: {validation_datase", "Did you mean 'validation_dataset'"),
        ("choice: {setting: learning_rate, values: [1e-3, 3e-3, 1e-2], seed: 1000}", "", "report does nothing without"),
    ],
)
def test_mistakes_are_one_line(read, old, new, told):
    assert old in FILE
    with pytest.raises(UserError, match="rates.yaml") as caught:
        read(FILE.replace(old, new))
    assert told in str(caught.value) and "\n" not in str(caught.value)
