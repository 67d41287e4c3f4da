"""scripts/bench/damage.py: a tiny run with every table, and mistakes as one line."""

import json

import pytest
import torch

from frankenlm.scripts.bench import damage as script_module
from frankenlm.trainer_ext.common.cli import run_command


@pytest.fixture(scope="module")
def script():
    return script_module


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
