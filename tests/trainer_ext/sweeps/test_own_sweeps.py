"""The sweeps that the repository brings, and its recipes: every run of them can be trained."""

from pathlib import Path

import pytest

from frankenlm.trainer_ext.preflight import check_config, check_data_arguments
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.sweeps.grid import read_sweep

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RUNS = {"joint": 15, "wikitext_recipe": 10}


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
    assert seeds == ([0, 1, 2] if name == "joint" else [0])
    runs = [checked(run.words()) for run in sweep.runs if run.seed == 0]
    assert len(runs) == RUNS[name] / len(seeds)
    tokens = {(run.data.max_length, run.training.max_steps, run.training.train_batch_size) for run in runs}
    assert len(tokens) == 1  # all of them see as many
    assert name != "joint" or {run.data.objective for run in runs} == {"causal", "mlm", "joint"}


def test_the_recipe_for_wikitext_is_one_command():
    run = checked(["--config", str(CONFIGS / "infinito_wikitext.yaml")])
    assert run.data.random_offsets and run.training.matrix_optimizer == "muon" and run.training.ema_decay
    assert run.training.load_best_model_at_end and run.data.max_length >= 512
