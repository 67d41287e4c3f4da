"""The depth map: what a lesion of each component in each window of depth does to each measure."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from ..curves import Curve
from ..level_axis import level_text
from ..result_files import common, run_of
from .plot_style import GREY, NothingToDraw, Plot, key_columns, of_measure, panels, present, save, series_of
from .recovery_plot import before_training

WINDOW = re.compile(r"(?P<component>[^@+]+)@(?P<number>\d+)of(?P<count>\d+)")


def window_of_depth(group: str) -> tuple[str, int, int] | None:
    """Return component, number of the window and how many there are, of a group such as `mlp_down@2of4`; else None."""
    match = WINDOW.fullmatch(group)
    return (match["component"], int(match["number"]), int(match["count"])) if match else None


def maps_of(curves: Sequence[Curve]) -> dict[tuple[str, str, int], list[Curve]]:
    """Return the curves of each map, by method, experiment and number of windows: a place of a map has one curve.

    Of recoveries, those of the damaged model before its training.
    """
    found: dict[tuple[str, str, int], list[Curve]] = {}
    for curve in before_training(curves):
        key, place = curve.series.key, window_of_depth(curve.series.key.group)
        if place:
            found.setdefault((key.method, key.experiment, place[2]), []).append(curve)
    return found


def plot_depth(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw a heat map of component x window for each measure of `names`, at the most severe level that all have.

    Args:
        curves: of one map; see `maps_of`.
    """
    ((key, own),) = maps_of(curves).items()
    (method, experiment, windows), chosen, level = key, present(own, names), _shared_level(own)
    if not chosen or level is None:
        raise NothingToDraw("the windows have no damaged level in common, or no measure has a value")
    components = common(window_of_depth(curve.series.key.group)[0] for curve in own)
    figure, axes = panels(len(chosen), size=(1.6 + 0.6 * windows, max(2.4, 0.35 * len(components) + 1.4)))
    for panel, measure in zip(axes, chosen, strict=True):
        _map(figure, panel, of_measure(own, measure), components, windows, level)
    return save(
        figure,
        folder,
        name,
        [row for measure in chosen for curve in of_measure(own, measure) for row in _rows(curve)],
        f"Components by depth, {method} ({run_of(experiment)})",
        f"Change from the undamaged model when a component is damaged in one of {windows} windows of depth, 1 nearest "
        f"to the input, at level {level_text(level)}. Red is worse. The table holds every level.",
    )


def _shared_level(curves: Sequence[Curve]) -> float | None:
    """Return the most severe level that every series has; None where there is none but the baseline."""
    axes = [series.axis for series in series_of(curves) if series.has_baseline]
    shared = [level for level in axes[0].levels[1:] if all(level in axis.levels for axis in axes)] if axes else []
    return shared[-1] if shared else None


def change(curve: Curve, level: float) -> float:
    """Return how far the measure moved from its baseline at a level; NaN where either is not known."""
    axis = curve.series.axis
    if not axis.has_baseline or level not in axis.levels:
        return numpy.nan
    centre = curve.stats["centre"]
    return float(centre[axis.levels.index(level)] - centre[0])


def _map(figure, panel, curves: Sequence[Curve], components: Sequence[str], windows: int, level: float) -> None:
    table = numpy.full((len(components), windows), numpy.nan)
    for curve in curves:
        component, number, _ = window_of_depth(curve.series.key.group)
        table[components.index(component), number - 1] = change(curve, level)
    measure = curves[0].measure
    most = numpy.nanmax(numpy.abs(table)) if numpy.isfinite(table).any() else 0.0
    most = most or 1.0
    shown = panel.imshow(
        table, aspect="auto", cmap="RdBu_r" if (measure.worse or 1) > 0 else "RdBu", vmin=-most, vmax=most
    )
    for row, column in zip(*numpy.nonzero(numpy.isnan(table)), strict=True):
        panel.text(column, row, "none", ha="center", va="center", fontsize=7, color=GREY)
    figure.colorbar(shown, ax=panel, fraction=0.05)
    panel.grid(False)
    panel.set_title(measure.label, fontsize=9)
    panel.set_xticks(range(windows), [str(number) for number in range(1, windows + 1)], fontsize=8)
    panel.set_yticks(range(len(components)), components, fontsize=8)
    panel.set_xlabel("window of depth", fontsize=9)


def _rows(curve: Curve) -> list[dict[str, Any]]:
    component, number, count = window_of_depth(curve.series.key.group)
    return [
        {
            **key_columns(curve.series),
            "component": component,
            "window": number,
            "windows": count,
            "measure": curve.measure.name,
            "level": level,
            "centre": curve.stats["centre"][place],
            "change": change(curve, level),
            "repeats": int(curve.stats["n"][place]),
        }
        for place, level in enumerate(curve.series.axis.levels)
    ]
