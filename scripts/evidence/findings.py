"""The rules that write "In short": a report's table -> sentences, the same ones whatever the sign.

For each comparison the two models are compared first at the best rate that was run for each, trials included; then at
every rate that both ran at; then in the table's other measures. What weakens a finding is said beside it: a rate at the
edge of those that were run, one seed, a missing baseline, a memory that had nothing to do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frankenlm.scripts.evidence.comparisons import COMPARISONS, SHUFFLED, Comparison, verdict
from frankenlm.scripts.evidence.models import ATTENTION, GPT2, HYBRID_VARIANT, INFINITO, MEMORY_OFF
from frankenlm.trainer_ext.metrics.seeds import paired_difference, unpaired_difference

VALIDATION = "validation loss"


@dataclass(frozen=True)
class Rated:
    """A model at one learning rate. loss: summary of its validation loss. by_seed: the losses, if they are known."""

    learning_rate: float
    loss: Mapping[str, Any]
    by_seed: Mapping[str, float]


def findings(table: Mapping[str, Any], first_seed: int) -> list[str]:
    """All sentences of one table of a report, comparisons first."""
    lines = []
    for comparison in COMPARISONS:
        lines += comparison_lines(table, comparison, first_seed)
    lines += [*lead_lines(table, first_seed), *unigram_lines(table, first_seed), *edge_lines(table, first_seed)]
    lines += [*memory_lines(table), *scale_lines(table)]
    if table["missing"]:
        lines.append(f"**incomplete**, runs that are missing: {len(table['missing'])} (listed below).")
    return lines


def comparison_lines(table: Mapping[str, Any], comparison: Comparison, first_seed: int) -> Iterator[str]:
    """The sentences of one comparison; none where the table does not have its two models."""
    rows = {row["model"] for row in table["rows"]}
    if not {comparison.ours, comparison.theirs} <= rows:
        return
    ours, theirs = (best_rated(table, name, first_seed) for name in (comparison.ours, comparison.theirs))
    if ours is None or theirs is None:
        yield f"{comparison.name}: not measured, runs are missing."
        return
    at = f"each at its best rate ({ours.learning_rate:g} and {theirs.learning_rate:g})"
    if comparison.ours == SHUFFLED:  # no training of its own, so no rate of its own
        at = f"at the rate {ours.learning_rate:g}"
    yield f"{comparison.name}, {at}, {VALIDATION}: {verdict(comparison, difference(table, comparison, ours, theirs))}"
    yield from common_rate_lines(table, comparison, (ours, theirs))
    chosen = {row["model"]: row["learning_rate"] for row in table["rows"]}
    beside = (chosen[comparison.ours], chosen[comparison.theirs]) != (ours.learning_rate, theirs.learning_rate)
    where = f", at the table's rates ({chosen[comparison.ours]:g} and {chosen[comparison.theirs]:g})" if beside else ""
    for entry in table["differences"]:
        if entry["name"] == comparison.name and entry["measure"] != VALIDATION:
            yield f"{entry['name']}{where}, {entry['measure']}: {verdict(comparison, entry)}"


def common_rate_lines(table: Mapping[str, Any], comparison: Comparison, best: tuple[Rated, Rated]) -> Iterator[str]:
    """One sentence with the difference at every rate that both models ran at, unless that is what was said already."""
    ours, theirs = (rated(table, name) for name in (comparison.ours, comparison.theirs))
    told = best[0].learning_rate if best[0].learning_rate == best[1].learning_rate else None
    parts = []
    for rate in sorted(ours.keys() & theirs.keys() - {told}):
        found = difference(table, comparison, ours[rate], theirs[rate])
        parts.append(f"{found['mean']:+.4f} at {rate:g} ({'one seed' if found['n'] == 1 else _interval(found)})")
    if parts:
        also = "the other rates" if told is not None else "the same rate for both"
        yield f"{comparison.name}, {VALIDATION} at {also}: {'; '.join(parts)}."


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['n']} seeds, 95 % interval {found['low']:+.4f} to {found['high']:+.4f}"


def rated(table: Mapping[str, Any], model: str) -> dict[float, Rated]:
    """Every rate a model was run at: the chosen one, the sweep's others (the first seed alone), the trials."""
    found = {}
    for entry in table["sweep"]:
        if entry["model"] == model:
            for rate, loss in zip(table["learning_rates"], entry["losses"], strict=True):
                if loss is not None:
                    found[rate] = Rated(rate, {"n": 1, "mean": loss, "sd": None}, {})
    for row in table["rows"]:
        if row["model"] == model and row["learning_rate"] is not None and "validation" in row["held_out"]:
            losses = row["held_out"]["validation"]["loss"]
            found[row["learning_rate"]] = Rated(row["learning_rate"], losses, row.get("by_seed", {}))
    for entry in table["other_rates"]:
        if entry["model"] == model:
            rate = entry["learning_rate"]
            found[rate] = Rated(rate, entry["validation_loss"], entry.get("by_seed", {}))
    return found


def best_rated(table: Mapping[str, Any], model: str, first_seed: int) -> Rated | None:
    """The best of the chosen rate and the trials: by the first seed, as the sweep chooses, or where losses by seed are
    not known by the mean. None without a chosen rate."""
    row = next(row for row in table["rows"] if row["model"] == model)
    every = rated(table, model)
    if row["learning_rate"] not in every:
        return None
    trials = [entry["learning_rate"] for entry in table["other_rates"] if entry["model"] == model]
    candidates = [every[rate] for rate in (row["learning_rate"], *trials)]
    first = str(first_seed)
    if all(first in candidate.by_seed for candidate in candidates):
        return min(candidates, key=lambda candidate: candidate.by_seed[first])
    return min(candidates, key=lambda candidate: candidate.loss["mean"])


def difference(table: Mapping[str, Any], comparison: Comparison, ours: Rated, theirs: Rated) -> dict[str, Any]:
    """ours - theirs in validation loss: over paired seeds where they are known, else of the two means."""
    recorded = _recorded(table, comparison, ours, theirs)
    if recorded is not None:
        return recorded
    if ours.by_seed.keys() & theirs.by_seed.keys():
        found = paired_difference(ours.by_seed, theirs.by_seed)
    else:
        found = unpaired_difference(ours.loss, theirs.loss)
    return {**found, "share": abs(found["mean"]) / theirs.loss["mean"]}


def _recorded(table, comparison: Comparison, ours: Rated, theirs: Rated) -> dict[str, Any] | None:
    """The report's own difference, if these are the rates it was taken at."""
    chosen = {row["model"]: row["learning_rate"] for row in table["rows"]}
    if (ours.learning_rate, theirs.learning_rate) != (chosen[comparison.ours], chosen[comparison.theirs]):
        return None
    for entry in table["differences"]:
        if entry["name"] == comparison.name and entry["measure"] == VALIDATION and entry["n"]:
            return entry
    return None


def lead_lines(table: Mapping[str, Any], first_seed: int) -> Iterator[str]:
    """How much of the hybrid's distance from GPT-2 is left against plain attention; or that nobody measured it."""
    rows = {row["model"] for row in table["rows"]}
    if not {HYBRID_VARIANT.name, GPT2.name} <= rows:
        return
    hybrid, gpt2 = (best_rated(table, name, first_seed) for name in (HYBRID_VARIANT.name, GPT2.name))
    plain = best_rated(table, ATTENTION.name, first_seed) if ATTENTION.name in rows else None
    if plain is None:
        yield (
            "hybrid and gpt2 differ in more than their mixers, and plain attention with the hybrid's safeguards was "
            "not run in this table: nothing here is evidence for the mixers."
        )
    elif hybrid is not None and gpt2 is not None:
        whole, left = (hybrid.loss["mean"] - other.loss["mean"] for other in (gpt2, plain))
        fair = next(one for one in COMPARISONS if (one.ours, one.theirs) == (HYBRID_VARIANT.name, ATTENTION.name))
        shown = bool(difference(table, fair, hybrid, plain)["excludes_zero"])
        yield (
            f"hybrid minus gpt2 is {whole:+.4f} nats of {VALIDATION}, hybrid minus plain attention with the same "
            f"safeguards {left:+.4f}: {share_left(whole, left, shown)}"
        )


def share_left(whole: float, left: float, shown: bool) -> str:
    """What is left of a lead over GPT-2 where only the mixers differ; shown: it is more than the spread of seeds."""
    if whole >= 0:
        return "there is no lead over gpt2 to explain."
    if left >= 0:
        return "nothing of the lead over gpt2 is the mixers'."
    told = f"{left / whole:.0%} of the lead over gpt2 is left where only the mixers differ"
    return f"{told}." if shown else f"{told}, and that is not shown to be more than the spread of seeds."


def unigram_lines(table: Mapping[str, Any], first_seed: int) -> Iterator[str]:
    """Who has learnt no more than how often each token occurs."""
    if table["data"] is None:
        return
    reference = table["data"]["unigram"]["validation"]
    best = {row["model"]: best_rated(table, row["model"], first_seed) for row in table["rows"]}
    for model, found in best.items():
        if found is not None and found.loss["mean"] >= reference:
            yield (
                f"{model} at its best ({found.loss['mean']:.4f} nats) is not below the unigram cross-entropy of "
                f"{reference:.4f}: it has not learnt what an output bias at the token frequencies gives from the start."
            )


def scale_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """How small all this is."""
    recipe, seeds = table["recipe"], {len(row["by_seed"]) for row in table["rows"] if row.get("by_seed")}
    tokens = recipe["steps"] * recipe["batch_rows"] * recipe["length"]
    yield (
        f"every run is {recipe['steps']} steps, {tokens:,} tokens, of a model of {table['budget']:,} parameters"
        f"{', one seed' if seeds == {1} else ''}: nothing is shown about longer training or other sizes."
    )


def edge_lines(table: Mapping[str, Any], first_seed: int) -> Iterator[str]:
    """Whose best rate is the lowest, the highest or the only one that was run."""
    edges = []
    for row in table["rows"]:
        best = None if row["model"] == SHUFFLED else best_rated(table, row["model"], first_seed)
        rates = sorted(rated(table, row["model"]))
        if best is None or best.learning_rate in rates[1:-1]:
            continue
        place = "only" if len(rates) == 1 else "highest" if best.learning_rate == rates[-1] else "lowest"
        edges.append(f"{row['model']} ({best.learning_rate:g}, the {place})")
    if edges:
        yield f"the best rate that was run is at the edge for {', '.join(edges)}; a better one may lie beyond."


def memory_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a table from showing what the slot memory is worth."""
    row = next((row for row in table["rows"] if row["model"] == INFINITO.name and row["memory"]), None)
    if row is None:
        return
    statistics = {name: values["mean"] for name, values in row["memory"].items()}
    if statistics["rotation"] == 0:
        yield (
            f"the slot memory never filled ({statistics['slots_used']:.0f} slots at the end of a row, none of them "
            "replaced), so what it keeps and forgets was not put to a test."
        )
    if table["attention_window"] is None:
        yield "attention sees the whole row in every model, so there is nothing out of its reach to remember."
    else:
        yield from context_lines(table)


def context_lines(table: Mapping[str, Any]) -> Iterator[str]:
    """Whether more context than a window lowers the loss of the model without memory at all."""
    bins = [entry for entry in table["positions"] if entry["model"] == MEMORY_OFF.name]
    if len(bins) < 3:
        return
    first, second, later = bins[0], bins[1], bins[2:]
    told = (
        f"{MEMORY_OFF.name} has {first['mean']:.2f} nats at positions {first['first_position']} to "
        f"{first['last_position']}, {second['mean']:.2f} at {second['first_position']} to {second['last_position']} "
        f"and {sum(entry['mean'] for entry in later) / len(later):.2f} beyond"
    )
    if second["mean"] >= first["mean"]:
        told += ": a window of context does not lower the loss yet, so there is little that a memory could add"
    yield f"{told}."
