"""A sweep's file: which runs it asks for, under which names, and which mistakes are told."""

from pathlib import Path

import pytest

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.sweeps.grid import read_sweep

SWEEPS = Path(__file__).resolve().parents[3] / "configs" / "sweeps"
BASE = "base: {preset: mini, dataset: builtin, max_steps: 3}\n"


@pytest.fixture
def read(tmp_path):
    def read(text: str, *changes: str):
        path = tmp_path / "rates.yaml"
        path.write_text(text)
        return read_sweep(path, changes)

    return read


def test_a_grid_is_every_combination_with_every_seed(read):
    text = "grid: {learning_rate: [1e-3, 3e-3], num_experts: [2, 4]}\nseeds: [0, 1]\n"
    sweep = read(BASE + text)
    assert (sweep.name, sweep.metric) == ("rates", "eval_loss")
    assert sweep.axes == ["learning_rate", "model.num_experts"]
    names = [run.name for run in sweep.runs]
    assert len(names) == 8 and names[:3] == [
        "learning_rate=0.001,num_experts=2,seed=0",
        "learning_rate=0.001,num_experts=2,seed=1",
        "learning_rate=0.001,num_experts=4,seed=0",
    ]
    run = parse_run([*sweep.runs[3].words(), "--output_dir", "o"])
    assert (run.training.learning_rate, run.training.seed, run.training.max_steps) == (1e-3, 1, 3)
    assert run.model_fields == {"num_experts": 4}


def test_named_runs_have_grids_of_their_own(read):
    text = "runs:\n  plain:\n  muon: {matrix_optimizer: muon, grid: {learning_rate: [1e-3, 3e-3]}}\n"
    sweep = read(BASE + text)
    assert [run.name for run in sweep.runs] == ["plain", "muon,learning_rate=0.001", "muon,learning_rate=0.003"]
    assert [run.group for run in sweep.runs] == ["plain", "muon", "muon"]
    assert sweep.runs[0].settings == {"preset": "mini", "dataset": "builtin", "max_steps": 3}
    assert "--matrix_optimizer=muon" in sweep.runs[1].words()
    shorter = read(BASE + "runs: {short: {max_steps: 2, grid: {dataset: [builtin-code]}}}\n").runs[0].settings
    assert (shorter["max_steps"], shorter["dataset"]) == (2, "builtin-code")


def test_values_reach_the_parser_as_they_were_meant(read):
    text = (
        "base: {preset: mini, dataset: builtin, batch_size: 2, packing: no, training: {bf16: true}}\n"
        "grid:\n  model.layer_pattern: [[retnet, mamba], [ode]]\n  use_bitnet: [no, true]\n  optim: [adamw_torch]\n"
        "  model.norm_type: [rms_norm]\n  model.attention_window: [null]\n"
    )
    sweep = read(text)
    assert len({run.name for run in sweep.runs}) == 4 and all("/" not in run.name for run in sweep.runs)
    run = parse_run([*sweep.runs[0].words(), "--output_dir", "o"])
    assert (run.training.per_device_train_batch_size, run.data.packing, run.training.bf16) == (2, False, True)
    fields = {"layer_pattern": ["retnet", "mamba"], "use_bitnet": False, "norm_type": "rms_norm"}
    assert run.model_fields == {**fields, "attention_window": None}


def test_set_takes_the_place_of_base(read):
    sweep = read(BASE + "seeds: [0]\n", "max_steps=9", "model.num_loops=1")
    assert sweep.runs[0].settings == {
        "preset": "mini",
        "dataset": "builtin",
        "max_steps": 9,
        "model.num_loops": 1,
        "seed": 0,
    }


def test_set_says_which_runs_keep_their_own(read, caplog):
    text = BASE + "runs: {short: &own {max_steps: 2}, same: , wide: {<<: *own, num_experts: 4}}\n"
    assert [run.settings["max_steps"] for run in read(text, "max_steps=9").runs] == [2, 9, 2]
    assert caplog.messages == ["--set max_steps=9: not for short, wide, which keep their own"]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("runs: {a: {max_steps: 4}, b: {grid: {max_steps: [2, 3]}}}\n", "max_steps=1"),
        ("grid: {per_device_train_batch_size: [2, 4]}\n", "batch_size=1"),
        ("choice: {setting: learning_rate, values: [1, 2, 3], seed: 9}\nseeds: [0]\n", "learning_rate=1"),
    ],
)
def test_a_change_of_nothing_is_told(read, text, change):
    with pytest.raises(UserError, match=r"--set \S+=1: (changes no run|is what is chosen).*: change"):
        read(BASE + text, change)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("bases: {}\n", "unknown key 'bases'. Did you mean 'base'"),
        (BASE, "nothing varies"),
        ("base: {max_step: 3}\nseeds: [0]\n", "base: unknown key 'max_step'. Did you mean 'max_steps'"),
        (BASE + "grid: {learning_rat: [1]}\n", "grid: unknown key 'learning_rat'. Did you mean 'learning_rate'"),
        (BASE + "grid: {model.num_expert: [1]}\n", "Did you mean 'model.num_experts'"),
        (BASE + "grid: {learning_rate: 1}\n", "learning_rate: a list of values is expected"),
        (BASE + "grid: {learning_rate: []}\n", "learning_rate: a list of values is expected"),
        (BASE + "grid: {learning_rate: [1e-3, 0.001]}\n", "a value stands twice"),
        (BASE + "grid: 3\n", "grid: expected 'key: value' lines, found"),
        (BASE + "runs: [a]\n", "runs: expected 'name: settings' lines, found list"),
        (BASE + "runs: {a: 3}\n", "run 'a': expected 'key: value' lines"),
        (BASE + "runs: {a: {grid: {seeds: [1]}}}\n", "run 'a', grid: unknown key 'seeds'. Did you mean 'seed'"),
        (BASE + "seeds: [0, 0]\n", "must be different numbers"),
        (BASE + "seeds: [zero]\n", "seeds: a list of whole numbers"),
        (BASE + "seeds: [-1]\n", "must lie between 0 and"),
        ("base: {seed: 1}\nseeds: [0]\n", "base has a seed, and there are seeds"),
        (BASE + "seeds: [0]\nmetric: eval_los\n", "Did you mean 'eval_loss'"),
        ("base: {output_dir: o}\nseeds: [0]\n", "output_dir is what the sweep says"),
        ("base: {batch_size: 2, per_device_train_batch_size: 3}\nseeds: [0]\n", "stands twice, under two names"),
    ],
)
def test_mistakes_are_one_line(read, text, told):
    with pytest.raises(UserError) as caught:
        read(text)
    assert told in str(caught.value)
    assert "rates.yaml" in str(caught.value) or "--seeds" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["max_steps", "max_step=3", "max_steps=[1"])
def test_a_bad_change_is_told(read, change):
    with pytest.raises(UserError, match="--set"):
        read(BASE + "seeds: [0]\n", change)
