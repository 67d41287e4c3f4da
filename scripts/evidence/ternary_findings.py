"""The rules that write "In short" over the rows of low-bit runs: sentences whose numbers are all in those rows.

Losses are compared at equal bytes. A single seed is called that; no sentence says that something costs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
FULL, ALL, STRAIGHT = "full precision", "all low-bit", "ste"


def ternary_findings(rows: Sequence[Row], bigram: Mapping[str, float]) -> list[str]:
    """All sentences: low-bit against full precision first, then its parts, its training, its schemes, the seeds."""
    lines: list[str] = []
    for tokens in sorted({row["tokens_seen"] for row in rows}, reverse=True):
        equal = [row for row in rows if row["tokens_seen"] == tokens]
        found = [*twin_lines(equal, bigram), *part_lines(equal), *training_lines(equal), *scheme_lines(equal)]
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
        twins = [other for other in rows if other["weights"] == FULL and _alike(row, other, scheme=False)]
        if row["weights"] != FULL and row["ternary_training"] == STRAIGHT and twins:
            scheme = f" ({row['w_scheme']}, {row['run']})" if row["weights"] == ALL else ""
            parts.append(f"{row['weights']}{scheme} {row['eval_loss'] - twins[0]['eval_loss']:+.4f}")
    if parts:
        yield f"against full precision at the same rate and start: {'; '.join(parts)} nats."


def training_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Other ways of training against straight-through gradients, everything else equal."""
    for row in rows:
        usual = [other for other in rows if other["ternary_training"] == STRAIGHT and _alike(row, other)]
        if row["ternary_training"] not in (STRAIGHT, None) and usual:
            yield f"{row['run']} {row['eval_loss']:.4f}: {_change(row, usual[0])}, against {usual[0]['run']}."


def scheme_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The lowest and the highest of the schemes, at each start and rate where there are several."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["weights"] == ALL and row["ternary_training"] == STRAIGHT:
            groups.setdefault((row["embedding_start"], row["learning_rate"]), []).append(row)
    for (start, rate), group in groups.items():
        if len({row["w_scheme"] for row in group}) > 1:
            low, high = _best(group), max(group, key=_loss)
            yield (
                f"of the schemes at rate {rate:g} and start {start:g}, {low['run']} has the lowest loss "
                f"({low['eval_loss']:.4f}) and {high['run']} the highest ({high['eval_loss']:.4f})."
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


def _alike(row: Row, other: Row, scheme: bool = True) -> bool:
    """Whether two rows differ in nothing else that the columns tell."""
    names = ("tokens_seen", "learning_rate", "embedding_start", "batch", "precision", "preset", "seed")
    return all(row[name] == other[name] for name in (*names, *(("w_scheme", "weights") if scheme else ())))


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
    """Say that the best rate is the lowest, highest or only one of those run with the same start and scheme."""
    rates = sorted(
        {
            row["learning_rate"]
            for row in group
            if (row["embedding_start"], row["w_scheme"]) == (best["embedding_start"], best["w_scheme"])
        }
    )
    if best["learning_rate"] in rates[1:-1]:
        return None
    place = "only" if len(rates) == 1 else "highest" if best["learning_rate"] == rates[-1] else "lowest"
    return f"{best['run']} has the {place} of the rates {', '.join(f'{rate:g}' for rate in rates)}"
