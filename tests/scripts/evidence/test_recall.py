"""scripts/evidence/recall.py: a table of tiny trainings, resumed, contradicted."""

import csv
from pathlib import Path

import pytest
import torch

from frankenlm.scripts.evidence import recall as script_module
from frankenlm.scripts.evidence import recall_table as recall_evidence
from frankenlm.scripts.evidence.recall_table import COLUMNS, MODELS, read_rows, recall_findings, recall_table
from frankenlm.scripts.evidence.recall_task import RecallTask
from frankenlm.trainer_ext.common.cli import run_command

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--steps", 2, "--batch", 2, "--models", "titan, window", "infinito, window"]


@pytest.fixture(scope="module")
def command():
    return lambda *words: run_command(script_module.main, [str(word) for word in words])


@pytest.mark.parametrize("name", MODELS)
def test_only_models_with_a_memory_or_the_whole_row_reach_over_the_filler(name):
    """Whether the last prediction depends on the first token: the floor's must not, all others' must."""
    task = RecallTask()
    torch.manual_seed(0)
    model = MODELS[name](task).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a way out that starts at zero would hide the memory
            parameter.add_(0.05 * torch.randn_like(parameter))
        ids, _ = task.batch(1, torch.Generator().manual_seed(0))
        other = ids.clone()
        other[:, 1] = task.keys + (ids[:, 1] - task.keys + 1) % task.values
        ends = [model(rows, use_cache=False).logits[:, -1] for rows in (ids, other)]
    reaches = "memory" in name or "whole row" in name
    assert (not torch.equal(*ends)) is reaches


def test_rows_are_kept_and_not_made_again(command, tmp_path, monkeypatch, capsys):
    assert command("--output_dir", tmp_path, *TINY, "--seeds", 0, 1) == 0
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [(row["model"], row["seed"]) for row in rows] == [
        (model, seed) for seed in "01" for model in ("titan, window", "infinito, window")
    ]
    assert tuple(rows[0]) == COLUMNS and all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    before = (tmp_path / "runs.csv").read_bytes()
    monkeypatch.setattr(recall_evidence, "train_recall", lambda *a, **k: pytest.fail("a finished row is repeated"))
    assert command("--output_dir", tmp_path, *TINY, "--seeds", 0, 1) == 0
    assert (tmp_path / "runs.csv").read_bytes() == before
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_table_by_hand():
    row = dict(zip(COLUMNS, ("titan, window", 0, 2, 2, 0.003, 1234, 0.1, 0.0625, 1.0), strict=True))
    table = recall_table([row, {**row, "seed": 1, "accuracy": 0.3}])
    assert "| titan, window | 1,234 | 0.200 ± 0.141 | 2 |" in table
    assert "| infinito, whole row |  | missing | 0 |" in table
    assert "2 steps of 2 sequences, learning rate 0.003; chance is 0.0625" in table
    assert "| titan, window | 1,234 | 0.100 | 1 |" in recall_table([row])  # one seed has no spread


@pytest.mark.parametrize(
    ("memory", "whole", "told"),
    [
        (1.0, 0.99, "delta memory: more than 0.95 with 1 of 1 seed (mean 1.000; without memory 0.060)."),
        (0.2, 0.99, "delta memory: more than 0.95 with 0 of 1 seed (mean 0.200; without memory 0.060)."),
        (0.2, 0.13, "its trunk with the whole row in view fails too (0.130), so this says little of the memory."),
    ],
)
def test_what_a_table_says(memory, whole, told):
    accuracy = {"titan, window": 0.06, "titan, window, delta memory": memory, "titan, whole row": whole}
    rows = [{"model": model, "accuracy": value} for model, value in accuracy.items()]
    (line,) = recall_findings(rows)
    assert told in line and ("says little" in line) is (whole < 0.95)
    assert recall_findings(rows[:2]) == []  # without a ceiling nothing is said
    (both,) = recall_findings([*rows, {**rows[1], "accuracy": 0.97}])
    assert f"with {1 + (memory > 0.95)} of 2 seeds" in both


@pytest.mark.parametrize(
    ("model", "filler", "is_whole"),
    [
        ("infinito pre-norm, window, attention memory, 96 slots", 64, True),
        ("infinito pre-norm, window, attention memory, 32 slots", 16, True),  # 16 + 32 tokens in reach, of 48
        ("infinito pre-norm, window, attention memory, 32 slots", 17, False),
        ("infinito pre-norm, window, attention memory, 32 slots", 64, False),
        ("infinito pre-norm, window, slot memory, segments of 1", 64, False),
    ],
)
def test_slots_that_hold_the_whole_row_solve_nothing(model, filler, is_whole):
    trunk = "infinito pre-norm"
    accuracy = {f"{trunk}, window": 0.06, model: 1.0, f"{trunk}, whole row": 0.98}
    rows = [{"model": name, "accuracy": value} for name, value in accuracy.items()]
    (line,) = recall_findings(rows, RecallTask(filler_length=filler))
    assert ("no slot was replaced: this is attention over the whole row" in line) is is_whole
    assert ("more than" in line) is not is_whole and "mean 1.000; without memory 0.060" in line


def test_the_committed_table_and_card_are_what_the_rules_make_of_the_committed_rows():
    folder = ROOT / "results" / "samples" / "recall"
    table = recall_table(read_rows(folder / "runs.csv"))
    assert (folder / "table.md").read_text(encoding="utf-8") == table
    assert table in (ROOT / "model_cards" / "infinito.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "titan, windw"], "Did you mean 'titan, window'"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--learning_rate", "2"], "--learning_rate 2.0: must lie between 0 and 1"),
        (["--threads", "0"], "--threads 0: must lie between 1 and 1024"),
        (["--seeds", "1", "1"], "--seeds 1 1: must be different numbers"),
        (["--seeds", "-1"], "--seeds -1: must lie between 0 and 2^63 - 1"),
    ],
)
def test_mistakes(words, message, command, tmp_path, capfd):
    assert command("--output_dir", tmp_path / "out", *words) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,seed\nx,0\n", "is not a table of this script"),
        (f"{','.join(COLUMNS)}\nx,zero,2,2,0.003,1,0.1,0.1,1.0\n", "is damaged"),
        (f"{','.join(COLUMNS)}\nx,0,3,2,0.003,1,0.1,0.1,1.0\n", "was made with other settings"),
    ],
)
def test_other_tables_are_refused_and_kept(content, message, command, tmp_path, capfd):
    (tmp_path / "runs.csv").write_text(content)
    assert command("--output_dir", tmp_path, *TINY) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "runs.csv").read_text() == content


def test_an_empty_folder_name_is_not_the_folder_one_stands_in(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert command("--output_dir", "", *TINY) == 2
    assert "argument --output_dir: is empty" in capfd.readouterr().err and not list(tmp_path.iterdir())
