"""SIGKILL in runs of several experiments, lesions, recoveries and skills: no row lost, none twice, the same end."""

import json
import random
import shutil
from collections import Counter

import pytest

from kill_server import asking, exported, journal_keys, kill_often
from small_runs import essence

WORKLOADS = ("several", "targeted", "recover", "skills")
KILLS = 50  # of each
IN_A_ROW = 3  # in one folder, each in the run that was to repair what the one before left


@pytest.fixture(scope="module")
def ask(tiny_dir):
    with asking(tiny_dir("llama")) as request:
        yield request


def result_of(folder):
    """All that a workload leaves for its reader: file -> rows, and of skills the cells."""
    cells = {path.name: json.loads(path.read_text()) for path in folder.glob("skills_*/cells/[!.]*.json")}
    return {name: essence(rows) for name, rows in exported(folder).items()} | cells


def kills_of(draw, unbroken):
    """Kills of both kinds: inside one of the calls to the disk that an unbroken run makes, and at any moment."""
    names = [name for name in ("write", "fsync", "replace", "unlink") if unbroken["calls"][name]]
    while True:
        if draw.random() < 0.5:
            yield {"after": draw.uniform(0.0, unbroken["seconds"])}
        else:
            name = draw.choice(names)
            yield {"call": name, "number": draw.randint(1, unbroken["calls"][name]), "part": draw.random()}


def check_kills(ask, workload, tmp_path, wanted, seed):
    ask(workload, tmp_path / "warm")
    unbroken = ask(workload, tmp_path / "whole")
    assert unbroken["status"] == 0
    expected = result_of(tmp_path / "whole")
    kills, came = kills_of(random.Random(seed), unbroken), 0
    for number in range(4 * wanted):  # a late one finds the run ended, the more so behind others
        folder = tmp_path / str(number)
        came += kill_often(ask, workload, folder, [next(kills) for _ in range(IN_A_ROW)])
        assert result_of(folder) == expected
        assert set(Counter(journal_keys(folder)).values()) <= {1}
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or "checkpoint-" in path.name]
        shutil.rmtree(folder)
        if came >= wanted:
            return came
    pytest.fail(f"only {came} of {wanted} kills came in time")


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_two_hundred_kills_cost_no_row_and_change_none(ask, workload, tmp_path):
    assert check_kills(ask, workload, tmp_path, KILLS, seed=WORKLOADS.index(workload)) >= KILLS


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_few_kills(ask, workload, tmp_path):
    check_kills(ask, workload, tmp_path, 2, seed=9)
