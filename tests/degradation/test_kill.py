"""SIGKILL at any moment: no finished row lost, none twice, the JSON file whole, and the end that of an unbroken run."""

import json
import random
import shutil
from collections import Counter

import pytest

from kill_server import asking, exported, journal_keys, kill_often

# how a row may differ from the one of an unbroken run: when, by which try, in which batch
LOOSE = {
    "timestamp",
    "duration",
    "batch_duration",
    "attempt",
    "vram_usage_percent",
    "batch_size_effective",
    "batch_shape",
}
# tensor shapes differ with the batch, and with them the rounding
ROUNDED = {"mean_logprob": 1e-3, "mean_entropy": 1e-3}


@pytest.fixture(scope="module")
def ask(tiny_dir):
    with asking(tiny_dir("llama")) as request:
        yield request


def only(files):
    (rows,) = files.values()
    return rows


def check_the_end(folder, expected):
    rows = only(exported(folder))
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name in row.keys() - LOOSE:
            if name in ROUNDED and wanted[name] is not None:
                assert row[name] == pytest.approx(wanted[name], abs=ROUNDED[name]), name
            else:
                assert row[name] == wanted[name], name
    assert set(Counter(journal_keys(folder)).values()) == {1}
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    check_side_records(folder, rows)


def check_side_records(folder, rows):
    """Every cell has its lesion, and where the workload writes them its record."""
    cells = {(row["level_value"], row["repeat_index"]) for row in rows}
    lesions = [record["row"] for record in side_lines(folder, "lesions")]
    assert {(record["level_value"], record["repeat_index"]) for record in lesions} == cells
    records = [record["row"] for record in side_lines(folder, "cells")]
    if records:
        assert {(record["level_value"], record["repeat_index"]) for record in records} == cells


def side_lines(folder, name):
    return [json.loads(line) for path in folder.rglob(f"{name}.jsonl") for line in path.read_text().splitlines()]


def kill_and_resume(ask, workload, folder, kills, expected):
    """Run a workload to the end over a number of kills; return how many of them came in time."""
    came = kill_often(ask, workload, folder, kills)
    check_the_end(folder, expected)
    return came


@pytest.fixture(scope="module")
def unbroken(ask, tmp_path_factory):
    """What a workload gives without a kill: its rows, its calls and how long it takes, by name."""
    known = {}

    def run(workload):
        if workload not in known:
            folder = tmp_path_factory.mktemp(workload)
            ask(workload, tmp_path_factory.mktemp("warm"))
            answer = ask(workload, folder)
            assert answer["status"] == 0
            rows = only(exported(folder))
            assert sorted(answer["acknowledged"]) == sorted(row["row_key"] for row in rows)
            known[workload] = (rows, answer["calls"], answer["seconds"])
        return known[workload]

    return run


@pytest.mark.parametrize("part", [0.0, 0.4, 1.0])
def test_inside_every_call_to_the_disk(ask, unbroken, tmp_path, part):
    """Before, within and after every write, fsync and replace of a run: journal, manifest and export alike."""
    rows, calls, _ = unbroken("files")
    assert len(rows) == 6 and calls["write"] > 6 and calls["replace"] >= 4
    for call in ("write", "fsync", "replace"):
        for number in range(1, calls[call] + 1):
            if part == 0.4 and call != "write":
                continue  # the other calls have a before and an after only
            folder = tmp_path / f"{call}-{number}"
            kill = {"call": call, "number": number, "part": part}
            assert kill_and_resume(ask, "files", folder, [kill], rows) == 1, kill


@pytest.mark.parametrize("seed", range(5))
def test_twice_inside_calls_at_random(ask, unbroken, tmp_path, seed):
    """Kills of the run that was to repair what the first kill left, too."""
    rows, calls, _ = unbroken("files")
    draw = random.Random(seed)
    for number in range(4):
        names = [draw.choice(["write", "write", "fsync", "replace", "ftruncate", "unlink"]) for _ in range(3)]
        kills = [{"call": n, "number": draw.randint(1, max(calls[n] // 2, 1)), "part": draw.random()} for n in names]
        kill_and_resume(ask, "files", tmp_path / str(number), kills, rows)


def kill_at_random_times(ask, unbroken, tmp_path, workload, kills, seed):
    """Kill runs until so many kills came in time; the machine's speed varies, and some runs end before theirs."""
    rows, _, seconds = unbroken(workload)
    draw, came = random.Random(seed), 0
    for number in range(3 * kills):
        folder = tmp_path / str(number)
        in_time = kill_and_resume(ask, workload, folder, [{"after": draw.uniform(0.0, seconds)}], rows)
        shutil.rmtree(folder)
        came += in_time
        if came == kills:
            return
        if not in_time:
            seconds *= 0.9
    pytest.fail(f"only {came} of {3 * kills} kills came in time")


def test_at_random_times(ask, unbroken, tmp_path):
    kill_at_random_times(ask, unbroken, tmp_path, "experiment", 10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["experiment", "files"])
def test_at_two_hundred_random_times(ask, unbroken, tmp_path, workload):
    kill_at_random_times(ask, unbroken, tmp_path, workload, 200, seed=1)


def test_an_experiment_inside_calls_to_the_disk(ask, unbroken, tmp_path):
    """As above with the real thing, at a sample of the calls."""
    rows, calls, _ = unbroken("experiment")
    draw = random.Random(2)
    for number in range(12):
        call = draw.choice(["write", "fsync", "replace"])
        kill = {"call": call, "number": draw.randint(1, calls[call]), "part": draw.random()}
        assert kill_and_resume(ask, "experiment", tmp_path / str(number), [kill], rows) == 1, kill
