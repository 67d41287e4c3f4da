"""scripts/suite.py: what is run, what is not run again, what is refused before anything is.

A run is a stand-in that takes no time, but for one test and a slow one.
"""

import csv
import json
import os
import signal

import pytest

from frankenlm.trainer_ext.commands import suite as commands
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.common.folder_lock import locked_folder
from frankenlm.trainer_ext.synthetic.models import MODELS
from frankenlm.trainer_ext.synthetic.training import SuiteRun

from .conftest import load_script

SMALL = (
    *("--quick", "--tasks", "mqar", "--mixers", "softmax", "retnet", "--learning_rates", "0.01", "0.02"),
    *("--seeds", "0", "1", "--log_level", "warning"),
)


@pytest.fixture
def made(monkeypatch) -> list[SuiteRun]:
    """The runs that the stand-in made; accuracy grows with the rate."""
    runs = []

    def train_and_ask(run, task, after_step):
        runs.append(run)
        after_step()
        accuracy = min(run.learning_rate * 30 + run.seed % 10 * 0.01, 1.0)
        return {"accuracy": accuracy, "loss": 1.0, "chance": 0.25, "parameters": 9, "state_size": 4, "seconds": 0.1}

    monkeypatch.setattr(commands, "train_and_ask", train_and_ask)
    return runs


@pytest.fixture
def suite(tmp_path):
    """suite(*words) runs scripts/suite.py in this process and returns its exit code."""
    main = load_script("suite").main
    return lambda *words: run_command(main, ["--output_dir", str(tmp_path / "out"), *words])


def rows(tmp_path) -> list[dict]:
    with (tmp_path / "out" / "suite.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_rate_is_chosen_by_one_seed_and_told_by_others(suite, made, tmp_path, capsys):
    assert suite(*SMALL) == 0
    told = [(run.mixer, run.learning_rate, run.seed) for run in made]
    trials = [(0.01, 1000), (0.02, 1000), (0.02, 0), (0.02, 1)]
    assert told == [(mixer, *trial) for mixer in ("softmax", "retnet") for trial in trials]
    assert [row["role"] for row in rows(tmp_path)] == ["selection", "selection", "report", "report"] * 2
    shown = capsys.readouterr().out
    assert "0.605 ± 0.007" in shown and "planned runs" not in shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"suite.csv", "suite.json", "suite.md", "suite.png", "suite.log"}
    facts = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert facts["finished_runs"] == facts["planned_runs"] == 8
    del made[:]
    assert suite(*SMALL) == 0 and made == []  # nothing is run twice
    assert suite(*SMALL, "--seeds", "0", "1", "2") == 0
    assert [run.seed for run in made] == [2, 2]
    assert suite(*SMALL, "--set", "mqar.pairs=2") == 0 and len(made) == 10  # other sizes are other runs


def test_a_signal_keeps_what_is_finished(suite, made, tmp_path, capsys, monkeypatch):
    plain = commands.train_and_ask

    def interrupted(run, task, after_step):
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, task, after_step)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "train_and_ask", interrupted)
        assert suite(*SMALL) == 143
    assert "interrupted: the finished runs are kept" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 3
    assert "**3 of 8 planned runs are finished**" in (tmp_path / "out" / "suite.md").read_text()
    assert suite(*SMALL) == 0 and len(made) == 4 + 5 and len(rows(tmp_path)) == 8


def test_reports_alone_and_a_card(suite, made, tmp_path):
    assert suite(*SMALL, "--report_only") == 0 and made == []
    assert suite(*SMALL) == 0 and len(made) == 8
    card = tmp_path / "cards" / "suite.md"
    card.parent.mkdir()
    assert suite(*SMALL, "--report_only", "--card", str(card)) == 0 and len(made) == 8
    page = (tmp_path / "out" / "suite.md").read_text()
    assert card.read_text() == page.replace("(suite.png)", "(../out/suite.png)")


def test_a_dry_run_writes_nothing(suite, made, tmp_path, capsys):
    assert suite("--dry_run") == 0 and made == [] and not (tmp_path / "out").exists()
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "66 cells, 396 runs: 3 to choose a rate and 3 seeds each"
    assert shown[0].split() == ["mqar", "softmax", "hidden_size", "32,", "400", "steps"]
    assert {line.split()[1] for line in shown[:-1]} == set(MODELS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks mqr", "--tasks='mqr' is not known. Did you mean 'mqar'?"),
        ("--mixers mambo", "--mixers='mambo' is not known. Did you mean 'mamba'?"),
        ("--mixers mamba mamba", "--mixers mamba mamba: must be different."),
        ("--set mqar.pairs=9", "task mqar: pairs=9 do not fit into length=32"),
        ("--hidden_sizes 7", "at --hidden_sizes 7: "),
        ("--hidden_sizes 0", "at --hidden_sizes 0: "),
        ("--learning_rates 2", "--learning_rates 2.0: must lie between 0 and 1."),
        ("--seeds 0 1000", "--selection_seed 1000: is one of --seeds"),
        ("--seeds 1 1", "--seeds 1 1: must be different numbers."),
        (
            "--tasks memorization --set memorization.length=2 memorization.facts=8",
            "Memorization with length=2 has so few different rows that 8 in the test leave none to train on",
        ),
        ("--steps 0", "--steps 0: must be at least 1."),
        ("--threads 0", "--threads 0: must lie between 1 and"),
        ("--card card.txt", "--card card.txt: name a file that ends in .md."),
        ("--step 3", "unknown argument '--step'. Did you mean '--steps'?"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(suite, made, tmp_path, capsys, words, message):
    assert suite(*words.split()) == 2
    assert message in capsys.readouterr().err
    assert made == [] and not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(suite, made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out"):
        assert suite(*SMALL) == 2
    assert "is in use by another run" in capsys.readouterr().err and made == []


def test_a_small_suite_runs(suite, tmp_path):
    words = "--quick --tasks mqar --mixers softmax --steps 2 --threads 1 --log_level warning"
    assert suite(*words.split()) == 0
    (_, told) = rows(tmp_path)
    assert 0 <= float(told["accuracy"]) <= 1 and told["steps"] == "2" and told["hidden_size"] == "16"


@pytest.mark.slow
def test_the_quick_suite_runs(suite, tmp_path):
    """Every mixer on both tasks, in about a minute."""
    assert suite("--quick", "--threads", "1") == 0
    assert len(rows(tmp_path)) == 2 * len(MODELS) * 2
