"""Rows of a comparison -> one figure of bars. Takes numbers, never a model; draws without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from ..common.figures import save_figure

PANELS_PER_ROW = 3
PANEL = (3.8, 2.8)  # inches; three of them fit 1280 dots
DOTS_PER_INCH = 110
LINE = 140  # characters of the legend


def plot_comparison(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], path: Path) -> None:
    """Draw a panel for each group of measures, with a bar for each model.

    Args:
        rows: each with `label` and `measures`; a measure that is None has no bar. Of a row with `intervals`, measure ->
            (low, high), they are drawn too.
        groups: name of a panel -> the measures in it, which share a scale.
    """
    columns = min(len(groups), PANELS_PER_ROW)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(columns * PANEL[0], lines * PANEL[1] + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    colors = colormaps["tab10"].colors
    width = 0.8 / len(rows)
    for panel, (name, measures) in zip(panels, groups.items(), strict=False):
        for index, row in enumerate(rows):
            heights = [_height(row["measures"][measure]) for measure in measures]
            places = [place + (index - (len(rows) - 1) / 2) * width for place in range(len(measures))]
            panel.bar(places, heights, width, color=colors[index % len(colors)], label=row["label"])
            ends = [row.get("intervals", {}).get(measure) for measure in measures]
            for place, end in zip(places, ends, strict=True):
                if end is not None and all(map(math.isfinite, end)):
                    panel.vlines(place, *end, color="black", linewidth=1.2)
        panel.set(title=name)
        panel.set_xticks(range(len(measures)), _ticks(measures), fontsize=8)
        panel.grid(axis="y", alpha=0.25)
        panel.set_axisbelow(True)
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    in_a_line = max(1, LINE * columns // PANELS_PER_ROW // max(len(label) + 6 for label in labels))
    names = {"ncols": min(len(rows), 4, in_a_line), "fontsize": 9, "frameon": False}
    legend = figure.legend(handles, labels, loc="outside upper center", **names)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def _height(value: float | int | None) -> float:
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def _ticks(measures: Sequence[str]) -> list[str]:
    """What tells the measures of a panel apart: a number, or the name."""
    if len(measures) == 1:
        return [""]
    ends = [measure.rpartition("_")[2] for measure in measures]
    return ends if all(map(str.isdigit, ends)) else [measure.replace("_", "\n") for measure in measures]
