"""scripts/bench/training.py: mistakes come before the models; a round of tiny models; a process that ends early."""

import json
import os

import pytest

from frankenlm.scripts.bench import training as script_module
from frankenlm.trainer_ext.common.cli import Failed, run_command


@pytest.fixture(scope="module")
def script():
    return script_module


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch 0: must be at least 1"),
        (["--length", "1"], "--length 1: must be at least 2"),
        (["--length", "513"], "--length 513: the models have 512 positions"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--threads", "-1"], "--threads -1: must lie between 1 and 1024"),
        (["--output", ""], "argument --output: is empty"),
        (["--record", "{folder}"], "is a folder; name a file in it"),
        (["--round", "2"], "Did you mean '--rounds'"),
        (["--batch", "2e3"], "invalid int value"),
    ],
)
def test_mistakes(words, message, script, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "run", lambda arguments: pytest.fail("models were made"))
    assert run_command(script.main, [word.format(folder=tmp_path) for word in words]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_table_is_written(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "run", lambda arguments: [{"model": "mini", "tokens/s": 1.5}])
    words = ["--output", tmp_path / "deep" / "a.json", "--record", tmp_path / "record.md"]
    assert run_command(script.main, list(map(str, words))) == 0
    assert "| mini | 1.5 |" in capsys.readouterr().out and "| mini | 1.5 |" in (tmp_path / "record.md").read_text()
    assert json.loads((tmp_path / "deep" / "a.json").read_text())["tables"]


def test_a_process_that_ended_early_is_named(script):
    class Pipe:
        def send(self, question):
            raise BrokenPipeError(os.strerror(32))

    with pytest.raises(Failed, match="the process of 'mini' ended early"):
        script.ask(Pipe(), "step", "mini")
