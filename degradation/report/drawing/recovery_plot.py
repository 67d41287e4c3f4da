"""Recovery curves: what training brought back, over its steps."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from ..curves import Curve
from ..level_axis import level_text
from ..result_files import common
from .plot_style import COLOURS, NothingToDraw, Plot, key_columns, panels, save, value_axis

AFTER = re.compile(r"(?P<base>.+)_after(?P<step>\d+)")


def step_of(experiment: str) -> tuple[str, int] | None:
    """Return what an experiment's name says: the recovery it belongs to, and after how many steps; None for others."""
    match = AFTER.fullmatch(experiment)
    return (match["base"], int(match["step"])) if match else None


def before_training(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves of models that were not trained after the damage: of recoveries, those of step 0."""
    return [curve for curve in curves if (step_of(curve.series.key.experiment) or ("", 0))[1] == 0]


def plot_recovery(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw each measure over the steps of training, a line for each group and level; the undamaged model is dashed."""
    found = [curve for curve in curves if step_of(curve.series.key.experiment)]
    chosen = [each for each in names if len({step_of(c.series.key.experiment)[1] for c in _of(found, each)}) > 1]
    if not chosen:
        raise NothingToDraw("only results of the command recover, of two steps or more, have one")
    figure, axes = panels(len(chosen))
    rows: list[dict[str, Any]] = []
    for panel, measure in zip(axes, chosen, strict=True):
        rows += _draw(panel, _of(found, measure))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)
    return save(
        figure,
        folder,
        name,
        rows,
        f"Recovery over steps of training, {found[0].series.key.method}",
        "Mean over the repeats with its 95 % interval, after so many steps; step 0 is the damaged model. Dashed: the "
        "undamaged model, trained alike.",
    )


def _of(curves: Sequence[Curve], measure: str) -> list[Curve]:
    kept = [curve for curve in curves if curve.measure.name == measure]
    return sorted(kept, key=lambda curve: step_of(curve.series.key.experiment)[1])


def _draw(panel, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Fill a panel and return the rows behind it."""
    rows = []
    symbol = curves[0].series.axis.symbol
    lines = sorted(
        common((_kind(curve), level) for curve in curves for level in curve.series.axis.levels),
        key=lambda line: line[0],  # by group; the levels of one stay as they are
    )
    for place, (kind, level) in enumerate(lines):
        own = [curve for curve in curves if _kind(curve) == kind and level in curve.series.axis.levels]
        points = [_point(curve, level) for curve in own]
        steps, centre, low, high = (numpy.array(column) for column in zip(*points, strict=True))
        undamaged = level in (None, 0.0)
        colour = "0.5" if undamaged else COLOURS[place % len(COLOURS)]
        label = f"{kind[1]}, " + ("undamaged" if undamaged else f"{symbol} {level_text(level)}")
        panel.plot(steps, centre, marker=".", color=colour, linestyle="--" if undamaged else "-", label=label)
        if not undamaged:
            panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        rows += [
            {
                **key_columns(curve.series),
                "measure": curve.measure.name,
                "level": level,
                "step": point[0],
                "centre": point[1],
                "low": point[2],
                "high": point[3],
            }
            for curve, point in zip(own, points, strict=True)
        ]
    value_axis(panel, curves[0])
    panel.set_xlabel("steps of training", fontsize=9)
    return rows


def _kind(curve: Curve) -> tuple[str, str]:
    return step_of(curve.series.key.experiment)[0], curve.series.key.group


def _point(curve: Curve, level: float | None) -> tuple[int, float, float, float]:
    at = curve.series.axis.levels.index(level)
    return step_of(curve.series.key.experiment)[1], *(
        float(curve.stats[name][at]) for name in ("centre", "low", "high")
    )
