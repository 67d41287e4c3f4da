"""scripts/train.py under accelerate launch: one process, and two that equal one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frankenlm.trainer_ext.saving.training_csv import read_csv

ROOT = Path(__file__).resolve().parents[2]
# what a resumed run must repeat bit for bit; the rest are timings
CURVES = ("step", "tokens_seen", "loss", "eval_loss", "learning_rate", "grad_norm", "aux_loss", "expert_load_min")


def curves(folder: Path) -> list[dict]:
    return [{name: row[name] for name in CURVES if name in row} for row in read_csv(folder / "training.csv")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(one: Path, other: Path):
    assert curves(one) == curves(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def launch(words: list[str], **environment) -> subprocess.CompletedProcess:
    # port 0: any that is free, as another run on this machine may have the usual one
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--main_process_port", "0", *map(str, words)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def config_file(name: str) -> list[str]:
    return ["--config_file", ROOT / "configs" / "accelerate" / name]


def test_one_launched_process(tiny, tmp_path):
    done = launch(
        [*config_file("cpu.yaml"), ROOT / "scripts/train.py", *tiny, "--max_steps", 2, "--output_dir", tmp_path]
    )
    assert done.returncode == 0, done.stderr
    assert "step 2/2 | eval loss" in done.stderr
    assert metrics(tmp_path)["num_processes"] == 1


def test_two_launched_processes_equal_one_with_twice_the_batch(tiny, train, tmp_path):
    # router losses are no sum over tokens, so only a dense model can be equal; no dropout, so masks need not agree
    same = ["--max_steps", 4, "--model.num_experts", 0, "--model.dropout", 0.0, "--model.attention_dropout", 0.0]
    two, one = tmp_path / "two", tmp_path / "one"
    done = launch([*config_file("cpu_2.yaml"), ROOT / "scripts/train.py", *tiny, *same, "--output_dir", two])
    assert done.returncode == 0, done.stderr
    assert metrics(two)["num_processes"] == 2
    assert train(one, *same, "--batch_size", 8) == 0
    ours, theirs = ([row for row in curves(folder) if "loss" in row] for folder in (two, one))
    assert [row["tokens_seen"] for row in ours] == [row["tokens_seen"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert done.stderr.count("step 4/4 | loss") == 1  # one process speaks
