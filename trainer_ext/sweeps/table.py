"""Runs of a sweep -> a row each, cells over their seeds, the best cell, and a page. Takes records, never a model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.seeds import interval, summary

# What may decide, of metrics.json: whether more is better.
METRICS = {
    "eval_loss": False,
    "best_eval_loss": False,
    "lowest_eval_loss": False,
    "ema_eval_loss": False,
    "eval_causal_loss": False,
    "eval_masked_loss": False,
    "eval_perplexity": False,
    "eval_accuracy": True,
    "tokens_per_second": True,
    "peak_memory_mib": False,
}
LOSSES = (
    "train_loss",
    "eval_loss",
    "best_eval_loss",
    "lowest_eval_loss",
    "ema_eval_loss",
    "eval_causal_loss",
    "eval_masked_loss",
)
GROUP, STAGE = "run", "stage"  # the columns of the names under `runs`, and of what a run is for where there is a choice


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def row_of(
    about: Mapping[str, Any], metric: str, facts: Mapping[str, Any], curve: Sequence[Mapping], ending: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a run.

    Args:
        about: name, the settings that vary, seed. facts: its metrics.json. curve: its training.csv. ending: status and
            message.
    """
    last = next((row["loss"] for row in reversed(curve) if "loss" in row), None)
    losses = {"train_loss": last, **{name: facts.get(name) for name in LOSSES[1:]}}
    return {
        **about,
        metric: facts.get(metric),
        **losses,
        "steps": facts.get("steps", max((row["step"] for row in curve), default=None)),
        "seconds": max((row["seconds"] for row in curve if "seconds" in row), default=None),
        "status": ending["status"],
        "message": ending["message"],
    }


def cells_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """One cell for all runs that differ in their seed alone: n of them are finished, their mean, its 95 % t interval.

    Args:
        keys: the columns that tell cells apart. The best of the cells whose runs are all finished is marked.
    """
    grouped: dict[tuple, list[Mapping]] = {}
    for row in rows:
        grouped.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    cells = []
    for members in grouped.values():
        values = [row[metric] for row in members if row["status"] == "finished" and _is_finite(row[metric])]
        spread = summary(values)
        error = spread["sd"] / math.sqrt(spread["n"]) if spread["n"] > 1 else None
        bounds = interval(spread["mean"], error, spread["n"] - 1)
        about = {key: members[0][key] for key in keys}
        whole = {"runs": len(members), "is_whole": spread["n"] == len(members)}
        cells.append({**about, **whole, **spread, "low": bounds["low"], "high": bounds["high"], "best": False})
    best = best_of(cells, metric)
    if best is not None:
        best["best"] = True
    return cells


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def best_of(cells: Sequence[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The cell with the best mean; None where no cell is whole."""
    whole = [cell for cell in cells if cell["is_whole"]]
    pick = max if METRICS[metric] else min
    return pick(whole, key=lambda cell: cell["mean"], default=None)


def numeric_axes(cells: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """The keys all of whose values are numbers, and more than one."""
    found = []
    for key in keys:
        values = {str(cell[key]): cell[key] for cell in cells if cell[key] is not None}
        if len(values) > 1 and all(map(is_number, values.values())):
            found.append(key)
    return found


def edges(cells: Sequence[dict[str, Any]], keys: Sequence[str], metric: str) -> list[str]:
    """A line for each numeric axis on which the best cell of a category lies at the end of its list."""
    numeric = numeric_axes(cells, keys)
    categories: dict[tuple, list[dict]] = {}
    for cell in cells:
        category = tuple("" if cell[key] is None else str(cell[key]) for key in keys if key not in numeric)
        categories.setdefault(category, []).append(cell)
    lines = []
    for category, members in categories.items():
        best = best_of(members, metric)
        for axis in numeric:
            values = sorted({cell[axis] for cell in members if cell[axis] is not None})
            if best is None or len(values) < 2 or best[axis] not in (values[0], values[-1]):
                continue
            end = "smallest" if best[axis] == values[0] else "largest"
            named = ", ".join(filter(None, category))
            lines.append(
                f"{named + ': ' if named else ''}the best {axis}, {best[axis]:g}, is the {end} of its list: a better "
                "one may lie beyond it"
            )
    return lines


def page(
    name: str, metric: str, rows: Sequence[Mapping], cells: Sequence[Mapping], keys: Sequence[str], lines: Sequence[str]
) -> str:
    """sweep.md: the cells, what to be careful with, and the runs without a result."""
    finished = sum(row["status"] == "finished" for row in rows)
    parts = [f"# {name}", f"{finished} of {len(rows)} runs are finished. {metric}: mean over seeds, 95 % t interval."]
    parts.append(table_of(cells, keys, metric))
    if lines:
        parts.append("\n".join(f"- {line}." for line in lines))
    failed = [f"- {row['name']}: {' '.join(row['message'].split())}" for row in rows if row["status"] == "failed"]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def table_of(cells: Sequence[Mapping], keys: Sequence[str], metric: str) -> str:
    """The cells as a table of Markdown."""
    header = [*keys, "runs", metric, "interval", ""]
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for cell in cells:
        mean = "" if cell["mean"] is None else f"{cell['mean']:.4f}"
        bounds = "" if cell["low"] is None else f"{cell['low']:.4f} to {cell['high']:.4f}"
        runs = str(cell["n"]) if cell["is_whole"] else f"{cell['n']} of {cell['runs']}"
        shown = ["" if cell[key] is None else _cell(cell[key]) for key in keys]
        table.append("| " + " | ".join([*shown, runs, mean, bounds, "**best**" if cell["best"] else ""]) + " |")
    return "\n".join(table)


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
