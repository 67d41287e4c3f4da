"""The sweeps that the repository brings, and its recipes: every run of them can be trained."""

import re
from pathlib import Path

import pytest
import yaml

from frankenlm.trainer_ext.common.objectives import form_of_text
from frankenlm.trainer_ext.preflight import check_config, check_data_arguments, has_two_directions
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.results import lowest_loss
from frankenlm.trainer_ext.sweeps.grid import read_sweep

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RUNS = {"joint": 15, "wikitext_recipe": 33}


def checked(words: list[str]):
    run = parse_run([*words, "--output_dir", "o"])
    check_data_arguments(run)
    check_config(run)
    return run


@pytest.mark.parametrize("name", sorted(RUNS))
def test_sweeps_plan(name):
    sweep = read_sweep(CONFIGS / "sweeps" / f"{name}.yaml", ["dataset=builtin", "validation_dataset=builtin-code"])
    assert len({run.name for run in sweep.runs}) == len(sweep.runs) == RUNS[name]
    seeds = sorted({run.seed for run in sweep.runs})
    assert seeds == [0, 1, 2]
    runs = [checked(run.words()) for run in sweep.runs if run.seed == 0]
    assert len(runs) == RUNS[name] / len(seeds)
    tokens = {(run.data.max_length, run.training.max_steps, run.training.train_batch_size) for run in runs}
    assert len(tokens) == 1  # all of them see as many
    assert name != "joint" or {run.data.objective for run in runs} == {"causal", "mlm", "joint"}


def test_joint_and_both_specialists_differ_in_their_objective_alone():
    """One form of text and one start for all, and a metric that ranks no loss against one of another kind."""
    sweep = read_sweep(CONFIGS / "sweeps" / "joint.yaml", ["dataset=builtin", "validation_dataset=builtin-code"])
    runs = [checked(run.words()) for run in sweep.runs if run.seed == 0]
    assert {form_of_text(run.data.objective, has_two_directions(run)) for run in runs} == {"joint"}
    assert all(run.model.paired_start for run in runs) and sweep.metric == "eval_causal_loss"


def test_the_recipe_of_wikitext_asks_what_it_can_answer():
    sweep = read_sweep(CONFIGS / "sweeps" / "wikitext_recipe.yaml", ["dataset=builtin"])
    assert sweep.metric == "lowest_eval_loss"
    rows = [{"loss": 1.0}, {"eval_loss": 4.0, "eval_ema_loss": 5.0}, {"eval_loss": 3.0, "eval_ema_loss": 2.0}]
    assert lowest_loss(rows) == 2.0 and lowest_loss(rows[:1]) is None
    run = checked(sweep.runs[0].words())
    tokens = run.training.max_steps * run.training.train_batch_size * run.data.max_length
    text = (CONFIGS / "sweeps" / "wikitext_recipe.yaml").read_text()
    epoch, epochs = int(re.search(r"(\d+) thousand tokens", text)[1]) * 1000, int(re.search(r"(\d+) epochs", text)[1])
    assert run.data.max_documents == 1800 and epochs == tokens // epoch >= 20


def test_the_recipe_of_wikitext_tries_every_part_of_the_configuration():
    whole = yaml.safe_load((CONFIGS / "infinito_wikitext.yaml").read_text())
    parts = whole["data"] | whole["training"] | {f"model.{name}": value for name, value in whole["model"].items()}
    sweep = yaml.safe_load((CONFIGS / "sweeps" / "wikitext_recipe.yaml").read_text())
    base, runs = sweep["base"], {name: run or {} for name, run in sweep["runs"].items()}
    together, length = runs.pop("together"), {"num_train_epochs"}
    named = {f"model.{name}" if name in ("preset", "tokenizer") else name for name in base}
    assert parts.keys() - named - length <= together.keys() <= parts.keys()
    alone = set().union(*({*run, *run.get("grid", {})} for run in runs.values()))
    of_a_stop = {"early_stopping_patience"}  # the best weights are kept of every run
    assert together.keys() - of_a_stop <= alone and base["load_best_model_at_end"]
    assert all(together[name] == parts[name] for name in together.keys() - of_a_stop)


def test_the_recipe_for_wikitext_is_one_command():
    run = checked(["--config", str(CONFIGS / "infinito_wikitext.yaml")])
    assert run.data.random_offsets and run.training.matrix_optimizer == "muon" and run.training.ema_decay
    assert run.training.load_best_model_at_end and run.data.max_length >= 512
    assert run.training.attention_window_range == [64, 256]
    card = (CONFIGS.parent / "model_cards" / "infinito.md").read_text()
    assert "The file, not the preset, draws the attention window" in card
    assert checked(["--preset", "infinito", "--dataset", "builtin"]).training.attention_window_range is None
