"""scripts/bench_damage.py: a tiny run with every table, and mistakes as one line."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from frankenlm.trainer_ext.cli import run_command

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_damage.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_damage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tiny_run(script, tmp_path, capsys):
    output = tmp_path / "damage.json"
    arguments = ["--threads", "1", "--rounds", "1", "--width", "16", "--output", str(output)]
    assert run_command(script.main, arguments) == 0
    damage, noise = json.loads(output.read_text(encoding="utf-8"))["tables"].values()
    assert [row["weights"] for row in damage] == ["float32", "bfloat16", "float16"]
    columns = {"weights", *script.LEVELS, "restore", "verify"}
    assert all(row.keys() == columns and min(list(row.values())[1:]) > 0 for row in damage)
    assert [row["step"] for row in noise] == ["words", "look-up"]
    assert "| weights |" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("arguments", [["--width", "20"], ["--rounds", "0"], ["--thread", "x"], ["--tread", "1"]])
def test_mistakes(script, arguments, capsys):
    assert run_command(script.main, arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
