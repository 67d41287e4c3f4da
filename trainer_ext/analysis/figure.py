"""An analysis of a run -> one figure. Draws without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from ..common.figures import save_figure
from .run_analysis import OF_A_STEP, RunAnalysis
from .timing_file import PARTS

MOST_BARS = 120


def plot_analysis(analysis: RunAnalysis, path: Path, *, title: str) -> None:
    """Draw the seconds of each part (above) and, where they were measured, the time of a step over the run (below)."""
    has_steps = bool(analysis.rows) and analysis.steps > 0
    figure = Figure(figsize=(8, 6.4 if has_steps else 3.2), dpi=130, layout="constrained")
    panels = figure.subplots(2 if has_steps else 1, 1, squeeze=False)[:, 0]
    _draw_parts(panels[0], analysis)
    panels[0].set_title(title)
    panels[0].title.set_parse_math(False)
    if has_steps:
        _draw_steps(panels[1], windows(analysis.rows))
    save_figure(figure, path)


def _color(part: str):
    """The same one in both panels."""
    return colormaps["tab10"].colors[PARTS.index(part) if part in PARTS else 7]


def _draw_parts(axes, analysis: RunAnalysis) -> None:
    rows = analysis.table()
    bars = axes.barh(
        [row["part"] for row in rows],
        [row["seconds"] for row in rows],
        color=[_color(row["part"]) for row in rows],
    )
    axes.bar_label(bars, [f"{row['share']:.1%}" for row in rows], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def windows(rows: Sequence[Mapping[str, float]], most: int = MOST_BARS) -> list[dict[str, float]]:
    """At most `most` stretches of steps: first and last step, and the milliseconds of a step for each part."""
    at = rows[0]["step"]
    width = max(1, -(-(rows[-1]["step"] - at) // most))
    found: list[dict[str, float]] = []
    sums = dict.fromkeys(OF_A_STEP, 0.0)
    for index, row in enumerate(rows):
        for part in OF_A_STEP:
            sums[part] += row[part]
        steps, is_last = row["step"] - at, index + 1 == len(rows)
        if steps and (is_last or (steps >= width and rows[index + 1]["step"] > row["step"])):
            found.append({"first": at, "last": row["step"], **{p: 1000 * s / steps for p, s in sums.items()}})
            sums, at = dict.fromkeys(OF_A_STEP, 0.0), row["step"]
    return found


def _draw_steps(axes, stretches: Sequence[Mapping[str, float]]) -> None:
    bottoms = [0.0] * len(stretches)
    places = [stretch["first"] for stretch in stretches]
    widths = [stretch["last"] - stretch["first"] for stretch in stretches]
    for part in OF_A_STEP:
        heights = [stretch[part] for stretch in stretches]
        axes.bar(places, heights, widths, bottoms, align="edge", color=_color(part), label=part)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set(xlabel="optimizer step", ylabel="milliseconds a step")
    axes.legend(frameon=False, fontsize=8, ncols=3)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
