"""The fair tables, from the runs of their sweeps to words: configs/sweeps/ has a file by each name in `TABLES`.

Each entrant stands at a rate that one seed chose on the validation text, between two others; what is compared is the
loss of other seeds on the test text, paired by seed: twins of one seed start from the same values and read the same
rows. The sentences are made by rules, the same ones whatever the sign.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenlm.scripts.evidence.comparisons import Comparison, verdict
from frankenlm.scripts.evidence.findings import share_left
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.metrics.seeds import interval, paired_difference, plus_minus, summary
from frankenlm.trainer_ext.sweeps.choice import CHOICE, REPORT, Decision, best_inside

COLUMNS = ("run", "learning_rate", "seed", "stage", "eval_loss", "status", "message", "parameters", "tokens", "seconds")
NUMBERS = ("learning_rate", "eval_loss", "seconds")
WHOLE = ("seed", "parameters", "tokens")
GAVE_UP = "gave up"  # the status of a run that training itself ended

Row = Mapping[str, Any]


def effect(ours: str, theirs: str, what: str) -> Comparison:
    """What a difference between two entrants says of the one thing that they differ in."""
    return Comparison(
        ours,
        theirs,
        below=f"{what} lowers the loss",
        above=f"{what} raises the loss",
        neither=f"no effect of {what} is shown",
    )


def layout(ours: str, theirs: str) -> Comparison:
    """A difference between two entrants that differ in several things at once."""
    return Comparison(
        ours,
        theirs,
        below=f"{ours} has the lower loss, by which of the differences is not told",
        above=f"{ours} has the higher loss, by which of the differences is not told",
        neither="no difference is shown",
    )


@dataclass(frozen=True)
class FairTable:
    """A table: its title, and its comparisons in the order in which they are told."""

    title: str
    comparisons: tuple[Comparison, ...]


TABLES = {
    "fair_mixers": FairTable(
        "The hybrid's mixers against plain attention with the same safeguards, GPT-2 beside both",
        (
            effect("hybrid", "attention", "putting the hybrid's mixers in the place of plain attention"),
            layout("hybrid", "gpt2"),
            layout("attention", "gpt2"),
            layout("attention", "gpt2-unigram"),
            effect("gpt2-unigram", "gpt2", "an output bias at the token frequencies"),
        ),
    ),
    "fair_embedding": FairTable(
        "The safeguards of a plain attention stack, left out",
        (
            effect("no-convolution", "all", "leaving the embedding convolution out"),
            effect("no-norm", "all", "leaving the RMS norm of the embedding out"),
            effect("no-unigram", "all", "leaving the start at the token frequencies out"),
            effect("none", "all", "leaving all three out"),
        ),
    ),
    "fair_norms": FairTable(
        "Derf and DynamicTanh against LayerNorm and RMSNorm",
        (
            effect("derf", "layer_norm", "Derf in place of LayerNorm"),
            effect("dynamic_tanh", "layer_norm", "DynamicTanh in place of LayerNorm"),
            effect("derf", "dynamic_tanh", "Derf in place of DynamicTanh"),
            effect("rms_norm", "layer_norm", "RMSNorm in place of LayerNorm"),
            effect("derf", "rms_norm", "Derf in place of RMSNorm"),
        ),
    ),
    "fair_hope": FairTable(
        "Hyperbolic positions on and off",
        (
            effect("hybrid-hope", "hybrid-none", "HoPE in the hybrid"),
            effect("titan-hope", "titan-rope", "HoPE in place of rotary positions, attention alone,"),
        ),
    ),
    "distil": FairTable(
        "A student of two layers with a teacher of four and alone",
        (
            effect("two-stages", "alone", "TinyBERT's two stages in place of as many steps alone"),
            effect("logits", "alone", "a teacher's logits beside the labels"),
            effect("two-stages", "logits", "TinyBERT's two stages in place of logits beside the labels"),
        ),
    ),
    "memory_gap": FairTable(
        "Attention with slots between its window and the whole row",
        (
            effect("slots", "window", "keeping what leaves the window in slots"),
            effect("whole", "window", "seeing the whole row"),
            effect("slots", "whole", "slots in place of the whole row"),
        ),
    ),
    "delta_memory": FairTable(
        "A delta memory beside a window of attention",
        (
            effect("plain", "no_memory", "a delta memory merged as older checkpoints have it"),
            effect("quiet", "no_memory", "a delta memory whose read gate starts at -4"),
            effect("normalized", "no_memory", "a delta memory with both branches normalised"),
            effect("whole", "no_memory", "seeing the whole row"),
        ),
    ),
}
# Entrants of the memories' tables: what sees a window alone, what sees the whole row, what remembers.
FLOORS, CEILING, MEMORIES = ("window", "no_memory"), "whole", ("slots", "plain", "quiet", "normalized")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The runs of a table's runs.csv.

    Raises:
        UserError: it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file)]
        for row in rows:
            row |= {name: float(row[name]) if row[name] else None for name in NUMBERS}
            row |= {name: int(row[name]) if row[name] else None for name in WHOLE}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: no runs.csv of scripts/fair/report.py ({type(error).__name__}).") from error
    return rows


def decisions(rows: Sequence[Row]) -> dict[str, Decision]:
    """The rate of each entrant, chosen anew from the runs of the choice by the sweep's own rule."""
    found: dict[str, dict[float, float | None]] = {}
    for row in rows:
        if row["stage"] == CHOICE:
            loss = math.inf if row["status"] == GAVE_UP else row["eval_loss"]
            found.setdefault(row["run"], {})[row["learning_rate"]] = loss
    return {
        name: best_inside(sorted(losses), {rate: loss for rate, loss in losses.items() if loss is not None})
        for name, losses in found.items()
    }


def reported(rows: Sequence[Row], name: str, decision: Decision) -> dict[int, float]:
    """An entrant's losses on the test text by seed, at the rate that was chosen."""
    return {
        row["seed"]: row["eval_loss"]
        for row in rows
        if (row["run"], row["stage"], row["learning_rate"]) == (name, REPORT, decision.chosen)
        and row["eval_loss"] is not None
    }


def lost(rows: Sequence[Row], name: str, decision: Decision) -> list[int]:
    """The reported seeds of an entrant, at the rate that was chosen, of which training gave up: those left over are no
    sample of it."""
    return [
        row["seed"]
        for row in rows
        if (row["run"], row["stage"], row["learning_rate"]) == (name, REPORT, decision.chosen)
        and row["status"] == GAVE_UP
    ]


def fair_findings(table: FairTable, rows: Sequence[Row]) -> list[str]:
    """All sentences: the comparisons, how many of them say what, what weakens them."""
    chosen = decisions(rows)
    losses = {name: reported(rows, name, decision) for name, decision in chosen.items()}
    gone = {name: lost(rows, name, decision) for name, decision in chosen.items()}
    lines, signs = [], []
    for comparison in table.comparisons:
        line, sign = compared(comparison, chosen, losses, gone)
        lines.append(line)
        signs.append(sign)
    lower, higher = signs.count(-1), signs.count(1)
    lines.append(
        f"of {len(signs)} comparisons, {lower} show a lower loss, {higher} a higher one, {len(signs) - lower - higher} "
        "neither; none is corrected for being one of several."
    )
    whole = {name: losses[name] for name in losses if not gone[name]}
    return [*lines, *share_lines(whole), *gap_lines(whole), *weak_lines(rows, chosen), *scale_lines(rows)]


def compared(
    comparison: Comparison,
    chosen: Mapping[str, Decision],
    losses: Mapping[str, Mapping[int, float]],
    gone: Mapping[str, Sequence[int]],
) -> tuple[str, int]:
    """The sentence of a comparison, and what it shows: -1 a lower loss, 1 a higher one, 0 neither."""
    for name in (comparison.ours, comparison.theirs):
        if name not in chosen:
            return f"{comparison.name}: not measured, {name} was not run.", 0
        if chosen[name].chosen is None:
            return f"{comparison.name}: not compared, no rate of {name} is called best: {chosen[name].reason}.", 0
        if gone[name]:
            seeds = ", ".join(map(str, gone[name]))
            return f"{comparison.name}: not compared, training of {name} gave up at seed {seeds}.", 0
    ours, theirs = losses[comparison.ours], losses[comparison.theirs]
    found = paired_difference(ours, theirs)
    if found["n"]:
        found["share"] = abs(found["mean"]) / (sum(theirs.values()) / len(theirs))
    rates = " and ".join(f"{chosen[name].chosen:g}" for name in (comparison.ours, comparison.theirs))
    sign = 0 if not found["excludes_zero"] else -1 if found["mean"] < 0 else 1
    return f"{comparison.name}, each at its best rate ({rates}): {verdict(comparison, found)}", sign


def share_lines(losses: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """How much of the hybrid's distance from GPT-2 is left against plain attention with its safeguards."""
    hybrid, plain, gpt2 = (losses.get(name) for name in ("hybrid", "attention", "gpt2"))
    if hybrid and plain and gpt2:
        whole, left = (paired_difference(hybrid, other) for other in (gpt2, plain))
        if whole["n"] and left["n"]:
            yield (
                f"hybrid minus gpt2 is {whole['mean']:+.4f} nats, hybrid minus plain attention with the same "
                f"safeguards {left['mean']:+.4f}: "
                f"{share_left(whole['mean'], left['mean'], bool(left['excludes_zero']))}"
            )


def gap_lines(losses: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """The share of the gap between a window (the floor) and the whole row (the ceiling) that each memory recovers: 0 is
    what the window alone gives, 1 what the whole row does. Told only where the gap is more than the spread of seeds."""
    floor, ceiling = next((losses[name] for name in FLOORS if losses.get(name)), None), losses.get(CEILING)
    memories = [name for name in MEMORIES if losses.get(name)]
    if not (floor and ceiling and memories):
        return
    gap = paired_difference(floor, ceiling)
    if not gap["excludes_zero"] or gap["mean"] < 0:
        yield "no gap between the window and the whole row is shown, so no memory could recover a share of it."
        return
    for name in memories:
        seeds = floor.keys() & ceiling.keys() & losses[name].keys()
        shares = {seed: (floor[seed] - losses[name][seed]) / (floor[seed] - ceiling[seed]) for seed in seeds}
        found = paired_difference(shares, dict.fromkeys(seeds, 0.0))
        if not found["n"]:
            continue
        bounds = "" if found["low"] is None else f", 95 % interval {found['low']:+.0%} to {found['high']:+.0%}"
        shown = "" if found["excludes_zero"] and found["mean"] > 0 else ": nothing is shown to be recovered"
        yield (
            f"{name} recovers {found['mean']:+.0%} of the gap of {gap['mean']:.4f} nats between the window and the "
            f"whole row (mean of the shares of {found['n']} seeds{bounds}){shown}."
        )


def weak_lines(rows: Sequence[Row], chosen: Mapping[str, Decision]) -> Iterator[str]:
    """What is missing, what gave up, and whose list of rates had to grow."""
    for name, decision in chosen.items():
        if decision.chosen is None:
            yield f"**{name} has no best rate**: {decision.reason}."
    gone = [f"{row['run']} at {row['learning_rate']:g}, seed {row['seed']}" for row in rows if row["status"] == GAVE_UP]
    if gone:
        yield f"training gave up for {'; '.join(gone)}."
    missing = sum(row["eval_loss"] is None and row["status"] != GAVE_UP for row in rows)
    if missing:
        yield f"**incomplete**: {missing} of {len(rows)} runs are missing."


def scale_lines(rows: Sequence[Row]) -> Iterator[str]:
    """How small all this is."""
    made = [row for row in rows if row["eval_loss"] is not None]
    if made:
        tokens, sizes = sorted({row["tokens"] for row in made}), sorted({row["parameters"] for row in made})
        yield (
            f"every run is {_span(tokens)} tokens of a model of {_span(sizes)} parameters: nothing is shown about "
            "longer training or other sizes."
        )


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def report_text(name: str, rows: Sequence[Row]) -> str:
    """What the runs say, by rule; the entrants; the choice of the rates."""
    if not any(row["eval_loss"] is not None for row in rows):
        return "No run is finished yet.\n"
    lines = "\n".join(f"- {line}" for line in fair_findings(TABLES[name], rows))
    chosen = decisions(rows)
    minutes = sum(row["seconds"] or 0 for row in rows) / 60
    parts = [
        f"In short:\n\n{lines}",
        markdown_table([_entrant(rows, entrant, decision) for entrant, decision in chosen.items()]),
        f"Choice of the rates: loss on the validation text, seed {seed_of_choice(rows)}; the chosen one is bold.",
        markdown_table(choice_rows(rows, chosen)),
        f"{sum(row['eval_loss'] is not None for row in rows)} runs of one thread, {minutes:.0f} process minutes.",
    ]
    return "\n\n".join(parts) + "\n"


def seed_of_choice(rows: Sequence[Row]) -> int:
    return next(row["seed"] for row in rows if row["stage"] == CHOICE)


def _entrant(rows: Sequence[Row], name: str, decision: Decision) -> dict[str, str]:
    """A line of the table."""
    losses = list(reported(rows, name, decision).values())
    spread = summary(losses)
    error = spread["sd"] / math.sqrt(len(losses)) if len(losses) > 1 else None
    bounds = interval(spread["mean"], error, len(losses) - 1)
    gone = len(lost(rows, name, decision))
    sizes = {row["parameters"] for row in rows if row["run"] == name and row["parameters"]}
    return {
        "entrant": name,
        "parameters": ", ".join(f"{size:,}" for size in sorted(sizes)),
        "rate": "none is called best" if decision.chosen is None else f"{decision.chosen:g}",
        "test loss": plus_minus(spread),
        "95 % interval": "" if bounds["low"] is None else f"{bounds['low']:.4f} to {bounds['high']:.4f}",
        "seeds": f"{len(losses)}, {gone} more gave up" if gone else str(len(losses)),
    }


def choice_rows(rows: Sequence[Row], chosen: Mapping[str, Decision]) -> list[dict[str, str]]:
    """Validation loss by entrant and rate."""
    rates = sorted({row["learning_rate"] for row in rows if row["stage"] == CHOICE})
    found = {(row["run"], row["learning_rate"]): row for row in rows if row["stage"] == CHOICE}
    return [
        {"entrant": name} | {f"{rate:g}": _choice_cell(found.get((name, rate)), decision) for rate in rates}
        for name, decision in chosen.items()
    ]


def _choice_cell(row: Row | None, decision: Decision) -> str:
    if row is None:
        return ""
    if row["eval_loss"] is None:
        return row["status"]
    return f"**{row['eval_loss']:.4f}**" if row["learning_rate"] == decision.chosen else f"{row['eval_loss']:.4f}"
