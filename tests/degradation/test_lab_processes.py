"""Experiments in several processes: the rows of one, and ends that leave nobody waiting."""

import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

from frankenlm.degradation.errors import ConfigConflict
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.run.limits import Signals
from frankenlm.degradation.run.numbering import renumber
from frankenlm.degradation.several import run_each
from frankenlm.trainer_ext.common.cli import Interrupted
from small_runs import SMALL, essence, rows_of

# scripts/degrade.py, but nobody works on a cell before two were claimed: a process that is slow to come gets its own
TAKES_TURNS = """
import sys, time
from frankenlm.degradation.cli import main
from frankenlm.degradation.records.claims import Claims
from frankenlm.trainer_ext.common.cli import run_command

take = Claims.take

def patient(self, cell):
    taken, deadline = take(self, cell), time.monotonic() + 120
    while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return taken

Claims.take = patient
sys.exit(run_command(main))
"""


def launch(processes, config_flags, folder, model, script=None):
    """Run scripts/degrade.py in so many processes, as accelerate does on a machine without GPUs."""
    script = script or os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "degrade.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = launcher if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*command, script, "run", "--model", str(model), "--output_dir", str(folder), *config_flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("outputs_*.json")
    return rows_of(path)


FLAGS = "--config smoke --dtype float32 --levels 0,0.3 --max_new_tokens 6 --perplexity false"


def test_two_processes_write_what_one_writes(tiny_dir, unbroken, tmp_path):
    script = tmp_path / "takes_turns.py"
    script.write_text(TAKES_TURNS)
    rows = launch(2, FLAGS.split(), tmp_path / "two", tiny_dir("llama"), script)
    (manifest,) = (tmp_path / "two").rglob("manifest.json")
    assert json.loads(manifest.read_text())["runs"][0]["world_size"] == 2
    assert {row["rank"] for row in rows} == {0, 1}
    names = ("model_name", "experiment_id", "row_key")  # the other run had a model without a folder
    strip = [{k: v for k, v in row.items() if k not in names} for row in essence(rows)]
    assert strip == [{k: v for k, v in row.items() if k not in names} for row in essence(unbroken)]


class Processes:
    """What accelerate says of the process of rank 1 of two."""

    num_processes, process_index, is_main_process = 2, 1, False

    def wait_for_everyone(self):
        pass


def test_an_error_of_one_process_alone_keeps_it_from_the_next_experiment(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    """The others wait for it where it will not come: it has to end, and the launcher ends them."""
    options = RunOptions(output_dir=tmp_path, progress=False)
    alone = Lab(tiny_model("llama"), options, tokenizer=tiny_tokenizer())
    path = alone.run(alone.plan(SMALL))
    assert path.exists() and alone.in_step

    lab = Lab(tiny_model("llama"), options, tokenizer=tiny_tokenizer())
    experiments = [lab.plan(SMALL | {"group": group}) for group in ("mlp_only", "embed_only")]
    began = []

    def fail(self, experiment, *rest):
        began.append(experiment.config.group)
        raise ZeroDivisionError("by the test")

    monkeypatch.setattr(Lab, "_work", fail)
    monkeypatch.setattr(lab, "_processes", Processes)
    monkeypatch.setattr(lab, "_open", lambda experiment, state, conflict: lab._open_store(experiment, state, conflict))
    args = argparse.Namespace(log_level="error", output_dir=tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_each(experiments, args, lab, lambda experiment: [lab.run(experiment)])
    assert began == ["mlp_only"] and not lab.in_step


def test_rows_written_again_exceed_what_rank_0_has_just_renumbered(tiny_model, tiny_tokenizer, tmp_path):
    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    lab.run(lab.plan(SMALL))
    forced = lab.plan(SMALL | {"levels": (0.0, 0.1, 0.3), "force_run": True, "force_where": "level=0.3"})
    first_process = Processes()
    first_process.process_index = 0
    with (
        lab._open_store(forced, first_process, "stop") as first,
        lab._open_store(forced, Processes(), "stop") as second,
    ):

        class RankZeroWorks(Processes):
            def wait_for_everyone(self):
                renumber(forced, first)

        lab._work(forced, second, Signals(), RankZeroWorks())
        first.refresh()
        again = [row for row in first.rows() if row["level_value"] == 0.3]
        assert [(row["rank"], row["attempt"]) for row in again] == [(1, 3)] * 8


@pytest.mark.parametrize("ended", [False, True])
def test_a_process_that_dies_while_rank_0_waits_costs_no_export(ended, tiny_model, tiny_tokenizer, tmp_path):
    """Its connection breaks; where that is because all processes are being ended, the end is an orderly one."""
    calls = []

    class RankZero(Processes):
        process_index, is_main_process = 0, True

        def wait_for_everyone(self):
            calls.append(1)
            if len(calls) == 4:  # behind the work
                if ended:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("Connection closed by peer")

    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    lab._processes = RankZero
    lab._open = lambda experiment, state, conflict: lab._open_store(experiment, state, conflict)
    with pytest.raises(Interrupted if ended else RuntimeError):
        lab.run(lab.plan(SMALL))
    (path,) = tmp_path.glob("*.json")
    assert len(rows_of(path)) == 16


def test_what_all_processes_are_told_does_not_part_them(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path, progress=False), tokenizer=tiny_tokenizer())
    monkeypatch.setattr(lab, "_processes", Processes)
    monkeypatch.setattr("frankenlm.degradation.lab.broadcast_object_list", lambda _: [ConfigConflict("other"), None])
    with pytest.raises(ConfigConflict):
        lab.run(lab.plan(SMALL))
    assert lab.in_step


def test_processes_wait_longer_for_each_other_than_a_cell_takes(monkeypatch, tiny_dir, tmp_path):
    asked = {}
    monkeypatch.setattr("frankenlm.degradation.lab.PartialState", lambda **options: asked.update(options))
    Lab(str(tiny_dir("llama")))._processes()
    assert asked["timeout"].days >= 7


@pytest.mark.slow
def test_resumed_with_three_then_one_process(tiny_dir, tmp_path):
    whole = launch(1, FLAGS.split(), tmp_path / "whole", tiny_dir("llama"))
    launch(3, [*FLAGS.split(), "--n_rep", "1"], tmp_path / "parts", tiny_dir("llama"))
    parts = launch(1, FLAGS.split(), tmp_path / "parts", tiny_dir("llama"))
    assert essence(parts) == essence(whole)
