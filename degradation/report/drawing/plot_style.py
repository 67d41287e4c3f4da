"""What the figures of the analysis share: colours, panels, axes of levels, files. Draws without a display."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from frankenlm.trainer_ext.common.figures import save_figure
from frankenlm.trainer_ext.common.files import replaced_file, write_csv

from ..cells_of_series import Series
from ..curves import Curve
from ..level_axis import LevelAxis

COLOURS = ("#4c78a8", "#d1495b", "#3a7d44", "#e09f3e", "#8d6a9f", "#00798c", "#9c6644", "#5c677d")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", ":", "-.")
GREY, PALE = "#666666", "#b8bcc4"
COLUMNS = 2  # more would be too small on a telephone
PANEL = (4.3, 3.1)  # inches
DPI = 120
DIGITS = ".6g"  # of the numbers in tables
BANDS = 6  # with more curves in a panel their intervals would hide each other


class NothingToDraw(Exception):
    """The results hold nothing for a figure; the message says what is missing."""


@dataclass(frozen=True)
class Plot:
    """A figure on disk, the table behind it, and what a reader should see in it."""

    name: str
    title: str
    caption: str
    png: Path
    csv: Path


def panels(count: int, columns: int = COLUMNS, size: tuple[float, float] = PANEL, **options) -> tuple[Figure, list]:
    """Return a figure and `count` axes in rows of `columns`."""
    columns = min(columns, count)
    rows = -(-count // columns)
    width = columns * size[0] if columns > 1 else size[0] * 1.5
    figure = Figure(figsize=(width, rows * size[1] + 0.5), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for extra in axes[count:]:
        extra.set_axis_off()
    for panel in axes[:count]:
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def colours_of(series: Sequence[Series]) -> dict[int, Any]:
    """Return a colour for each series, by id: its group's, or, of many groups, one from a scale in their order."""
    groups = list(dict.fromkeys(one.key.group for one in series))
    if len(groups) <= len(COLOURS):
        table = dict(zip(groups, COLOURS, strict=False))
    else:
        table = {group: colormaps["viridis"](0.95 * i / (len(groups) - 1)) for i, group in enumerate(groups)}
    return {id(one): table[one.key.group] for one in series}


@dataclass(frozen=True)
class Look:
    """How a series is drawn: colour by group, marker and line by method, and the name it has in this figure."""

    colour: Any
    mark: str
    line: str
    label: str


def looks(series: Sequence[Series]) -> dict[int, Look]:
    """Return the look of each series of a figure, by id; its name leaves out a method that all of them share."""
    colours = colours_of(series)
    methods = list(dict.fromkeys(one.key.method for one in series))
    runs = list(dict.fromkeys((one.key.method, one.key.experiment) for one in series))
    return {
        id(one): Look(
            colours[id(one)],
            MARKS[runs.index((one.key.method, one.key.experiment)) % len(MARKS)],
            LINES[methods.index(one.key.method) % len(LINES)],
            one.label.replace(f", {one.key.method}", "") if len(methods) == 1 else one.label,
        )
        for one in series
    }


def draw_curve(panel, x: numpy.ndarray, curve: Curve, look: Look, band: bool = True) -> None:
    """Draw the centre of a curve over x with its interval; levels without data are left out."""
    kept = numpy.isfinite(curve.stats["centre"]) & numpy.isfinite(x)
    panel.plot(
        x[kept],
        curve.stats["centre"][kept],
        look.line,
        marker=look.mark,
        ms=3.5,
        lw=1.5,
        color=look.colour,
        label=look.label,
    )
    low, high = curve.stats["low"][kept], curve.stats["high"][kept]
    if band:
        panel.fill_between(x[kept], low, high, color=look.colour, alpha=0.15, lw=0)


def level_axis(panel, axes: Iterable[LevelAxis]) -> None:
    """Label a panel's x axis: numbers for σ and p; for N its levels, the undamaged one as "none"."""
    axes = list(axes)
    panel.set_xlabel(axes[0].label, fontsize=9)
    if axes[0].method == "uni_quant":
        ticks = {round(place, 6): text for axis in axes for place, text in zip(*axis.ticks(), strict=True)}
        places = sorted(ticks)
        step = -(-len(places) // 12)
        shown = places[::step]
        panel.set_xticks(shown, [ticks[place] for place in shown], fontsize=8, rotation=45 if len(shown) > 9 else 0)


def value_axis(panel, curve: Curve) -> None:
    """Format a panel's y axis for what its curves measure, and give it the measure's name."""
    panel.set_title(curve.measure.label, fontsize=10, loc="left")
    if curve.measure.share:
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        top = max(panel.get_ylim()[1], 0.1)  # a share that stays small gets an axis of its own, but not for its noise
        top = top if top < 0.4 else 1.0
        panel.set_ylim(-0.03 * top, 1.03 * top)
    panel.tick_params(labelsize=8)


def legend(figure: Figure, axes: Sequence, columns: int = 2) -> None:
    """Put one legend above all panels."""
    handles = {text: line for panel in axes for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    if not handles:
        return
    made = figure.legend(
        handles.values(),
        handles,
        loc="outside upper left",
        ncols=columns if len(handles) < 9 else 2 * columns,
        frameon=False,
        fontsize=8 if len(handles) < 9 else 7,
    )
    for text in made.get_texts():
        text.set_parse_math(False)


def save(figure: Figure, folder: Path, name: str, rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> Plot:
    """Write NAME.png and NAME.csv, equal numbers giving equal bytes."""
    plot = Plot(name, title, caption, folder / f"{name}.png", folder / f"{name}.csv")
    with replaced_file(plot.png) as scratch:
        save_figure(figure, scratch)
    write_csv(plot.csv, rows, number=DIGITS)
    return plot


def present(curves: Sequence[Curve], names: Sequence[str]) -> list[str]:
    """Return those of `names` for which a curve has a value."""
    there = {curve.measure.name for curve in curves if numpy.isfinite(curve.stats["centre"]).any()}
    return [name for name in names if name in there]


def series_of(curves: Sequence[Curve]) -> list[Series]:
    """Return the series of some curves, each once."""
    return list({id(curve.series): curve.series for curve in curves}.values())


def of_measure(curves: Sequence[Curve], name: str) -> list[Curve]:
    """Return the curves of one measure."""
    return [curve for curve in curves if curve.measure.name == name]


def curve_rows(curve: Curve) -> list[dict[str, Any]]:
    """Return a curve as rows of a table, one a level."""
    series, stats = curve.series, curve.stats
    return [
        {
            **key_columns(series),
            "measure": curve.measure.name,
            "level": level,
            "rel_l2": series.mean_rel_l2[place],
            "centre": stats["centre"][place],
            "low": stats["low"][place],
            "high": stats["high"][place],
            "repeats": int(stats["n"][place]),
            "answers": int(series.answers[:, place].sum()),
        }
        for place, level in enumerate(series.axis.levels)
    ]


def key_columns(series: Series) -> dict[str, str]:
    """Return what a table says of a series in every row."""
    key = series.key
    return {
        "model": key.model,
        "task": key.task,
        "method": key.method,
        "group": key.group,
        "experiment": key.experiment,
    }
