"""Every file that a page, a card, a docstring or a comment names is there."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"(?<![\w/.<*{-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|cpp|h|inc|sh|yaml))(?![\w/.])")
# What users write, what a run leaves behind, and files of other projects
ELSEWHERE = {
    "run.yaml",
    "card.md",
    "compare.md",
    "evaluation.md",
    "sweep.md",
    "suite.md",
    "grid.yaml",
    "small.yaml",
    "rates.yaml",
    "chosen.yaml",
    "lora.yaml",
    "base.yaml",
    "cats.yaml",
    "llama.cpp",
    "ik_llama.cpp",
    "pydoc_data/topics.py",
}
OTHERS = ("runs/", "transformers/", "json/")


def tracked(*patterns: str) -> list[Path]:
    found = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("no git here to say which files belong to the project")
    return [ROOT / line for line in found.stdout.splitlines()]


def missing(path: Path, text: str, names: set[str]) -> list[str]:
    """The files that a text names and that lie nowhere: from a folder above them, or by a name alone."""
    found = []
    for name in NAMED.findall(text):
        here = any((folder / name).exists() for folder in path.parents if folder.is_relative_to(ROOT))
        if not here and name not in ELSEWHERE and not name.startswith(OTHERS) and ("/" in name or name not in names):
            found.append(name)
    return found


def said(path: Path) -> str:
    """The docstrings and comments of a source file."""
    text = path.read_text(encoding="utf-8")
    comments = re.findall(r"(?:#|//) [^\n]*", text)
    if path.suffix == ".py":
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        comments += [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return "\n".join(comments)


def test_pages_name_files_that_are_there():
    names = {path.name for path in tracked()}
    for path in tracked("*.md", "*.yaml", "Makefile", "*.cfg", "*.toml"):
        assert not missing(path, path.read_text(encoding="utf-8"), names), path.relative_to(ROOT)


@pytest.mark.parametrize("part", ["modeling", "trainer_ext", "degradation", "kernels", "scripts", "frankenlm", "tests"])
def test_code_names_files_that_are_there(part):
    """In docstrings and comments; strings of tests name what they make themselves."""
    names = {path.name for path in tracked()}
    for path in tracked(f"{part}/*.py", f"{part}/*.cpp", f"{part}/*.h", f"{part}/*.inc"):
        assert not missing(path, said(path), names), path.relative_to(ROOT)
