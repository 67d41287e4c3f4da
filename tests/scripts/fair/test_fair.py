"""Fair tables: planted results come out with their sign, good or bad; the card holds what the committed rows give."""

import csv
import math
import re
from pathlib import Path

import pytest

from frankenlm.scripts.fair import coverage
from frankenlm.scripts.fair.blocks import with_block
from frankenlm.scripts.fair.report import rows_of
from frankenlm.scripts.fair.tables import COLUMNS, GAVE_UP, TABLES, fair_findings, read_rows, report_text
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.files import write_csv, write_json

ROOT = Path(__file__).resolve().parents[3]
CARD = ROOT / "model_cards" / "fair_tables.md"
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
NORMS = TABLES["fair_norms"]


def row(run: str, rate: float, seed: int, stage: str, loss: float | None, status: str = "finished") -> dict:
    told = {"run": run, "learning_rate": rate, "seed": seed, "stage": stage, "eval_loss": loss, "status": status}
    return {**told, "parameters": 375_514, "tokens": 409_600, "seconds": 60.0, "message": ""}


def chosen_at(run: str, best: float) -> list[dict]:
    """The runs of a choice with their lowest loss at a rate."""
    return [row(run, rate, 1000, "choice", 4 + abs(math.log(rate / best))) for rate in RATES]


def entrant(run: str, losses: list[float], best: float = 3e-3) -> list[dict]:
    reported = [row(run, best, seed, "report", loss) for seed, loss in enumerate(losses)]
    return [*chosen_at(run, best), *reported]


def line_about(lines: list[str], start: str) -> str:
    (line,) = (line for line in lines if line.startswith(start))
    return line


STARTS = [4.10, 4.30, 4.20, 4.00]  # seeds differ by more than entrants do: pairs alone can tell


@pytest.mark.parametrize(("change", "word", "effect"), [(0.05, "higher", "raises"), (-0.05, "lower", "lowers")])
def test_what_nobody_likes_is_said_as_plainly(change, word, effect):
    """The difference of every pair is 0.05 and a hair more or less: mean 0.05, sd 0.002, t(3) = 3.182."""
    moved = [start + change + wobble for start, wobble in zip(STARTS, (0.002, -0.002, 0.001, -0.001), strict=True)]
    lines = fair_findings(NORMS, [*entrant("layer_norm", STARTS), *entrant("derf", moved, best=1e-2)])
    line = line_about(lines, "derf minus layer_norm")
    assert f"each at its best rate (0.01 and 0.003): {change:+.4f} nats, a {word} loss" in line
    low, high = (change + sign * 3.182 * math.sqrt(1e-5 / 3) / 2 for sign in (-1, 1))
    assert f"95 % interval {low:+.4f} to {high:+.4f}, which excludes 0" in line
    assert line.endswith(f"Derf in place of LayerNorm {effect} the loss.")
    counts = "0 show a lower loss, 1 a higher one" if change > 0 else "1 show a lower loss, 0 a higher one"
    assert f"of 5 comparisons, {counts}, 4 neither; none is corrected" in " ".join(lines)
    assert "dynamic_tanh minus layer_norm: not measured, dynamic_tanh was not run." in lines


def test_a_spread_of_seeds_is_no_effect():
    rows = [*entrant("layer_norm", STARTS), *entrant("derf", [STARTS[1], STARTS[0], STARTS[3] + 0.01, STARTS[2]])]
    line = line_about(fair_findings(NORMS, rows), "derf minus layer_norm")
    assert "which includes 0: no effect of Derf in place of LayerNorm is shown" in line


@pytest.mark.parametrize("edge", [RATES[0], RATES[-1]])
def test_nothing_is_said_of_an_entrant_whose_best_rate_lies_at_an_end(edge):
    rows = [*entrant("layer_norm", STARTS), *entrant("derf", [1.0] * 4, best=edge)]
    lines = fair_findings(NORMS, rows)
    assert "not compared, no rate of derf is called best" in line_about(lines, "derf minus layer_norm")
    assert line_about(lines, "**derf has no best rate**").endswith("a better one may lie beyond.")
    text = report_text("fair_norms", rows)
    assert "| derf | 375,514 | none is called best | missing |" in text and "1.0000" not in text


def test_what_gave_up_or_is_missing_is_told():
    rows = [*entrant("layer_norm", STARTS), *chosen_at("derf", 3e-3)[:-1]]
    rows += [row("derf", 3e-2, 1000, "choice", None, GAVE_UP), row("derf", 3e-3, 0, "report", None, "missing")]
    lines = fair_findings(NORMS, rows)
    assert "training gave up for derf at 0.03, seed 1000." in lines
    assert "**incomplete**: 1 of 15 runs are missing." in lines
    assert "not measured, runs are missing" in line_about(lines, "derf minus layer_norm")
    half = [*chosen_at("derf", 3e-3)[:-1], row("derf", 3e-2, 1000, "choice", None, "running")]
    assert "1 of 5 values are not finished" in line_about(fair_findings(NORMS, half), "**derf has no best rate**")


def test_who_lost_a_seed_is_not_compared_by_the_others():
    """The seed that diverged is the worst one: without it, what is left looks better than it is."""
    rows = [*entrant("layer_norm", STARTS), *entrant("derf", [one - 1 for one in STARTS[:3]])]
    rows.append(row("derf", 3e-3, 3, "report", None, GAVE_UP))
    lines = fair_findings(NORMS, rows)
    assert line_about(lines, "derf minus layer_norm").endswith("not compared, training of derf gave up at seed 3.")
    assert "0 show a lower loss, 0 a higher one, 5 neither" in " ".join(lines)
    text = report_text("fair_norms", rows)
    assert "| 3, 1 more gave up |" in text and "17 runs of one thread, 18 process minutes." in text
    mixers = [*entrant("hybrid", [4.0, 4.1]), *entrant("attention", [4.1, 4.2]), *entrant("gpt2", [5.0])]
    mixers.append(row("gpt2", 3e-3, 1, "report", None, GAVE_UP))
    assert not any(line.startswith("hybrid minus gpt2 is") for line in fair_findings(TABLES["fair_mixers"], mixers))


def test_the_lead_over_gpt2_is_shared_out():
    mixers = [*entrant("hybrid", [4.0, 4.1]), *entrant("attention", [4.1, 4.2]), *entrant("gpt2", [5.0, 5.1])]
    line = line_about(fair_findings(TABLES["fair_mixers"], mixers), "hybrid minus gpt2 is")
    assert "-1.0000 nats" in line and "safeguards -0.1000: 10% of the lead over gpt2 is left" in line


GAP = {"window": [4.0, 4.1, 4.05], "whole": [3.8, 3.9, 3.85]}


@pytest.mark.parametrize(
    ("slots", "told"),
    [
        ([3.91, 4.0, 3.95], "slots recovers +48% of the gap of 0.2000 nats between the window and the whole row"),
        ([4.1, 4.2, 4.15], "-50% of the gap"),
        ([3.8, 4.2, 4.05], ": nothing is shown to be recovered."),
    ],
)
def test_a_memory_recovers_a_share_of_the_gap(slots, told):
    rows = [line for name, losses in {**GAP, "slots": slots}.items() for line in entrant(name, losses)]
    line = line_about(fair_findings(TABLES["memory_gap"], rows), "slots recovers")
    assert told in line and "of 3 seeds, 95 % interval" in line
    assert ("nothing is shown" in line) == (slots != [3.91, 4.0, 3.95])


def test_no_share_is_told_of_a_gap_that_is_none():
    both = [*entrant("window", STARTS), *entrant("whole", STARTS[::-1])]
    lines = fair_findings(TABLES["memory_gap"], both)
    assert not any("recovers" in line or "no gap" in line for line in lines)  # nothing that remembers was run
    lines = fair_findings(TABLES["memory_gap"], [*both, *entrant("slots", STARTS)])
    assert line_about(lines, "no gap between the window and the whole row is shown")


def test_rows_are_read_from_the_folders_of_a_sweep(tmp_path):
    sweep = tmp_path / "fair_norms"
    runs = [row("derf", 1e-2, 1000, "choice", 4.0), row("derf", 3e-2, 1000, "choice", None, "failed")]
    runs[1]["message"] = "stopped: the model is not healthy at the end"
    for run, name in zip(runs, ("a", "b"), strict=True):
        (sweep / name).mkdir(parents=True)
        write_json(sweep / name / "metrics.json", {"parameters": 7, "tokens_seen": 8})
        write_json(sweep / name / "sweep_run.json", {"process_seconds": 9.5})
        run["name"] = name
    write_json(sweep / "sweep.json", {"runs": runs})
    write_csv(tmp_path / "runs.csv", rows_of(sweep), COLUMNS)
    first, second = read_rows(tmp_path / "runs.csv")
    assert (first["parameters"], first["tokens"], first["seconds"], first["eval_loss"]) == (7, 8, 9.5, 4.0)
    assert (second["status"], second["eval_loss"]) == (GAVE_UP, None)
    (tmp_path / "runs.csv").write_text("run\nderf\n")
    with pytest.raises(UserError, match="no runs.csv"):
        read_rows(tmp_path / "runs.csv")
    with pytest.raises(UserError, match="no folder of a fair sweep"):
        rows_of(tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_the_card_holds_what_the_rules_make_of_the_committed_rows(name):
    path, card = ROOT / "results" / "samples" / name / "runs.csv", CARD.read_text(encoding="utf-8")
    text = report_text(name, read_rows(path) if path.is_file() else [])
    assert with_block(CARD, card, f"{name}: table.md", text) == card
    if path.is_file():
        assert path.with_name("table.md").read_text(encoding="utf-8") == text


def test_the_card_holds_the_coverage_that_was_simulated():
    card = CARD.read_text(encoding="utf-8")
    rows = coverage.read_coverage(ROOT / "results" / "samples" / "coverage" / "coverage.csv")
    assert with_block(CARD, card, coverage.MARK, coverage.coverage_text(rows)) == card
    with pytest.raises(UserError, match="has no block from <!-- odd: a.md --> to <!-- /odd -->"):
        with_block(CARD, card, "odd: a.md", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", coverage.DIFFERENCES)
def test_intervals_hold_what_the_card_says(kind):
    with (ROOT / "results" / "samples" / "coverage" / "coverage.csv").open(encoding="utf-8") as file:
        told = {int(line["seeds"]): int(line["held"]) for line in csv.DictReader(file) if line["differences"] == kind}
    assert told == {seeds: coverage.coverage(kind, seeds)["held"] for seeds in coverage.SEEDS}
    share = {seeds: held / coverage.SIMULATIONS for seeds, held in told.items()}
    assert all(abs(one - 0.95) < 0.005 if kind == "normal" else one < 0.9 for one in share.values())


def test_prose_of_the_card_has_the_numbers_of_the_recipes():
    text = (ROOT / "configs" / "small" / "fair.yaml").read_text(encoding="utf-8")
    vocabulary = int(re.search(r"vocab_size: (\d+)", text).group(1))
    assert f"{vocabulary:,} entries" in CARD.read_text(encoding="utf-8")
