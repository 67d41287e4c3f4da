"""The profile of a battery as a radar: an axis for each part, a line for each level."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib import colormaps
from matplotlib.figure import Figure

from ...measures.names import PER_PART
from ..curves import Curve
from ..level_axis import level_text
from ..profile import batteries, parts_of
from .plot_style import COLUMNS, DPI, GREY, NothingToDraw, Plot, curve_rows, save

FEWEST_PARTS = 3  # two make a line, not an area
MOST_LINES = 8
MOST_PANELS = 16
PANEL = (4.6, 4.2)  # inches


def plot_profile(curves: Sequence[Curve], folder: Path, name: str) -> Plot:
    """Draw the score of every part, a panel for each series and a line for each level; dotted: guessing."""
    found = [each for each in batteries(curves) if len(parts_of(each)) >= FEWEST_PARTS]
    if not found:
        raise NothingToDraw(f"no series has answers to {FEWEST_PARTS} parts of a battery")
    if len(found) > MOST_PANELS:
        raise NothingToDraw(f"{len(found)} series would need a panel each: more than {MOST_PANELS} are not readable")
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1]), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "polar"})
    for panel, each in zip(panels.flat, found, strict=False):
        _draw(panel, each)
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    return save(
        figure,
        folder,
        name,
        [row for each in found for part in parts_of(each) for row in curve_rows(each[part])],
        "Profile by level",
        "Mean score of each part over the repeats, a line for each level; the rim is 100 %. Dotted: what guessing "
        "scores. Intervals are in the table.",
    )


def _draw(panel, found: Mapping[str, Curve]) -> None:
    parts = parts_of(found)
    angles = 2 * numpy.pi * numpy.arange(len(parts)) / len(parts)
    series = found[parts[0]].series
    centres = numpy.array([found[part].stats["centre"] for part in parts])  # (parts, L)
    shown = shown_levels(len(series.axis.levels))
    for place, level in enumerate(shown):
        colour = colormaps["viridis"](0.92 * place / max(1, len(shown) - 1))
        label = f"{series.axis.symbol} {level_text(series.axis.levels[level])}"
        _line(panel, angles, centres[:, level], color=colour, lw=1.6, marker="o", ms=3, label=label)
    _line(panel, angles, numpy.array([found[part].chance or 0.0 for part in parts]), color=GREY, lw=1, ls=":")
    panel.set_theta_zero_location("N")
    panel.set_theta_direction(-1)
    panel.set_ylim(0, 1)
    panel.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "50 %", "", ""], fontsize=7, color=GREY)
    panel.set_xticks(angles, [_wrapped(part) for part in parts], fontsize=8)
    panel.set_title(series.label, fontsize=10, loc="left", parse_math=False)
    panel.legend(loc="upper left", bbox_to_anchor=(1.05, 1.0), frameon=False, fontsize=7)


def _line(panel, angles: numpy.ndarray, values: numpy.ndarray, **look: Any) -> None:
    """Draw a closed line; one with a gap stays open there."""
    panel.plot(numpy.append(angles, angles[0]), numpy.append(values, values[0]), **look)


def shown_levels(count: int) -> list[int]:
    """Return at most `MOST_LINES` places of `count` levels, evenly, the first and the last among them."""
    return sorted({round(place) for place in numpy.linspace(0, count - 1, min(count, MOST_LINES))})


def _wrapped(part: str) -> str:
    return part.removeprefix(PER_PART).replace(" ", "\n")
