"""Training on from a saved model that is damaged or odd: one line, before a folder is made."""

import json
from pathlib import Path

import pytest

from fuzz_command import lay_out


@pytest.fixture
def saved(tmp_path):
    """The folder of a tiny causal model with its tokenizer, and texts beside it."""
    lay_out(tmp_path)
    return tmp_path / "precious"


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


DAMAGES = {
    "a dtype that is a number": lambda folder: change_config(folder, dtype=1e9),
    "a billion layers": lambda folder: change_config(folder, num_hidden_layers=10**9),
    "a width of another model": lambda folder: change_config(folder, hidden_size=10**6),
    "no such architecture": lambda folder: change_config(folder, model_type="nothing"),
    "no object": lambda folder: (folder / "config.json").write_text("[]"),
    "weights cut short": cut_weights,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_one_line(saved, run_train, capsys, damage):
    DAMAGES[damage](saved / "model")
    out = saved.parent / "out"
    words = "--objective causal --max_length 16 --batch_size 4 --max_steps 1 --use_cpu --cpu_threads 1"
    code = run_train(
        "--model_name_or_path",
        saved / "model",
        "--dataset",
        saved / "t.jsonl",
        "--output_dir",
        out,
        "--cache_dir",
        saved.parent / "cache",
        *words.split(),
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "--model_name_or_path" in lines[0], lines
    assert not out.exists()
