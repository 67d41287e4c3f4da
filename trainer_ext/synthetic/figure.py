"""Cells of a suite -> one figure. Takes numbers, never a model; draws without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from ..common.figures import save_figure
from .cells import main_cells
from .models import MODELS
from .tasks import MQAR


def plot_suite(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw MQAR's accuracy by the size of the state (left) and every task's accuracy by mixer (right), as PNG.

    Bars are one sd over seeds.
    """
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = [cell for cell in cells if cell["mean"] is not None]
    _draw_states(left, [cell for cell in measured if cell["task"] == MQAR and not cell["has_other_steps"]])
    _draw_tasks(right, main_cells(measured))
    save_figure(figure, path)


def _draw_states(axes, cells: Sequence[Mapping[str, Any]]) -> None:
    for index, mixer in enumerate(MODELS):
        own = sorted((cell for cell in cells if cell["mixer"] == mixer), key=lambda cell: cell["state_size"])
        if own:
            states, means = ([cell[name] for cell in own] for name in ("state_size", "mean"))
            bars = [math.nan if cell["sd"] is None else cell["sd"] for cell in own]
            color = colormaps["tab10"].colors[index]
            axes.errorbar(states, means, yerr=bars, fmt="o-", color=color, ms=5, lw=1.4, capsize=3, label=mixer)
    if cells:
        axes.axhline(cells[0]["chance"], color="#666666", ls=":", lw=1.0, label="chance")
        axes.set_xscale("log", base=2)
        axes.legend(frameon=False, fontsize=8)
    axes.set(
        title="mqar by the size of the state", xlabel="numbers in a row's cache", ylabel="accuracy", ylim=(0, 1.05)
    )
    axes.grid(alpha=0.25)


def _draw_tasks(axes, main: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    tasks = list(dict.fromkeys(task for task, _ in main))
    means = [[main[task, mixer]["mean"] if (task, mixer) in main else math.nan for mixer in MODELS] for task in tasks]
    axes.set_title("every task at one width")
    axes.set_xticks(range(len(MODELS)), list(MODELS), rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    if not tasks:
        return
    axes.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, line in enumerate(means):
        for column, mean in enumerate(line):
            if not math.isnan(mean):
                color = "white" if mean < 0.6 else "black"
                axes.text(column, row, f"{mean:.2f}", ha="center", va="center", color=color, fontsize=9)
