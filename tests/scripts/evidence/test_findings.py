"""The rules that write "In short", on invented tables: whatever the sign, the same things are said."""

import json
from pathlib import Path

import pytest

from frankenlm.scripts.evidence.card import card_markdown
from frankenlm.scripts.evidence.findings import findings
from frankenlm.scripts.evidence.report import figures_in
from frankenlm.trainer_ext.metrics.seeds import paired_difference, summary

ROOT = Path(__file__).resolve().parents[3]
SEEDS = ("0", "1", "2")


def losses(mean: float, spread: float = 0.01) -> dict[str, float]:
    return dict(zip(SEEDS, (mean, mean + spread, mean - spread), strict=True))


def row(model: str, rate: float, by_seed: dict[str, float], memory=None) -> dict:
    held_out = {"validation": {"loss": summary(list(by_seed.values()))}} if by_seed else {}
    return {"model": model, "learning_rate": rate, "held_out": held_out, "by_seed": by_seed, "memory": memory or {}}


def trial(model: str, rate: float, by_seed: dict[str, float], known: bool = True) -> dict:
    entry = {"model": model, "learning_rate": rate, "validation_loss": summary(list(by_seed.values()))}
    return {**entry, "by_seed": by_seed} if known else entry


def table(
    rows, *, rates=(0.003,), sweep=None, trials=(), differences=(), positions=(), window=64, missing=(), unigram=9.0
) -> dict:
    """A report's table; the sweep is the first seed of the rows unless it is given."""
    sweep = sweep or {one["model"]: [one["by_seed"].get("0")] for one in rows}
    return {
        "rows": rows,
        "learning_rates": list(rates),
        "sweep": [{"model": model, "losses": found} for model, found in sweep.items()],
        "other_rates": list(trials),
        "differences": list(differences),
        "positions": list(positions),
        "attention_window": window,
        "missing": list(missing),
        "data": {"unigram": {"validation": unigram}},
        "recipe": {"steps": 40, "batch_rows": 8, "length": 256},
        "budget": 2_000_000,
    }


def titans(memory: float, plain: float, *, memory_trial=None, plain_trial=None, known=True) -> dict:
    """Both models at 0.003, and trials of them at 0.01; the table's own paired difference is recorded."""
    ours, theirs = losses(memory), losses(plain, 0.02)
    trials = []
    for model, mean in (("titan-memory", memory_trial), ("titan", plain_trial)):
        if mean is not None:
            trials.append(trial(model, 0.01, losses(mean, 0.03), known))
    recorded = {
        "name": "titan-memory minus titan",
        "measure": "validation loss",
        **paired_difference(ours, theirs),
        "share": 0.1,
    }
    beyond = {**recorded, "measure": "validation loss beyond position 64"}
    rows = [row("titan-memory", 0.003, ours), row("titan", 0.003, theirs)]
    return table(rows, trials=trials, differences=[recorded, beyond])


@pytest.mark.parametrize(
    ("plain_trial", "first", "effect"),
    [
        (5.00, "+0.4000 nats, a higher loss", "the delta memory raises the loss"),  # the twin is better at its trial
        (5.39, "+0.0100 nats, a higher loss", "no effect of the delta memory is shown"),
        (5.55, "-0.1000 nats, a lower loss", "the delta memory lowers the loss"),  # the trial is worse than the table
        (None, "-0.1000 nats, a lower loss", "the delta memory lowers the loss"),
    ],
)
def test_best_against_best_comes_first_whatever_its_sign(plain_trial, first, effect):
    made = titans(5.40, 5.50, plain_trial=plain_trial)
    lines = findings(made, 0)
    assert lines[0].startswith("titan-memory minus titan, each at its best rate (0.003 and ")
    assert first in lines[0] and effect in lines[0] and "3 seeds" in lines[0]


def test_the_favourable_number_never_stands_alone():
    """The twin at 0.01 beats both: first the cost, then the gain at the table's rate, marked as that."""
    lines = findings(titans(5.3813, 5.3997, plain_trial=5.3571, memory_trial=5.4183), 0)
    assert "(0.003 and 0.01), validation loss: +0.0242 nats" in lines[0]
    assert "validation loss at the same rate for both: -0.0184 at 0.003 (3 seeds" in lines[1]
    assert "+0.0612 at 0.01 (3 seeds" in lines[1]
    assert lines[2].startswith("titan-memory minus titan, at the table's rates (0.003 and 0.003), validation loss be")
    assert not any("-0.0184" in line for line in lines[:1])


def test_losses_by_seed_are_paired_and_others_are_not():
    paired, loose = (findings(titans(5.4, 5.5, plain_trial=5.3, known=known), 0)[0] for known in (True, False))
    assert "over 3 seeds" in paired and "not paired" not in paired
    assert "over 3 and 3 seeds that are not paired; 95 % interval" in loose


def test_one_seed_is_told_as_one_seed():
    made = table([row("titan-memory", 0.003, {"0": 5.3}), row("titan", 0.003, {"0": 5.4})])
    lines = findings(made, 0)
    assert "-0.1000 nats, a lower loss, with one seed, which shows nothing about the spread." in lines[0]
    assert "interval" not in lines[0] and "lowers the loss" not in lines[0]


@pytest.mark.parametrize(
    ("best", "edge"),
    [(1e-3, "titan (0.001, the lowest)"), (1e-2, "titan (0.01, the highest)"), (3e-3, None)],
)
def test_the_edge_of_the_sweep_is_told(best, edge):
    rates = (1e-3, 3e-3, 1e-2)
    swept = [5.4 if rate == best else 5.9 for rate in rates]
    made = table([row("titan", best, losses(5.4))], rates=rates, sweep={"titan": swept})
    lines = [line for line in findings(made, 0) if "at the edge" in line]
    assert [edge in line for line in lines] == ([True] if edge else [])


def test_a_trial_beyond_the_edge_counts_as_run():
    made = table(
        [row("titan", 1e-2, losses(5.4))],
        rates=(3e-3, 1e-2),
        sweep={"titan": [5.9, 5.4]},
        trials=[trial("titan", 3e-2, losses(6.0))],
    )
    assert not any("at the edge" in line for line in findings(made, 0))
    made["other_rates"] = [trial("titan", 3e-2, losses(5.0))]
    assert any("titan (0.03, the highest)" in line for line in findings(made, 0))


def test_one_rate_alone_is_told():
    assert "titan (0.003, the only)" in findings(table([row("titan", 3e-3, losses(5.4))]), 0)[0]


def test_gpt2_without_the_fair_baseline_proves_nothing():
    lines = findings(table([row("hybrid", 0.003, losses(5.5)), row("gpt2", 0.003, losses(6.4))]), 0)
    assert "hybrid minus gpt2" in lines[0] and "GPT-2 lacks its safeguards" in lines[0] and "no finding" in lines[0]
    assert any("nothing here is evidence for the mixers" in line for line in lines)


@pytest.mark.parametrize(
    ("hybrid", "told"),
    [
        (5.3, "20% of the lead over gpt2 is left where only the mixers differ."),
        (5.6, "nothing of the lead over gpt2 is the mixers'."),
        (6.6, "there is no lead over gpt2 to explain."),
    ],
)
def test_the_share_of_the_lead_that_a_fair_baseline_leaves(hybrid, told):
    rows = [("hybrid", hybrid, 0.01), ("attention", 5.5, 0.02), ("gpt2", 6.3, 0.01)]
    lines = findings(table([row(model, 0.003, losses(mean, spread)) for model, mean, spread in rows]), 0)
    assert lines[0].startswith("hybrid minus attention")
    (line,) = (line for line in lines if "of validation loss, hybrid minus plain attention" in line)
    assert line.endswith(told)


def test_a_share_within_the_spread_of_seeds_is_told_as_that():
    losses_of = {"hybrid": losses(5.3, 0.5), "attention": losses(5.5, -0.5), "gpt2": losses(6.3)}
    lines = findings(table([row(model, 0.003, by_seed) for model, by_seed in losses_of.items()]), 0)
    assert "no effect of the hybrid's mixers is shown" in lines[0]
    assert any("20% of the lead over gpt2 is left" in line and "not shown to be more" in line for line in lines)


@pytest.mark.parametrize(("loss", "told"), [(6.72, True), (6.69, False)])
def test_a_model_that_has_not_learnt_the_frequencies_is_named(loss, told):
    lines = findings(table([row("gpt2", 0.003, losses(loss))], unigram=6.7), 0)
    assert any("gpt2 at its best" in line and "unigram cross-entropy of 6.7000" in line for line in lines) is told


def test_the_scale_is_told():
    lines = findings(table([row("titan", 0.003, losses(5.4))]), 0)
    assert lines[-1].startswith("every run is 40 steps, 81,920 tokens, of a model of 2,000,000 parameters: nothing")
    assert ", one seed: nothing" in findings(table([row("titan", 0.003, {"0": 5.4})]), 0)[-1]


def memory_row(slots: float, rotation: float) -> dict:
    statistics = {"slots_used": summary([slots] * 3), "rotation": summary([rotation] * 3)}
    return row("infinito-small", 0.003, losses(5.5), statistics)


def test_a_memory_that_had_nothing_to_do_is_told():
    idle = findings(table([memory_row(16, 0.0)], window=None), 0)
    assert any("never filled (16 slots" in line for line in idle) and any("the whole row" in line for line in idle)
    busy = findings(table([memory_row(200, 0.2)]), 0)
    assert not any("never filled" in line or "whole row" in line for line in busy)


@pytest.mark.parametrize(("second", "useless"), [(5.61, True), (5.30, False)])
def test_what_context_brings_is_told(second, useless):
    positions = [
        {"model": "memory-off", "first_position": 1 + 64 * n, "last_position": 64 * (n + 1), "mean": mean}
        for n, mean in enumerate((5.52, second, 5.2, 5.4))
    ]
    (line,) = (line for line in findings(table([memory_row(16, 0.0)], positions=positions), 0) if "positions" in line)
    assert f"5.52 nats at positions 1 to 64, {second:.2f} at 65 to 128 and 5.30 beyond" in line
    assert ("does not lower the loss yet" in line) is useless


def test_what_is_missing_is_told():
    incomplete = table([row("titan", 0.003, {}), row("titan-memory", 0.003, losses(5.3))], missing=["a", "b"])
    lines = findings(incomplete, 0)
    assert "titan-memory minus titan: not measured, runs are missing." in lines
    assert "**incomplete**, runs that are missing: 2 (listed below)." in lines


@pytest.mark.parametrize("name", ["memory_evidence", "mixer_evidence"])
def test_the_committed_card_is_what_the_rules_make_of_the_committed_report(name):
    card, folder = ROOT / "model_cards" / f"{name}.md", ROOT / "results" / "samples" / name
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert card.read_text(encoding="utf-8") == card_markdown(report, figures_in(report, folder), card)


def test_the_committed_card_tells_the_cost_of_the_delta_memory_first():
    lines = (ROOT / "model_cards" / "memory_evidence.md").read_text(encoding="utf-8").splitlines()
    (first, *_) = (line for line in lines if "titan-memory minus titan" in line)
    assert "each at its best rate (0.003 and 0.01), validation loss: +0.0242 nats, a higher loss" in first


def test_the_committed_mixer_card_compares_with_a_fair_baseline_in_one_run():
    report = json.loads((ROOT / "results/samples/mixer_evidence/report.json").read_text(encoding="utf-8"))
    (made,) = report["tables"].values()
    assert {row["model"] for row in made["rows"]} == {"hybrid", "attention", "gpt2"} and not made["missing"]
    assert {len(row["by_seed"]) for row in made["rows"]} == {3} and len(report["versions"]) == 1
    card = (ROOT / "model_cards" / "mixer_evidence.md").read_text(encoding="utf-8")
    assert card.index("hybrid minus attention, each at its best rate") < card.index("hybrid minus gpt2")
