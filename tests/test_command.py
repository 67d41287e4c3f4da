"""The command `frankenlm`, and help pages that are there at once."""

import contextlib
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from frankenlm import __version__, command
from frankenlm.trainer_ext.commands import help_page

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "datasets", "peft", "matplotlib")
HELP = [
    "frankenlm",
    "frankenlm train --help",
    "frankenlm evaluate --help",
    "frankenlm generate --help",
    "frankenlm compare --help",
    "frankenlm pack --help",
    "frankenlm sweep --help",
    "frankenlm suite --help",
    "frankenlm analyze --help",
    "frankenlm check --help",
    "frankenlm app --help",
]


@pytest.mark.parametrize("line", HELP)
def test_help_waits_for_no_heavy_import(line):
    """Torch and transformers take seconds to import; what imports neither is there within two."""
    code = (
        "import atexit, sys; from frankenlm.command import main; "
        f"atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)); "
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code, *shlex.split(line)[1:]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "usage: " in done.stdout


def test_every_script_is_a_verb(capsys):
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    for path in (ROOT / "scripts").glob("[!_]*.py"):
        assert f"\n  {command.NAMES.get(path.stem, path.stem)} " in shown


@pytest.mark.parametrize("verb", [*command.verbs(), "degrade run", "degrade report"])
def test_help_names_what_an_installation_has(verb, capsys, monkeypatch):
    """Commands, not the scripts of a clone."""
    monkeypatch.setattr(sys, "argv", ["frankenlm"])
    with contextlib.suppress(SystemExit):
        command.main(["help", *verb.split()])
    shown = capsys.readouterr().out
    assert f"frankenlm {verb}" in shown and not re.findall(r"(?:python|launch) scripts/\S*", shown)


def test_help_is_a_word_too(capsys):
    for words in (["help"], ["--help"]):
        assert command.main(words) == 0 and capsys.readouterr().out == f"{command.overview()}\n"
    assert command.main(["help", "evalute"]) == 2 and "Did you mean 'evaluate'?" in capsys.readouterr().err


def test_a_verb_runs_and_mistakes_are_told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["frankenlm"])
    assert command.main(["--version"]) == 0 and capsys.readouterr().out == f"{__version__}\n"
    assert command.main(["evalute"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown verb 'evalute'. Did you mean 'evaluate'? "
        "Known: analyze, app, check, compare, degrade, evaluate, export, generate, pack, push, serve, suite, sweep, "
        "train.\n"
    )
    assert command.main(["pack", "--modl", "x"]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_help_page_of_training_is_what_the_parser_says():
    locked = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"transformers=={version('transformers')}\n" not in locked:
        pytest.skip("the page is written with the transformers of constraints.txt, whose flags it lists")
    again = "write it anew: python -m frankenlm.trainer_ext.commands.help_page"
    assert help_page.help_page() == help_page.format_page(), again
