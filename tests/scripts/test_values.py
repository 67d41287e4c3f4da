"""Values that are mistakes: for every option of these commands one line, exit code 2, nothing read, nothing made.

The options come from the parsers themselves, so that a new one is tried without being listed here.
"""

import argparse
from types import ModuleType

import pytest

from frankenlm.trainer_ext import packed_checkpoints
from frankenlm.trainer_ext.common import checkpoints, opening
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.evaluation import scored_text, scoring

from .conftest import load_script

COMMANDS = {
    "evaluate": ["--model", "m/x", "--dataset", "builtin"],
    "generate": ["--model", "m/x", "--prompt", "the cat"],
    "compare": ["--models", "m/x", "--output_dir", "out"],
    "pack": ["--model", "m/x", "--output", "out"],
}
SCRIPTS: dict[str, ModuleType] = {name: load_script(name) for name in COMMANDS}
WORDS = ["", "\udcff", "a\0b"]
WHOLE = ["-1", "0", "x", "1e3", "99999999999999999999", ""]
BROKEN = ["-1", "nan", "inf", "-inf", "1e999", "x", ""]
ZERO_IS_A_VALUE = {"--seed", "--split_seed", "--bootstrap_iters"}


def options(command: str) -> list[argparse.Action]:
    return [action for action in SCRIPTS[command].build_parser()._actions if action.dest != "help"]


def mistakes(action: argparse.Action) -> list[str]:
    """Values that this option cannot mean, by its type."""
    if action.nargs == 0:
        return []
    if action.choices is not None:
        return ["banana", *WORDS]
    if action.dest == "prompt":  # which begins a document
        return WORDS[1:]
    if action.type is int:
        return [value for value in WHOLE if not (value == "0" and action.option_strings[0] in ZERO_IS_A_VALUE)]
    return BROKEN if action.type is float else WORDS


CASES = [
    (command, action.option_strings[0], value)
    for command in COMMANDS
    for action in options(command)
    for value in mistakes(action)
]


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("a mistake on the command line is told before anything is read")

    for place, name in (
        (opening, "read_config"),
        (opening, "AutoConfig"),
        (opening, "AutoTokenizer"),
        (opening, "PreTrainedConfig"),
        (scoring, "read_config"),
        (checkpoints, "read_config"),
        (packed_checkpoints, "read_config"),
        (scored_text, "load_documents"),
        (scored_text, "load_splits"),
        (scored_text, "find_sources"),
    ):
        monkeypatch.setattr(place, name, read)


@pytest.mark.parametrize(("command", "option", "value"), CASES, ids=[ascii(case) for case in CASES])
def test_a_value_that_is_a_mistake(command, option, value, nothing_is_read, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(SCRIPTS[command].main, [*COMMANDS[command], f"{option}={value}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and len(err.splitlines()) == 1
    assert option in err or option.removeprefix("--") in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_value_at_all(command, nothing_is_read, capsys):
    """`--option=--` is an empty list to argparse, whatever the option's type."""
    for action in options(command):
        if action.nargs not in (0, "?") and action.default != []:
            assert run_command(SCRIPTS[command].main, [*COMMANDS[command], f"{action.option_strings[0]}=--"]) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1


OUTPUTS = {
    "evaluate": [("--report", "{tmp}"), ("--report", "/dev/null"), ("--report", "n" * 300), ("--report", "f/r.json")],
    "generate": [
        ("--json", "{tmp}/d.json"),
        ("--json", "n" * 300 + ".json"),
        ("--json", "f/r.json"),
        ("--json", "r.txt"),
        ("--attention_map", "n" * 300 + ".png"),
        ("--memory_map", "f/m.png"),
    ],
    "compare": [("--output_dir", "f"), ("--output_dir", "n" * 300), ("--output_dir", "{tmp}/taken")],
    "pack": [("--output", "f"), ("--output", "n" * 300), ("--output", "f/out"), ("--output", "{tmp}/taken")],
}


@pytest.mark.parametrize(
    ("command", "option", "value"), [(command, *pair) for command, pairs in OUTPUTS.items() for pair in pairs]
)
def test_a_place_that_cannot_be_written(command, option, value, nothing_is_read, tmp_path, monkeypatch, capsys):
    """A folder where a file should be, a device, a name that is too long, a file where a folder should be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_text("mine")
    (tmp_path / "d.json").mkdir()
    (tmp_path / "taken" / "compare.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert run_command(SCRIPTS[command].main, [*COMMANDS[command], option, value.format(tmp=tmp_path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "f").read_text() == "mine"
