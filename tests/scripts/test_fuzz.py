"""Odd command lines and damaged models, for every command: no traceback, no hang, no lost file.

One process goes through all of them (tests/tools/fuzz_command.py), seeded. The slow test takes other seeds and more of
each, and a process for each command.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fuzz_command

TOOLS = Path(__file__).resolve().parents[1] / "tools"
COMMANDS = (
    "train",
    "evaluate",
    "generate",
    "compare",
    "pack",
    "degrade",
    "app",
    "serve",
    "push",
    "export model",
    "suite",
)
LINES = 84  # in all


def fuzz(commands: Sequence[str], folder: Path, *options: object) -> dict[str, dict]:
    """Run the fuzzer in one process, with a scratch folder for each command, and return the reports."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GRADIO_SERVER_PORT": "0",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    script = [sys.executable, TOOLS / "fuzz_command.py", *commands, "--scratch", folder, *options]
    done = subprocess.run([str(word) for word in script], capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, f"{commands}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def check(reports: dict[str, dict], lines: int) -> None:
    faults = {command: report["faults"] for command, report in reports.items() if report["faults"]}
    assert not faults, json.dumps(faults, indent=1)
    assert sum(sum(report["codes"].values()) for report in reports.values()) >= lines
    # the parsers were really found, and some of the lines really ran
    assert all(report["flags"] > 0 for report in reports.values())
    assert any(report["codes"].get("0") for report in reports.values())


def test_odd_lines_and_damaged_models_end_in_one_line(tmp_path):
    check(fuzz(COMMANDS, tmp_path, "--seed", 0, "--lines", -(-LINES // len(COMMANDS)), "--damages", 2), LINES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_odd_lines_and_damages(tmp_path, seed):
    with ThreadPoolExecutor(2) as pool:
        each = pool.map(lambda name: fuzz([name], tmp_path, "--seed", seed, "--lines", 300, "--damages", 60), COMMANDS)
        check({name: report for reports in each for name, report in reports.items()}, 300 * len(COMMANDS))


def test_the_fuzzer_finds_faults(tmp_path, monkeypatch):
    """A command that raises, one that hangs, one that takes a file away: each is a fault."""
    monkeypatch.setattr(fuzz_command, "LIMIT", 1)
    precious = tmp_path / "precious" / "kept.txt"
    precious.parent.mkdir()
    precious.write_text("kept")

    def hang(argv):
        while True:
            pass

    def fail(argv):
        raise KeyError("no such thing")

    def leave(argv):
        sys.exit(9)

    assert "KeyError" in fuzz_command.run_line(fail, [])[2]
    assert "took longer" in fuzz_command.run_line(hang, [])[2]
    assert fuzz_command.run_line(leave, [])[2] == "exit code 9"
    before = fuzz_command.state_of(tmp_path)
    precious.write_text("lost")
    assert fuzz_command.state_of(tmp_path) != before
