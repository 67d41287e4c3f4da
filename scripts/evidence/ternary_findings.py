"""The rules that write "In short" over the rows of low-bit runs: sentences whose numbers are all in those rows.

Losses are compared at equal bytes. A single seed is called that; no sentence says that something costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from frankenlm.trainer_ext.common.cli import UserError

Row = Mapping[str, Any]
FULL, ALL, STRAIGHT, TENSOR = "full precision", "all low-bit", "ste", "tensor"
LOW = ("weights", "w_scheme", "scale", "ternary_training")  # what full precision has none of
SETTINGS = (*LOW, "tokens_seen", "learning_rate", "embedding_start", "batch", "precision", "preset", "seed")


def ternary_findings(rows: Sequence[Row], bigram: Mapping[str, float]) -> list[str]:
    """All sentences: low-bit against full precision first, then its parts, its training, its schemes, the seeds."""
    lines: list[str] = []
    for tokens in sorted({row["tokens_seen"] for row in rows}, reverse=True):
        equal = [row for row in rows if row["tokens_seen"] == tokens]
        found = [*twin_lines(equal, bigram), *part_lines(equal)]
        found += [*variant_lines(equal, "ternary_training", STRAIGHT), *variant_lines(equal, "scale", TENSOR)]
        found += scheme_lines(equal)
        lines += [f"{tokens:,} bytes: {line}" for line in found]
    return [*lines, seed_line(rows)]


def twin_lines(rows: Sequence[Row], bigram: Mapping[str, float]) -> Iterator[str]:
    """The best run with every matrix low-bit against the best of full precision, each at its best rate."""
    low, full = ([row for row in rows if row["weights"] == weights] for weights in (ALL, FULL))
    if not low or not full:
        return
    ours, theirs = _best(low), _best(full)
    yield (
        f"all low-bit at its best {_named(ours)}, full precision at its best {_named(theirs)}: {_change(ours, theirs)}."
    )
    yield (
        f"the first lies {_distance(ours, bigram['conditional_entropy'])} the {bigram['conditional_entropy']:.4f} of "
        "the best bigram model."
    )
    edges = [text for best, group in ((ours, low), (theirs, full)) if (text := _edge(best, group))]
    if edges:
        yield f"{'; '.join(edges)}: a better rate may lie beyond."


def part_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What low-bit parts change against full precision, everything else equal."""
    parts = []
    for row in rows:
        if row["weights"] == FULL or row["ternary_training"] != STRAIGHT:
            continue
        twin = _only(row, [other for other in rows if other["weights"] == FULL and _alike(row, other, LOW)])
        if twin is not None:
            scheme = f" ({row['w_scheme']}, {row['run']})" if row["weights"] == ALL else ""
            parts.append(f"{row['weights']}{scheme} {row['eval_loss'] - twin['eval_loss']:+.4f}")
    if parts:
        yield f"against full precision at the same rate and start: {'; '.join(parts)} nats."


def variant_lines(rows: Sequence[Row], setting: str, usual: str) -> Iterator[str]:
    """Other ways of training, or other scales, against the usual one, everything else equal."""
    for row in rows:
        if row[setting] in (usual, None):
            continue
        beside = _only(row, [other for other in rows if other[setting] == usual and _alike(row, other, (setting,))])
        if beside is not None:
            yield f"{row['run']} {row['eval_loss']:.4f}: {_change(row, beside)}, against {beside['run']}."


def scheme_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The lowest and the highest of the schemes, at each start, rate and scale where there are several."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["weights"] == ALL and row["ternary_training"] == STRAIGHT:
            groups.setdefault((row["embedding_start"], row["learning_rate"], row["scale"]), []).append(row)
    for (start, rate, scale), group in groups.items():
        if len({row["w_scheme"] for row in group}) > 1:
            low, high = _best(group), max(group, key=_loss)
            yield (
                f"of the schemes at rate {rate:g}, start {start:g} and a scale per {scale}, {low['run']} has the "
                f"lowest loss ({low['eval_loss']:.4f}) and {high['run']} the highest ({high['eval_loss']:.4f})."
            )


def seed_line(rows: Sequence[Row]) -> str:
    """How many seeds the rows rest on, and what follows."""
    seeds = sorted({row["seed"] for row in rows})
    if len(seeds) == 1:
        return (
            f"every row is one run, all with seed {seeds[0]}: nothing is known about the spread between seeds, so no "
            "difference here is shown to be more than that. The best of several rates was chosen by the loss that is "
            "reported."
        )
    return f"seeds {', '.join(map(str, seeds))}, one run a row; the best of several rates was chosen by this loss."


def _alike(row: Row, other: Row, but: Sequence[str]) -> bool:
    """Whether two rows differ in nothing else that the columns tell."""
    return all(row[name] == other[name] for name in SETTINGS if name not in but)


def _only(row: Row, fitting: Sequence[Row]) -> Row | None:
    """The one row that another is compared with, if there is one.

    Raises:
        UserError: several fit, so that the order of the folders would decide the sentence.
    """
    if len(fitting) > 1:
        names = " and ".join(other["run"] for other in fitting)
        raise UserError(f"--runs: {names} differ in no column, so that {row['run']} has no one twin: leave one out.")
    return fitting[0] if fitting else None


def _best(rows: Sequence[Row]) -> Row:
    return min(rows, key=_loss)


def _loss(row: Row) -> float:
    return row["eval_loss"]


def _named(row: Row) -> str:
    return f"{row['eval_loss']:.4f} nats a byte ({row['run']}, rate {row['learning_rate']:g})"


def _change(ours: Row, theirs: Row) -> str:
    """The difference with its sign, and its share."""
    change = ours["eval_loss"] - theirs["eval_loss"]
    direction = "higher" if change > 0 else "lower"
    return f"{change:+.4f} nats ({abs(change) / theirs['eval_loss']:.1%}), a {direction} loss"


def _distance(row: Row, reference: float) -> str:
    gap = row["eval_loss"] - reference
    return f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}"


def _edge(best: Row, group: Sequence[Row]) -> str | None:
    """Say that the best rate is the lowest, highest or only one of those run with the same start, scheme and scale."""
    rates = sorted(
        {
            row["learning_rate"]
            for row in group
            if all(row[name] == best[name] for name in ("embedding_start", "w_scheme", "scale"))
        }
    )
    if best["learning_rate"] in rates[1:-1]:
        return None
    place = "only" if len(rates) == 1 else "highest" if best["learning_rate"] == rates[-1] else "lowest"
    return f"{best['run']} has the {place} of the rates {', '.join(f'{rate:g}' for rate in rates)}"
