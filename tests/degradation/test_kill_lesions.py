"""SIGKILL during targeted lesions and recoveries, through the command: nothing lost, nothing twice, the same end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_runs import INCIDENTAL, ROUNDED

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "degrade.py"
BASE = "--config smoke --dtype float32 --levels 0,1 --n_rep 2 --max_new_tokens 4 --perplexity false --max_batch_size 2"
COMMANDS = {
    "targeted": f"run {BASE} --method targeted matched --group attn_o --unit head --importance ablation",
    "recover": f"recover {BASE} --method mult_gauss --group mlp_only --steps 4 --every 2 --train_length 16 "
    "--train_batch 2 --train_text TEXT",
}
KILLS = {"targeted": 6, "recover": 3}


def start(name, model, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    text = folder.parent / "text.txt"
    text.write_text("the kettle sang and the dog slept. " * 40, encoding="utf-8")
    asked = [str(text) if word == "TEXT" else word for word in COMMANDS[name].split()]
    words = [sys.executable, str(SCRIPT), *asked, "--model", str(model), "--output_dir", str(folder)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows_in(folder):
    """file -> its rows, without what may differ between two runs."""
    found = {}
    for path in sorted(folder.glob("outputs_*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        found[path.name] = [
            {
                name: pytest.approx(value, abs=1e-3) if name in ROUNDED and value is not None else value
                for name, value in row.items()
                if name not in INCIDENTAL
            }
            for row in rows
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_kills_at_any_moment_cost_no_row_and_change_none(name, tiny_dir, tmp_path):
    model, moments = tiny_dir("llama"), random.Random(name)
    began = time.monotonic()
    whole = start(name, model, tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    whole.stderr.close()
    took = time.monotonic() - began
    for _ in range(KILLS[name]):
        process = start(name, model, tmp_path / "killed")
        try:
            process.wait(timeout=moments.uniform(0.3, 1.0) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        process.stderr.close()
    last = start(name, model, tmp_path / "killed")
    assert last.wait() == 0, last.stderr.read()
    last.stderr.close()
    found, expected = rows_in(tmp_path / "killed"), rows_in(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(found.values())
    for file, rows in expected.items():
        keys = [row["row_key"] for row in found[file]]
        assert len(keys) == len(set(keys)), "a row is there twice"
        assert found[file] == rows, file
