"""What the README says of depth and recovery is that of the shipped sample."""

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "results" / "samples" / "degradation" / "depth_and_recovery"
WINDOWS, STEPS = range(1, 7), (0, 8, 16, 24)
GROUPS = {"attention": "attn_qkvo", "MLP": "mlp_only"}


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "degradation" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def curves():
    """(name of the run, group, level) -> centre, low and high of the log-perplexity."""
    with (SAMPLE / "curves.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["measure"] == "log_perplexity"]
    return {
        (line["experiment"].rpartition("|")[2], line["group"], line["level"]): [
            float(line[name]) for name in ("centre", "low", "high")
        ]
        for line in lines
    }


def cell(numbers, minus=0.0):
    centre, low, high = (number - minus for number in numbers)
    return f"{centre:.2f}" if low == high else f"{centre:.2f} ({low:.2f} to {high:.2f})"


@pytest.mark.parametrize(("name", "group"), GROUPS.items())
def test_the_map_of_depth(readme, curves, name, group):
    (undamaged,) = {curves["depth", f"{group}@{window}of6", "0"][0] for window in WINDOWS}
    cells = [cell(curves["depth", f"{group}@{window}of6", "0.3"], undamaged) for window in WINDOWS]
    assert f"| {name} | {' | '.join(cells)} |" in readme


def test_the_recovery(readme, curves):
    after = {
        level: [curves[f"recovery_after{steps:05}", "mlp_only", level] for steps in STEPS] for level in ("0", "0.3")
    }
    assert f"| damaged | {' | '.join(map(cell, after['0.3']))} |" in readme
    assert f"| undamaged | {' | '.join(f'{numbers[0]:.2f}' for numbers in after['0'])} |" in readme
    with (SAMPLE / "cells.csv").open(encoding="utf-8", newline="") as file:
        cells = {
            (line["experiment"][-2:], line["level"], line["repeat"]): float(line["log_perplexity"])
            for line in csv.DictReader(file)
            if "recovery" in line["experiment"]
        }
    lost = {
        steps: [cells[steps, "0.3", repeat] - cells[steps, "0", repeat] for repeat in "01234"] for steps in ("00", "24")
    }
    back = [1 - after / before for before, after in zip(lost["00"], lost["24"], strict=True)]
    assert f"{min(back):.0%}".rstrip("%") + f" to {max(back):.0%}".replace("%", " %") + " came back" in readme
    assert back.index(max(back)) == lost["00"].index(max(lost["00"]))


def test_the_last_layers_of_the_mlp_tell_more_than_those_of_the_middle(curves):
    at = {group: [curves["depth", f"{group}@{window}of6", "0.3"] for window in WINDOWS] for group in GROUPS.values()}
    centres = {group: [centre for centre, _, _ in windows] for group, windows in at.items()}
    lows, highs = ([numbers[side] for numbers in at["mlp_only"]] for side in (1, 2))
    assert [high < lows[-1] for high in highs[:-1]] == [False, True, False, True, True]
    assert min(map(min, centres.values())) == centres["attn_qkvo"][-1]
