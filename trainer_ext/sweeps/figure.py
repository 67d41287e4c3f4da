"""Cells of a sweep -> one figure. Takes numbers, never a model; draws without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from ..common.figures import save_figure
from .table import numeric_axes

WIDE = 8  # an axis whose ends lie further apart by this factor is drawn on a logarithmic scale
MOST_TICKS = 24


def plot_sweep(cells: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str, path: Path, *, title: str) -> None:
    """Draw the metric against the numeric axis with the most values, a line for each category, and save it as PNG.

    The bars are the 95 % t intervals over seeds. Without a numeric axis, the categories stand side by side.

    Args:
        cells: as of `cells_of`. keys: the columns that tell them apart.
    """
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    numeric = numeric_axes(cells, keys)
    across = max(numeric, key=lambda key: len({cell[key] for cell in cells}), default=None)
    measured = [cell for cell in cells if cell["mean"] is not None]
    if across is None:
        _draw_side_by_side(axes, measured, keys)
    else:
        _draw_lines(axes, measured, [key for key in keys if key != across], across)
    best = next((cell for cell in measured if cell["best"]), None)
    if best is not None:
        axes.axhline(best["mean"], color="#666666", ls=":", lw=1.0)
    axes.set(title=title, ylabel=metric)
    axes.title.set_parse_math(False)
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def _draw_lines(axes, cells: Sequence[Mapping], others: Sequence[str], across: str) -> None:
    lines: dict[str, list[Mapping]] = {}
    for cell in cells:
        if cell[across] is not None:
            lines.setdefault(_label(cell, others), []).append(cell)
    for index, (label, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda cell: cell[across])
        places, means = ([cell[name] for cell in members] for name in (across, "mean"))
        color = colormaps["tab10"].colors[index % 10]
        axes.errorbar(places, means, yerr=_bars(members), fmt="o-", color=color, ms=4, lw=1.4, capsize=3, label=label)
    values = [cell[across] for cell in cells if cell[across] is not None]
    if values and min(values) > 0 and max(values) / min(values) >= WIDE:
        axes.set_xscale("log")
    axes.set_xlabel(across)
    if any(lines):
        legend = axes.legend(frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _draw_side_by_side(axes, cells: Sequence[Mapping], keys: Sequence[str]) -> None:
    places = range(len(cells))
    axes.errorbar(places, [cell["mean"] for cell in cells], yerr=_bars(cells), fmt="o", ms=5, capsize=3)
    if len(cells) <= MOST_TICKS:
        labels = axes.set_xticks(places, [_label(cell, keys) for cell in cells], rotation=30, ha="right", fontsize=8)
        for tick in labels:
            tick.label1.set_parse_math(False)


def _label(cell: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(
        str(cell[key]) if key == "run" else f"{key}={cell[key]}" for key in keys if cell[key] not in (None, "")
    )


def _bars(cells: Sequence[Mapping]) -> list[float]:
    """Half of each interval; nothing where there is none."""
    return [math.nan if cell["high"] is None else cell["high"] - cell["mean"] for cell in cells]
