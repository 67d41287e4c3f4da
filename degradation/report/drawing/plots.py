"""Curves -> figures, each a PNG with the CSV behind it. Takes numbers, never a model.

Every function draws one figure of one model and task. It raises `NothingToDraw`, with the reason for the report, where
the results hold nothing for it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ...measures.names import PER_PART, PER_SKILL, Measure
from ..curves import Curve
from ..result_files import run_of
from .plot_style import (
    BANDS,
    COLOURS,
    GREY,
    PALE,
    Look,
    NothingToDraw,
    Plot,
    curve_rows,
    draw_curve,
    key_columns,
    legend,
    level_axis,
    looks,
    of_measure,
    panels,
    present,
    save,
    series_of,
    value_axis,
)

PERPLEXITIES = ("perplexity", "kl_to_baseline")
MOST_PANELS = 16
# what is missing without it, title and caption of a figure of sub-skills or parts
BY_SKILL = {
    PER_SKILL: (
        "none of the prompts has an answer key",
        "Accuracy by sub-skill",
        "Share of graded questions answered right; an answer without an answer in it counts as wrong.",
    ),
    PER_PART: (
        "no prompt belongs to a battery",
        "Score by part",
        "Mean score of the answers of each part of the battery, by rules.",
    ),
}


def plot_levels(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw each measure of `names` over the level, a line for each group of one method; bands are 95 % intervals."""
    chosen = present(curves, names)
    if not chosen:
        raise NothingToDraw("no measure of the answers has a value")
    series = series_of(curves)

    def draw(panel, drawn: Sequence[Curve], found: Mapping[int, Look]) -> None:
        for curve in drawn:
            look = found[id(curve.series)]
            draw_curve(panel, curve.series.axis.positions, curve, look, len(drawn) <= BANDS)
            _mark_half(panel, curve, look.colour)
        _chance(panel, drawn)
        level_axis(panel, [curve.series.axis for curve in drawn])

    figure, rows = _panel_a_measure(curves, chosen, draw)
    return save(
        figure,
        folder,
        name,
        rows,
        f"Measures over the level, {series[0].key.method}",
        "Mean over the repeats; the bands are 95 % bootstrap intervals over repeats"
        + (" (left out: too many curves)" if len(series) > BANDS else "")
        + ". A ring marks L50, half way from the baseline to the floor.",
    )


def _panel_a_measure(
    curves: Sequence[Curve], names: Sequence[str], draw: Callable[[Any, list[Curve], dict[int, Look]], None]
) -> tuple[Figure, list[dict[str, Any]]]:
    """Return a figure with a panel for each measure, one legend above, and the rows of the table behind it.

    Args:
        draw: fills a panel with the curves of one measure, given how each series looks.
    """
    figure, axes = panels(len(names))
    found, rows = looks(series_of(curves)), []
    for panel, name in zip(axes, names, strict=True):
        drawn = of_measure(curves, name)
        draw(panel, drawn, found)
        value_axis(panel, drawn[0])
        rows += [row for curve in drawn for row in curve_rows(curve)]
    legend(figure, axes)
    return figure, rows


def plot_common_axis(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw each measure over the relative L2 distance of the damaged weights: all groups and methods on one axis."""
    known = [curve for curve in curves if numpy.isfinite(curve.series.mean_rel_l2[1:]).any()]
    if not known:
        raise NothingToDraw("no row and no lesion record holds the relative L2 distance of the damaged weights")
    chosen = present(known, names)
    if not chosen:
        raise NothingToDraw("no measure of the answers has a value")
    if len(series_of(known)) == 1:
        raise NothingToDraw("there is one group only, and nothing to set beside it")

    def draw(panel, drawn: Sequence[Curve], found: Mapping[int, Look]) -> None:
        for curve in drawn:
            draw_curve(panel, curve.series.mean_rel_l2, curve, found[id(curve.series)], len(drawn) <= BANDS)
        _chance(panel, drawn)
        # one method may go far beyond the others: equal steps near 0, decades beyond
        panel.set_xscale("symlog", linthresh=1.0, linscale=2.0)
        panel.set_xlim(left=0)
        _common_ticks(panel, drawn)
        panel.set_xlabel("relative L2 change of the group's weights", fontsize=9)

    figure, rows = _panel_a_measure(known, chosen, draw)
    return save(
        figure,
        folder,
        name,
        rows,
        "All groups on one axis",
        "The same curves over ‖W′ − W‖ / ‖W‖ of the damaged group, which makes σ, p and N comparable. "
        "Up to 1 the axis is linear, beyond it is logarithmic.",
    )


def _common_ticks(panel, curves: Sequence[Curve]) -> None:
    largest = max(float(numpy.nanmax(curve.series.mean_rel_l2)) for curve in curves)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1.0, *(t for t in (2, 5, 10, 20, 50, 100, 1000) if t <= 1.05 * largest)]
    shown = [tick for tick in ticks if tick <= 1.05 * largest]
    if len(shown) < 3:  # all damage was small
        panel.set_xscale("linear")
        return
    panel.set_xticks(shown, [f"{tick:g}" for tick in shown])
    panel.xaxis.set_minor_locator(NullLocator())


def plot_skills(curves: Sequence[Curve], prefix: str, folder: Path, name: str) -> Plot:
    """Draw a measure of every sub-skill or part over the level, a panel for each series; dotted: chance.

    Args:
        prefix: of the measures, one of `BY_SKILL`.
    """
    missing, title, caption = BY_SKILL[prefix]
    skills = sorted({c.measure.name for c in curves if c.measure.name.startswith(prefix)})
    if not skills:
        raise NothingToDraw(missing)
    series = [one for one in series_of(curves) if any(skill in one.cells for skill in skills)]
    colours = dict(zip(skills, COLOURS * 4, strict=False))
    _check_panels(len(series))
    figure, axes = panels(len(series), sharey=True)
    rows = []
    for panel, one in zip(axes, series, strict=True):
        for curve in curves:
            if curve.series is one and curve.measure.name in skills:
                skill = curve.measure.name.removeprefix(prefix)
                colour = colours[curve.measure.name]
                draw_curve(panel, one.axis.positions, curve, Look(colour, "o", "-", skill), len(skills) <= 2)
                if curve.chance:
                    panel.axhline(curve.chance, color=colour, lw=1, ls=":")
                rows += [{**row, "chance": curve.chance} for row in curve_rows(curve)]
        value_axis(panel, next(c for c in curves if c.series is one and c.measure.name in skills))
        panel.set_title(one.label, fontsize=10, loc="left", parse_math=False)
        level_axis(panel, [one.axis])
    legend(figure, axes, columns=3)
    return save(
        figure,
        folder,
        name,
        rows,
        title,
        f"{caption} Dotted: what guessing among the choices gives, in its colour.",
    )


def plot_answers(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw how answers end: share looped, share ended by itself, mean length; a line for each group of one method."""
    chosen = present(curves, names)
    if not chosen:
        raise NothingToDraw("neither loops nor lengths were measured")
    plot = plot_levels(curves, chosen, folder, name)
    caption = (
        "Loops are runs that repeat until the answer is cut off. Short answers grow towards the token limit under "
        "damage, long ones tend to shrink. Bands are 95 % bootstrap intervals over repeats."
    )
    return Plot(plot.name, f"Loops and length, {series_of(curves)[0].key.method}", caption, plot.png, plot.csv)


def plot_tasks(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw the tasks of lm-evaluation-harness over the level; a line for each group of one method."""
    plot = plot_levels(curves, names, folder, name)
    title = f"Tasks of lm-evaluation-harness, {series_of(curves)[0].key.method}"
    return Plot(plot.name, title, plot.caption, plot.png, plot.csv)


def plot_perplexity(curves: Sequence[Curve], folder: Path, name: str) -> Plot:
    """Draw perplexity (median, logarithmic) and KL to the undamaged model over the level of one method."""
    chosen = present(curves, PERPLEXITIES)
    if not chosen:
        raise NothingToDraw("perplexity was not measured")

    def draw(panel, drawn: Sequence[Curve], found: Mapping[int, Look]) -> None:
        for curve in drawn:
            x, look = curve.series.axis.positions, found[id(curve.series)]
            if len(curve.values) > 1:
                places = numpy.broadcast_to(x, curve.values.shape)
                panel.plot(places.ravel(), curve.values.ravel(), ".", ms=3, color=look.colour, alpha=0.35, zorder=1)
            draw_curve(panel, x, curve, look, len(drawn) <= BANDS)
        if drawn[0].measure.name == "perplexity":
            _log_axis(panel)
        level_axis(panel, [curve.series.axis for curve in drawn])

    figure, rows = _panel_a_measure(curves, chosen, draw)
    return save(
        figure,
        folder,
        name,
        rows,
        f"Perplexity and distance from the undamaged model, {curves[0].series.key.method}",
        "Perplexity on the shipped text (median; dots are repeats), and the mean KL divergence "
        "of the next token's distribution from the undamaged model's: it sees damage before behaviour "
        "does.",
    )


def plot_repeats(curves: Sequence[Curve], measure: str, folder: Path, name: str) -> Plot:
    """Draw every repeat of one measure as a thin line, a panel for each series: how far repeats differ."""
    drawn = of_measure(curves, measure)
    if not drawn or max(len(curve.values) for curve in drawn) < 2:
        raise NothingToDraw("there is only one repeat")
    found = looks(series_of(drawn))
    _check_panels(len(drawn))
    figure, axes = panels(len(drawn), sharey=True)
    rows = []
    for panel, curve in zip(axes, drawn, strict=True):
        x = curve.series.axis.positions
        for repeat, values in zip(curve.series.repeats, curve.values, strict=True):
            kept = numpy.isfinite(values)
            panel.plot(x[kept], values[kept], color=PALE, lw=0.9)
            rows += [
                {**key_columns(curve.series), "measure": measure, "repeat": repeat, "level": level, "value": value}
                for level, value in zip(curve.series.axis.levels, values, strict=True)
            ]
        draw_curve(panel, x, curve, found[id(curve.series)], band=False)
        value_axis(panel, curve)
        panel.set_title(curve.series.label, fontsize=10, loc="left", parse_math=False)
        level_axis(panel, [curve.series.axis])
    label = drawn[0].measure.label
    figure.supylabel(label, fontsize=9)
    return save(
        figure,
        folder,
        name,
        rows,
        f"Every repeat: {label}",
        "Each grey line is one repeat, with noise of its own; the coloured line is their mean.",
    )


def plot_layers(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw a heat map of layer subset x level for a run over several subsets (`@L...`) of one group and method."""
    found = [(layer_subset(curve.series.key.group), curve) for curve in curves]
    found = [(subset, curve) for subset, curve in found if subset]
    if len({subset for subset, _ in found}) < 2:
        raise NothingToDraw("only runs over several subsets of layers (groups with @L...) have one")
    chosen = present([curve for _, curve in found], names)
    figure, axes = panels(len(chosen), size=(4.3, max(3.1, 0.22 * len(series_of(curves)) + 1)))
    rows, key = [], series_of(curves)[0].key
    for panel, measure in zip(axes, chosen, strict=True):
        drawn = sorted(((s, c) for s, c in found if c.measure.name == measure), key=lambda pair: pair[0])
        _heat_map(figure, panel, drawn)
        rows += [row for _, curve in drawn for row in curve_rows(curve)]
    return save(
        figure,
        folder,
        name,
        rows,
        f"Layers by level, {key.method} ({run_of(key.experiment)})",
        "Rows are the damaged layers, first layer on top; columns are the levels.",
    )


def _heat_map(figure, panel, drawn) -> None:
    axes = [curve.series.axis for _, curve in drawn]
    places = sorted({round(float(place), 9) for axis in axes for place in axis.positions})
    grid = numpy.full((len(drawn), len(places)), numpy.nan)
    for row, (_, curve) in enumerate(drawn):
        columns = [places.index(round(float(place), 9)) for place in curve.series.axis.positions]
        grid[row, columns] = curve.stats["centre"]
    measure: Measure = drawn[0][1].measure
    limits = {"vmin": 0, "vmax": 1} if measure.share else {}
    image = panel.imshow(grid, cmap="viridis", aspect="auto", interpolation="nearest", **limits)
    labels = {round(float(p), 9): text for axis in axes for p, text in zip(*axis.ticks(), strict=True)}
    step = -(-len(places) // 10)
    panel.set_xticks(range(0, len(places), step), [labels[place] for place in places[::step]], fontsize=7)
    step = -(-len(drawn) // 24)
    names = [curve.series.key.group.rpartition("@")[2] for _, curve in drawn]
    panel.set_yticks(range(0, len(drawn), step), names[::step], fontsize=7)
    panel.set_title(measure.label, fontsize=10, loc="left")
    panel.set_xlabel(axes[0].label, fontsize=9)
    panel.grid(False)
    figure.colorbar(image, ax=panel, format="{x:.0%}" if measure.share else None).ax.tick_params(labelsize=7)


def layer_subset(group: str) -> tuple[int, ...] | None:
    """Return the layers a group's `@L...` suffix names, as numbers to sort by; None for another group."""
    base, _, subset = group.rpartition("@L")
    return tuple(int(text) for text in re.findall(r"\d+", subset)) if base and subset[:1].isdigit() else None


def _check_panels(count: int) -> None:
    if count > MOST_PANELS:
        raise NothingToDraw(f"{count} series would need a panel each, and more than {MOST_PANELS} are not readable")


def _log_axis(panel) -> None:
    """A logarithmic y axis with plain numbers."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    few = math.log10(high / low) < 2
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _chance(panel, curves: Sequence[Curve]) -> None:
    levels = {curve.chance for curve in curves if curve.chance}
    for level in levels:
        panel.axhline(level, color=GREY, lw=1, ls=":", label="chance")


def _mark_half(panel, curve: Curve, colour) -> None:
    if curve.half.reached:
        x, y = curve.series.axis.positions, curve.stats["centre"]
        kept = numpy.isfinite(y)
        at = curve.half.position
        panel.plot(at, numpy.interp(at, x[kept], y[kept]), "o", ms=9, mfc="none", mec=colour, mew=1.2)
