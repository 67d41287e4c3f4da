"""CONTRIBUTING's "To add a command" and "To add a metric", followed to the letter in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("modeling", "trainer_ext", "degradation", "kernels", "scripts")

COMMAND = '''
"""Count the words of a file. A sentence that the overview leaves out."""

import argparse
import sys
from pathlib import Path

from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, run_command


def main(argv=None):
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--file", required=True, type=Path)
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    if not args.file.is_file():
        raise UserError(f"--file {args.file}: no such file.")
    print(len(args.file.read_text().split()))
'''
MEASURE = '''
def mean_length(texts):
    """Return the mean number of tokens."""
    return {"mean_length": _mean(map(len, texts))}


'''
USE_MEASURE = """
from frankenlm.trainer_ext.evaluation.comparing import choose_metrics
from frankenlm.trainer_ext.evaluation.scoring import fitting_metrics, parse_metrics
from frankenlm.trainer_ext.metrics.text import Written, measure_written

assert fitting_metrics(parse_metrics("length"), "causal", asked_for_all=False) == ["length"]
assert choose_metrics("length,speed", has_data=False, has_references=False) == ["length", "speed"]
assert measure_written(Written([[1, 2, 3], [4]], ["a", "b"], 9), ["length"]) == {"mean_length": 2.0}
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """The folder of a copy of frankenlm, laid out as an installed one is."""
    folder = shutil.copytree(ROOT / "frankenlm", tmp_path / "frankenlm", ignore=shutil.ignore_patterns("__pycache__"))
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "bench", "evidence"))
    return folder


def run(package: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *words], cwd=package.parent, env=environment, capture_output=True, text=True)


def insert(path: Path, line: str, addition: str) -> None:
    """Put a text before the line that it belongs to, which must be there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1, line
    path.write_text(text.replace(line, addition + line), encoding="utf-8")


def test_a_command_is_a_file(package):
    (package / "scripts" / "count.py").write_text(COMMAND.lstrip())
    assert "  count      Count the words of a file\n" in run(package, "-m", "frankenlm").stdout
    (package.parent / "text").write_text("one two three")
    done = run(package, "-m", "frankenlm", "count", "--file", "text")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    done = run(package, "-m", "frankenlm", "count", "--file", "none")
    assert (done.returncode, done.stderr) == (2, "error: --file none: no such file.\n")


def test_a_measure_of_texts_is_a_function_and_its_line(package):
    file = package / "trainer_ext" / "metrics" / "text.py"
    insert(file, "# --- diversity, across texts\n", MEASURE.lstrip("\n"))
    line = '    "length": TextMeasure(("mean_length",), lambda written: mean_length(written.tokens)),\n'
    insert(file, '    "vocabulary": TextMeasure(\n', line)
    done = run(package, "-c", USE_MEASURE)
    assert done.returncode == 0, done.stderr
