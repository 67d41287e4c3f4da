"""scripts/train.py under accelerate launch: one process, and two that equal one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from run_outcomes import curves, metrics

ROOT = Path(__file__).resolve().parents[2]


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
