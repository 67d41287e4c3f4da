"""docs/recipes.md: every command and every block of Python runs, in the order of the page, in one folder."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from frankenlm import command
from page_blocks import page_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BLOCKS = page_blocks(PAGE)
FILES = {name: text for _, name, text in BLOCKS if name}
RECIPES = ("LoRA", "QLoRA", "Supervised", "Preferences", "lm-evaluation-harness", "Sentence", "Sweep")
LEFT_BEHIND = ("adapter", "lora", "merged", "qlora", "sft", "dpo", "sentences", "rates")


def test_the_page_has_its_recipes():
    text = PAGE.read_text(encoding="utf-8")
    assert set(FILES) == {"base.yaml", "cats.yaml", "cats.jsonl", "rates.yaml"}
    assert all(f"\n## {name}" in text for name in RECIPES)
    for kind, name, block in BLOCKS:
        if kind == "python":
            compile(block, PAGE.name, "exec")
        assert kind in ("bash", "python") or name, "what is shown is run, or laid into the folder"


def run_line(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "frankenlm":
        assert command.main(words) == 0, line
        return
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "acc" in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")  # those of other libraries are theirs
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["frankenlm"])
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for kind, _, block in BLOCKS:
        if kind == "python":
            exec(compile(block, PAGE.name, "exec"), {"__name__": "__page__"})
        elif kind == "bash":
            for line in block.splitlines():
                run_line(line)
    for name in LEFT_BEHIND:
        assert any((tmp_path / "runs" / name).iterdir()), name
    out = capsys.readouterr().out
    assert "nats a word" in out and "cat and cats" in out
