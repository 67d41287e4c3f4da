"""scripts/train.py under accelerate launch: one process, and two that equal one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from run_outcomes import assert_same_run, curves, metrics, weights

ROOT = Path(__file__).resolve().parents[3]
TWICE = ROOT / "tests" / "tools" / "launched_twice.py"


def launch(words: list[str], **environment) -> subprocess.CompletedProcess:
    # port 0: any that is free, as another run on this machine may have the usual one
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--main_process_port", "0", *map(str, words)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def config_file(name: str) -> list[str]:
    return ["--config_file", ROOT / "configs" / "accelerate" / name]


@pytest.mark.slow  # as `make demo` does
def test_one_launched_process(tiny, tmp_path):
    done = launch(
        [*config_file("cpu.yaml"), ROOT / "scripts/train.py", *tiny, "--max_steps", 2, "--output_dir", tmp_path]
    )
    assert done.returncode == 0, done.stderr
    assert "step 2/2 | eval loss" in done.stderr
    assert metrics(tmp_path)["num_processes"] == 1


def test_two_launched_processes_equal_one_with_twice_the_batch(tiny, train, tmp_path):
    # router losses are no sum over tokens, so only a dense model can be equal; no dropout, so masks need not agree
    # a stream, of which each process takes its rows; sharded runs below have data on the disk
    same = ["--model.num_experts", 0, "--model.dropout", 0.0, "--model.attention_dropout", 0.0, "--streaming"]
    two, one = tmp_path / "whole", tmp_path / "one"
    done = launch([*config_file("cpu_2.yaml"), TWICE, tmp_path, 4, *tiny, *same])
    assert done.returncode == 0, done.stderr
    assert metrics(two)["num_processes"] == 2
    assert_same_run(two, tmp_path / "again")
    assert train(one, *same, "--batch_size", 8, "--max_steps", 4) == 0
    ours, theirs = ([row for row in curves(folder) if "loss" in row] for folder in (two, one))
    assert [row["tokens_seen"] for row in ours] == [row["tokens_seen"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert done.stderr.count("step 4/4 | loss") == 2  # one process speaks, in each of the two runs


@pytest.mark.slow
@pytest.mark.parametrize("steps", [12, 50])
def test_two_sharding_processes_equal_one_with_twice_the_batch(tiny, train, tmp_path, steps):
    """FSDP2 on CPUs: each process holds a half, the checkpoint is whole, a resumed run is the same run."""
    same = ["--model.num_experts", 0, "--model.dropout", 0.0, "--model.attention_dropout", 0.0]
    one, half = tmp_path / "one", steps // 2
    # a last batch that is not full is filled up by two processes, and is smaller in one
    rhythm = ["--save_steps", half, "--eval_steps", half, "--learning_rate", 3e-3, "--dataloader_drop_last", "true"]
    done = launch([*config_file("fsdp2_cpu_2.yaml"), TWICE, tmp_path, steps, *tiny, *same, *rhythm])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the gradient guard is off: under FSDP") == 2  # in each of the two runs once
    shards = [json.loads((tmp_path / f"shards-{rank}.json").read_text()) for rank in range(2)]
    for name, (held, whole) in shards[0].items():
        assert held + shards[1][name][0] == whole and held <= (whole + 1) // 2 + whole // 8 + 16, name
    assert_same_run(tmp_path / "whole", tmp_path / "again")

    assert train(one, *same, *rhythm, "--max_steps", steps, "--batch_size", 8) == 0
    ours, theirs = ([row["loss"] for row in curves(folder) if "loss" in row] for folder in (tmp_path / "whole", one))
    assert len(ours) == steps and ours == pytest.approx(theirs, abs=1e-4)
    model, problems = AutoModelForMaskedLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(problems.values())
    shapes = {name: value.shape for name, value in weights(one).items()}
    assert {name: value.shape for name, value in weights(tmp_path / "whole").items()} == shapes
