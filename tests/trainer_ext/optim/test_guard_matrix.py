"""The fault matrix: both trainers, both precisions, with and without accumulation, in one process and in two."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import guard_ranks
import guarded_runs
from guarded_runs import (
    ALWAYS,
    FAULT,
    KINDS,
    STEPS,
    Run,
    assert_same,
    batches,
    gradient_fault,
    same_length,
    without,
)

ROOT = Path(__file__).resolve().parents[3]


# Each trainer once, in settings that differ in both; the slow tests cross them.
QUICK = {("plain", 1, False), ("ours", 4, True)}
every_run = pytest.mark.parametrize(
    ("kind", "accumulation", "bf16"),
    [
        pytest.param(kind, accumulation, bf16, marks=[] if (kind, accumulation, bf16) in QUICK else [pytest.mark.slow])
        for kind in KINDS
        for accumulation in (1, 4)
        for bf16 in (False, True)
    ],
)


@pytest.fixture(scope="module")
def rows():
    return batches(4 * 2 * (STEPS + 1))


@every_run
def test_a_healthy_run_is_what_it_was(rows, tmp_path, accumulation, bf16, kind):
    options = {"accumulation": accumulation, "bf16": bf16, "dropout": 0.1, "kind": kind}
    guarded, plain = Run(tmp_path, rows, **options), Run(tmp_path, rows, policy=False, **options)
    assert_same(guarded, plain)
    losses = [[row["loss"] for row in run.trainer.state.log_history if "loss" in row] for run in (guarded, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@every_run
def test_nan_that_does_not_come_again_leaves_no_trace(rows, tmp_path, accumulation, bf16, kind):
    options = {"accumulation": accumulation, "bf16": bf16, "kind": kind}
    hit, clean = Run(tmp_path, rows, plant=gradient_fault(math.nan, 1), **options), Run(tmp_path, rows, **options)
    assert hit.guard.counts == {"none": STEPS - 1, "retry": 1}
    assert_same(hit, clean)


@pytest.mark.parametrize("value", [math.nan, pytest.param(-math.inf, marks=pytest.mark.slow)])
@every_run
def test_a_batch_that_stays_bad_is_as_if_it_had_not_been_seen(rows, tmp_path, accumulation, bf16, value, kind):
    options = {"accumulation": accumulation, "bf16": bf16, "dropout": 0.1, "kind": kind}
    hit = Run(tmp_path, rows, plant=gradient_fault(value, ALWAYS), **options)
    assert hit.guard.counts == {"none": STEPS - 1, "skip": 1} and hit.guard.rate == 1.0
    spared = Run(tmp_path, without(rows, accumulation), plant=same_length(STEPS), steps=STEPS - 1, **options)
    assert_same(hit, spared)


@pytest.mark.slow
def test_two_processes_decide_alike(tmp_path):
    """Both trainers, fp32 and bf16, accumulation 1 and 4, and each fault in one process alone: one launch."""
    launch = ["launch", "--config_file", str(ROOT / "configs/accelerate/cpu_2.yaml"), "--main_process_port", "0"]
    command = [str(Path(sys.executable).with_name("accelerate")), *launch, guard_ranks.__file__, str(tmp_path)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(guarded_runs.__file__).parent),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 24
    for row in found:
        action = "retry" if row["fault"] == "nan once" else "skip"
        assert row["same"] and row["counts"] == {"none": FAULT, action: 1}, row
