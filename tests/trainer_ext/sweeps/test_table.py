"""What the runs of a sweep show together, from made-up rows worked out by hand."""

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from frankenlm.trainer_ext.sweeps.cost import cost_line
from frankenlm.trainer_ext.sweeps.figure import plot_sweep
from frankenlm.trainer_ext.sweeps.grid import SweepRun
from frankenlm.trainer_ext.sweeps.run_folder import FINISHED, PlannedRun
from frankenlm.trainer_ext.sweeps.table import cells_of, edges, page

KEYS = ["run", "learning_rate"]


def row(run: str, rate: float | None, seed: int, loss: float | None, status: str = "finished") -> dict:
    name = f"{run},learning_rate={rate},seed={seed}"
    return {"name": name, "run": run, "learning_rate": rate, "seed": seed, "eval_loss": loss, "status": status,
            "message": "" if loss else "error: too\nbad"}  # fmt: skip


ROWS = [
    row("adamw", 1e-3, 0, 5.0),
    row("adamw", 1e-3, 1, 5.2),
    row("adamw", 3e-3, 0, 4.0),
    row("adamw", 3e-3, 1, 4.4),
    row("adamw", 1e-2, 0, 1.0),
    row("adamw", 1e-2, 1, None, "failed"),
    row("muon", 1e-3, 0, 4.1),
    row("muon", 1e-3, 1, 4.1),
    row("muon", 3e-3, 0, 4.6),
    row("muon", 3e-3, 1, 4.6),
]


def test_cells_are_means_over_seeds_and_the_best_is_of_whole_ones():
    cells = cells_of(ROWS, KEYS, "eval_loss")
    assert [(cell["run"], cell["learning_rate"], cell["n"], cell["runs"]) for cell in cells] == [
        ("adamw", 1e-3, 2, 2),
        ("adamw", 3e-3, 2, 2),
        ("adamw", 1e-2, 1, 2),
        ("muon", 1e-3, 2, 2),
        ("muon", 3e-3, 2, 2),
    ]
    # 12.706 * 0.2828 / sqrt(2) = 2.541
    assert (cells[1]["mean"], cells[1]["low"]) == (pytest.approx(4.2), pytest.approx(4.2 - 2.5412, abs=1e-4))
    assert [cell["best"] for cell in cells] == [False, False, False, True, False]  # 1.0 stands on one seed of two


def test_a_best_value_at_the_end_of_its_list_is_told():
    told = "muon: the best learning_rate, 0.001, is the smallest of its list: a better one may lie beyond it"
    assert edges(cells_of(ROWS, KEYS, "eval_loss"), KEYS, "eval_loss") == [told]
    whole = cells_of([*ROWS[:5], row("adamw", 1e-2, 1, 1.0)], KEYS, "eval_loss")
    assert edges(whole, KEYS, "eval_loss")[0].startswith("adamw: the best learning_rate, 0.01, is the largest")


def test_more_may_be_better():
    rows = [row("a", rate, 0, rate) | {"tokens_per_second": rate} for rate in (1.0, 2.0, 3.0)]
    cells = cells_of(rows, KEYS, "tokens_per_second")
    assert [cell["best"] for cell in cells] == [False, False, True] and cells[0]["low"] is None


def test_page_has_the_cells_the_warnings_and_the_failures():
    text = page("rates", "eval_loss", ROWS, cells_of(ROWS, KEYS, "eval_loss"), KEYS, ["careful"])
    assert "9 of 10 runs are finished" in text and "- careful." in text
    assert "| muon | 0.001 | 2 | 4.1000 | 4.1000 to 4.1000 | **best** |" in text
    assert "| adamw | 0.01 | 1 of 2 | 1.0000 |  |  |" in text
    assert "- adamw,learning_rate=0.01,seed=1: error: too bad" in text


@pytest.mark.parametrize(
    "rows",
    [ROWS, [], ROWS[5:6], [row(f"a_$x^{number}", None, 0, 1.0) for number in range(3)]],
    ids=["lines", "none", "failed", "categories"],
)
def test_figure(tmp_path, rows):
    cells = cells_of(rows, KEYS, "eval_loss")
    plot_sweep(cells, KEYS, "eval_loss", tmp_path / "a.png", title="a $ rate")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 800


def test_the_card_of_the_optimizers_says_what_was_measured():
    """Every run of the committed table stands on the card, and nothing else does."""
    root = Path(__file__).resolve().parents[3]
    with (root / "results" / "samples" / "optimizers" / "sweep.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    card = (root / "model_cards" / "optimizers.md").read_text(encoding="utf-8")
    lines = [line.replace("*", "") for line in card.splitlines() if re.match(r"\| (adamw|galore|muon) ", line)]
    assert lines == [
        f"| {run['run']} | {float(run['learning_rate']):g} | {float(run['eval_loss']):.3f} |" for run in runs
    ]
    losses = {
        kind: [float(run["eval_loss"]) for run in runs if run["run"] == kind] for kind in ("adamw", "galore", "muon")
    }
    best = {kind: min(of) for kind, of in losses.items()}
    for kind in ("galore", "muon"):
        assert f"{best[kind]:.3f}, {100 * (1 - best[kind] / best['adamw']):.1f} % below" in card.replace("\n  ", " ")


@pytest.mark.parametrize(("jobs", "told"), [(1, "35 process minutes are left"), (2, "left, 20 by the clock with 2 at")])
def test_a_dry_run_tells_what_several_at_once_take(jobs, told):
    """Seven runs of five minutes; two at a time are four rounds."""
    done = PlannedRun(SweepRun("a", "", {}, {}, {}, 0), Path("a"), {}, FINISHED, {"process_seconds": 300.0})
    line = cost_line([done], 7, jobs)
    assert told in line and ("clock" in line) == (jobs > 1)
