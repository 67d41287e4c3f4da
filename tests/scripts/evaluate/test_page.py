"""docs/evaluate.md: every command and every block of Python on the page runs, and it names every measure and module."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from evaluate_cache import evaluate_cache
from frankenlm import command
from frankenlm.trainer_ext.evaluation.flags import METRICS
from frankenlm.trainer_ext.evaluation.modules import MODULES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluate.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def test_the_page_is_whole():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"} and len(COMMANDS) > 5
    page = PAGE.read_text(encoding="utf-8")
    rest = [measure for measures in METRICS.values() for measure in measures if not re.search(r"_[234]$", measure)]
    for name in (*METRICS, *rest, *MODULES):
        assert f"`{name}`" in page, name


@pytest.fixture(scope="module")
def folder(parts, model, unbroken, tmp_path_factory) -> Path:
    """What somebody has who follows the page: two models, texts."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "runs").mkdir()
    for name, place in {"parts": parts, "runs/first": model, "runs/masked": unbroken}.items():
        (folder / name).symlink_to(place)
    (folder / "text.txt").write_text("the cat sat on a mat\n\nbirds sang of rain in spring\n" * 9)
    return folder


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[19:60])
def test_command(folder, monkeypatch, capsys, line):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["frankenlm"])
    program, *words = shlex.split(line)
    assert program == "frankenlm" and command.main(words) == 0, capsys.readouterr().err
    written = re.search(r"--(?:report|output_dir) (\S+)", line)
    assert not written or (folder / written[1]).exists()


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "python"])
def test_python(block, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with evaluate_cache(folder / "evaluate"):
        exec(compile(block, PAGE.name, "exec"), {"__name__": "__page__"})
    assert capsys.readouterr().out.count("\n") == 4
