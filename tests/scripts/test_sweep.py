"""scripts/sweep.py: what is run, what is not run again, and what is left when a run or the sweep itself is stopped.

The runs are a stand-in for train.py that takes no second; one slow test lets train.py itself be stopped.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from frankenlm.trainer_ext.commands import sweep as commands
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.common.folder_lock import locked_folder
from frankenlm.trainer_ext.sweeps import running
from run_outcomes import assert_same_run

from .conftest import load_script

# eval_loss is the learning rate; 13 fails, 17 kills itself, 19 waits for a signal, 23 too and takes its time then
TRAIN = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
print("words", *sys.argv[1:], flush=True)
folder, rate = Path(sys.argv[sys.argv.index("--output_dir") + 1]), float(words["learning_rate"])
if rate == 13:
    sys.exit("error: unlucky")
if rate == 17:
    os.kill(os.getpid(), signal.SIGKILL)
if rate in (19, 23):
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(rate == 23), sys.exit(143)))
    (folder / "waits").touch()
    time.sleep(60)
(folder / "metrics.json").write_text(json.dumps({"eval_loss": rate, "best_eval_loss": rate, "steps": 3}))
(folder / "training.csv").write_text("step,loss,seconds\\n3,%s,1.5\\n" % (rate / 2))
"""


@pytest.fixture
def grid(tmp_path):
    def grid(rates: list[float], **more) -> Path:
        content = {"base": {"preset": "mini", "dataset": "builtin", "use_cpu": True}, "grid": {"learning_rate": rates}}
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump({**content, **more}))
        return path

    return grid


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(file, *words) runs scripts/sweep.py in this process, with the stand-in, and returns its exit code."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(running, "TRAIN", (sys.executable, "-S", str(tmp_path / "train.py")))
    # the figure has tests of its own, and the page of documentation has a whole sweep
    monkeypatch.setattr(commands, "plot_sweep", lambda cells, keys, metric, path, title: path.touch())
    main = load_script("sweep").main
    words = ["--output_dir", str(tmp_path / "out"), "--log_level", "warning"]
    return lambda file, *more: run_command(main, ["--config", str(file), *words, *more])


def rows(tmp_path: Path) -> list[dict]:
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def status_of(folder: Path) -> str:
    path = folder / "sweep_run.json"
    return json.loads(path.read_text())["status"] if path.exists() else "missing"


def snapshot(folder: Path) -> dict[str, int]:
    return {path.name: (path / "console.log").stat().st_mtime_ns for path in folder.iterdir() if path.is_dir()}


def test_a_sweep_trains_each_run_once(sweep, grid, tmp_path, capsys):
    file = grid([0.2, 0.1], seeds=[0, 1])
    assert sweep(file) == 0
    assert "| 0.1 | 2 | 0.1000 | 0.1000 to 0.1000 | **best** |" in capsys.readouterr().out
    assert [(row["learning_rate"], row["seed"], row["eval_loss"]) for row in rows(tmp_path)][:2] == [
        ("0.2", "0", "0.2"),
        ("0.2", "1", "0.2"),
    ]
    assert (rows(tmp_path)[0]["train_loss"], rows(tmp_path)[0]["seconds"]) == ("0.1", "1.5")
    facts = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [run["status"] for run in facts["runs"]] == ["finished"] * 4
    assert facts["runs"][0]["settings"]["learning_rate"] == 0.2
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert names == {"sweep.csv", "sweep.json", "sweep.md", "sweep.png", "sweep.log"}
    before = snapshot(tmp_path / "out")
    assert sweep(file) == 0 and snapshot(tmp_path / "out") == before
    assert sweep(grid([0.2, 0.1, 0.4], seeds=[0, 1])) == 0  # a longer list makes what is new
    after = snapshot(tmp_path / "out")
    assert len(after) == 6 and before.items() <= after.items()


def test_a_failed_run_loses_no_other(sweep, grid, tmp_path, capsys):
    assert sweep(grid([13, 0.1, 17])) == 1
    shown = capsys.readouterr()
    assert "stopped: 2 of 3 runs failed" in shown.err and "- learning_rate=13: error: unlucky" in shown.out
    assert [row["status"] for row in rows(tmp_path)] == ["failed", "finished", "failed"]
    assert rows(tmp_path)[2]["message"].startswith("killed by SIGKILL after: words --dataset=builtin")
    before = snapshot(tmp_path / "out")
    assert sweep(grid([13, 0.1, 17])) == 1
    again = [name for name, written in snapshot(tmp_path / "out").items() if written != before[name]]
    assert sorted(again) == ["learning_rate=13", "learning_rate=17"]


@pytest.mark.parametrize(("jobs", "done"), [("1", 1), ("3", 2)])
def test_a_signal_stops_the_sweep_and_its_run(sweep, grid, tmp_path, capsys, jobs, done):
    out = tmp_path / "out"

    def stop() -> None:
        while not (out / "learning_rate=19" / "waits").exists() or status_of(out / "learning_rate=0.1") != "finished":
            time.sleep(0.01)
        while jobs == "3" and status_of(out / "learning_rate=0.2") != "finished":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # in a background job of a shell SIGINT is ignored from the start
    kept, before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.default_int_handler
    helper = threading.Thread(target=stop)
    helper.start()
    assert sweep(grid([0.1, 19, 0.2]), "--jobs", jobs) == 130
    helper.join()
    assert f"interrupted: {done} of 3 runs are finished; the same command goes on" in capsys.readouterr().err
    statuses = {row["learning_rate"]: row["status"] for row in rows(tmp_path)}
    assert statuses["19"] == "interrupted" and statuses["0.2"] == ("missing" if jobs == "1" else "finished")
    assert signal.signal(signal.SIGINT, kept) is before


def test_after_a_signal_nothing_is_begun(sweep, grid, tmp_path):
    out = tmp_path / "out"

    def stop() -> None:
        while not all((out / f"learning_rate={rate}" / "waits").exists() for rate in (19, 23)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=stop)
    helper.start()
    assert sweep(grid([19, 23, 0.2]), "--jobs", "2") == 143  # one ends a second before the other
    helper.join()
    assert [row["status"] for row in rows(tmp_path)] == ["interrupted", "interrupted", "missing"]


def test_every_run_is_checked_before_the_first(sweep, grid, tmp_path, capsys):
    assert sweep(grid([0.1, -1.0])) == 2
    assert capsys.readouterr().err.startswith("error: run learning_rate=-1: ")
    assert sweep(grid([0.1], runs={"odd": {"model.hidden_size": -3}})) == 2
    assert sweep(grid([0.1], base={"preset": "mini", "use_cpu": True})) == 2  # no dataset: preflight's check
    assert not (tmp_path / "out").exists()


def test_dry_run_and_only(sweep, grid, tmp_path, capsys):
    file = grid([0.1, 0.2], seeds=[0, 1])
    assert sweep(file, "--only", "*0.2*", "learning_rate=0.1,seed=1") == 0
    assert [row["status"] for row in rows(tmp_path)] == ["missing", "finished", "finished", "finished"]
    capsys.readouterr()
    assert sweep(file, "--dry_run") == 0
    assert capsys.readouterr().out.split("\n")[:2] == [
        "new        learning_rate=0.1,seed=0",
        "finished   learning_rate=0.1,seed=1",
    ]
    assert sweep(file, "--only", "learning_rate=0.1,sed=1") == 2
    assert "Did you mean 'learning_rate=0.1,seed=1'" in capsys.readouterr().err


CHOICE = {"choice": {"setting": "learning_rate", "values": [0.1, 0.2, 0.4], "seed": 9}, "grid": None}


def test_a_choice_grows_and_its_seeds_follow(sweep, grid, tmp_path, capsys):
    """The stand-in's loss is its rate: the smallest is always the best, until training gives up below 0.1."""
    out, file = tmp_path / "out", grid([0], **CHOICE, seeds=[0, 1], report={"per_device_eval_batch_size": 3})
    assert sweep(file, "--dry_run") == 0
    assert "3 runs, 3 to make, and 2 more when a value is chosen" in capsys.readouterr().out
    assert sweep(file) == 0
    told = capsys.readouterr().out
    assert "- no learning_rate is called best: 0.0125 is the smallest of 6 values" in told and "**best**" not in told
    assert {row["stage"] for row in rows(tmp_path)} == {"choice"} and len(rows(tmp_path)) == 6
    assert sweep(file, "--only", "*seed=0") == 2  # no such run as long as nothing is chosen
    for name in ("0.05", "0.025", "0.0125"):
        folder = out / f"learning_rate={name},seed=9"
        for left in ("metrics.json", "training.csv"):
            (folder / left).unlink()
        record = json.loads((folder / "sweep_run.json").read_text())
        record |= {"status": "failed", "message": "stopped: not healthy"}
        (folder / "sweep_run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert sweep(file, "--dry_run") == 0
    told = capsys.readouterr().out
    assert (
        "new        learning_rate=0.1,seed=1" in told and "by the 3 finished: about 0 process minutes are left" in told
    )
    before = snapshot(out)
    assert sweep(file) == 0
    assert before.items() <= snapshot(out).items()  # what gave up is an answer, and is not tried again
    made = {(row["learning_rate"], row["seed"]): row for row in rows(tmp_path)}
    assert made["0.1", "0"]["stage"] == "report" and made["0.1", "0"]["eval_loss"] == "0.1"
    assert "| 0.1 | 2 | 0.1000 | 0.1000 to 0.1000 | **best** |" in (out / "sweep.md").read_text()


def test_a_mistake_in_what_is_reported_is_told_before_the_choice(sweep, grid, tmp_path, capsys):
    file = grid([0], **CHOICE, seeds=[0], report={"per_device_eval_batch_size": 0})
    assert sweep(file) == 2 and "learning_rate=0.1,seed=0: --per_device_eval_batch_size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_settings_and_other_files_are_told(sweep, grid, tmp_path, capsys):
    file = grid([0.1])
    assert sweep(file) == 0
    capsys.readouterr()
    assert sweep(file, "--set", "max_length=32", "num_loops=1") == 2
    told = "was made with other settings: max_length=512, now 32; model.num_loops=None, now 1. Choose another"
    assert told in capsys.readouterr().err
    assert sweep(file, "--set", "logging_steps=3") == 0  # which changes no result
    (tmp_path / "out" / "learning_rate=0.1" / "sweep_run.json").unlink()
    assert sweep(file) == 2
    assert "holds training.csv, which is of no run of this sweep" in capsys.readouterr().err


def test_a_metric_that_no_run_has_is_told(sweep, grid, tmp_path, capsys):
    assert sweep(grid([0.1], metric="eval_accuracy")) == 0
    assert "1 finished runs have no eval_accuracy, such as learning_rate=0.1" in capsys.readouterr().out


def test_a_choice_by_a_metric_that_no_run_has_fails(sweep, grid, tmp_path, capsys):
    """The stand-in's runs end without one that their settings promise."""
    assert sweep(grid([0], **CHOICE, seeds=[0], metric="lowest_eval_loss")) == 1
    out, error = capsys.readouterr()
    assert "no learning_rate is called best: 3 of 3 have no lowest_eval_loss." in out
    assert "3 finished runs have no lowest_eval_loss to choose by, such as learning_rate=0.1,seed=9" in error


def test_two_sweeps_do_not_share_a_folder(sweep, grid, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out"):
        assert sweep(grid([0.1])) == 2
    assert "is in use by another run" in capsys.readouterr().err


def test_the_lock_stays_with_the_runs(tmp_path):
    """Where the sweep is killed, its run trains on: no other sweep may begin."""
    code = "import time; print(1, flush=True); time.sleep(60)"
    with locked_folder(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-Sc", code], stdout=subprocess.PIPE, pass_fds=(lock,))
        child.stdout.readline()
    with pytest.raises(ValueError, match="in use"), locked_folder(tmp_path):
        pass
    child.kill()
    child.communicate()
    with locked_folder(tmp_path):
        pass


def settings_of(words: list[str]) -> dict:
    """Flags as the settings of a sweep's base."""
    found, key = {}, None
    for word in words:
        if word.startswith("--"):
            key = word.removeprefix("--")
            found[key] = True
        else:
            found[key] = yaml.safe_load(word)
    return found


@pytest.fixture
def real(tiny, tmp_path) -> Path:
    """A sweep of the tiny run of the other tests."""
    file = tmp_path / "real.yaml"
    file.write_text(yaml.safe_dump({"base": {**settings_of(tiny), "max_steps": 6}, "seeds": [42]}))
    return file


def test_an_interrupted_run_goes_on_from_its_checkpoint(sweep, real, unbroken, tmp_path, capsys):
    folder = tmp_path / "out" / "seed=42"
    assert sweep(real) == 1  # the stand-in misses a learning rate
    assert "--resume_from_checkpoint" not in (folder / "console.log").read_text()
    shutil.copytree(unbroken / "checkpoint-3", folder / "checkpoint-3")
    capsys.readouterr()
    assert sweep(real, "--dry_run") == 0 and "goes on  " in capsys.readouterr().out
    assert sweep(real) == 1
    assert "--resume_from_checkpoint last" in (folder / "console.log").read_text()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"cut")
    capsys.readouterr()
    assert sweep(real, "--dry_run") == 0 and "again  " in capsys.readouterr().out


@pytest.mark.slow
def test_train_itself_is_stopped_and_goes_on(real, unbroken, tmp_path):
    command = [sys.executable, "-m", "frankenlm", "sweep", "--config", str(real), "--output_dir", str(tmp_path / "out")]
    folder = tmp_path / "out" / "seed=42"
    with subprocess.Popen(command) as stopped:
        while not (folder / "checkpoint-3" / "resume.json").exists():
            assert stopped.poll() is None
            time.sleep(0.01)
        stopped.terminate()
    assert stopped.returncode == 128 + signal.SIGTERM and not (folder / "metrics.json").exists()
    assert subprocess.run(command).returncode == 0
    assert_same_run(unbroken, folder)


@pytest.mark.parametrize(
    "content",
    [
        "{base: {preset: mini}, grid: {seed: [0, 1]}}",
        "{base: {preset: mini}, grid: {learning_rate: [1]}, runs: {a: {seed: 3}}, seeds: [5]}",
    ],
)
def test_seeds_stand_in_one_place(sweep, tmp_path, capsys, content):
    (tmp_path / "sweep.yaml").write_text(content)
    assert sweep(tmp_path / "sweep.yaml") == 2
    assert "seeds stand in 'seeds: [0, 1]'" in capsys.readouterr().err
