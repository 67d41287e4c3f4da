"""The vulnerability ranking as a figure: a dot for each group at its critical level, the most vulnerable on top."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..bootstrap import COVERAGE
from ..critical import Critical
from ..curves import Curve
from ..level_axis import number
from .plot_style import (
    GREY,
    Look,
    NothingToDraw,
    Plot,
    key_columns,
    level_axis,
    looks,
    of_measure,
    panels,
    present,
    save,
    series_of,
)


def plot_ranking(curves: Sequence[Curve], names: Sequence[str], folder: Path, name: str) -> Plot:
    """Draw the vulnerability ranking: a dot plot of L50 with intervals, most vulnerable first, a panel a measure.

    The x axis is relative L2 where every series has it, else the level, and then only series of one method fit on it.
    """
    chosen = [measure for measure in present(curves, names) if _ranked(curves, measure)]
    series = series_of(curves)
    if not chosen:
        raise NothingToDraw("no group reached a critical level that others could be compared with")
    common = all(numpy.isfinite(one.mean_rel_l2[1:]).all() for one in series)
    if not common and len({one.key.method for one in series}) > 1:
        raise NothingToDraw("several methods can only be ranked by relative L2, which is not recorded for all of them")
    found = looks(series)
    height = 1.1 + 0.3 * len(series)
    figure, axes = panels(len(chosen), size=(4.3, height))
    rows = []
    for panel, measure in zip(axes, chosen, strict=True):
        entries = _ranked(curves, measure)
        entries = sorted((_ranking_row(curve, common) for curve in entries), key=lambda row: row["order"])
        for place, row in enumerate(entries):
            _draw_dot(panel, place, row, found[id(row["series"])])
        names = [found[id(row["series"])].label for row in entries]
        panel.set_yticks(range(len(entries)), names, fontsize=8, parse_math=False)
        panel.set_ylim(len(entries) - 0.5, -0.5)
        panel.set_xlabel("L50, as relative L2 change" if common else f"L50, {series[0].axis.label}", fontsize=9)
        panel.set_title(of_measure(curves, measure)[0].measure.label, fontsize=10, loc="left")
        panel.tick_params(axis="x", labelsize=8)
        if common:
            ends = [
                row[name] for row in entries for name in ("at", "high", "end" if row["status"] != "reached" else "at")
            ]
            panel.set_xlim(0, 1.12 * max(end for end in ends if numpy.isfinite(end)))
        else:
            level_axis(panel, [one.axis for one in series])
        rows += [
            {
                **key_columns(row["series"]),
                "measure": measure,
                "rank": place + 1,
                "status": row["status"],
                "scale": "rel_l2" if common else "position",
                "half": row["at"],
                "low": row["low"],
                "high": row["high"],
                "last_tested": row["end"],
            }
            for place, row in enumerate(entries)
        ]
    return save(
        figure,
        folder,
        name,
        rows,
        "Which group is most vulnerable",
        "L50 with its interval, most vulnerable group on top. A triangle stands where the levels ended "
        f"before L50 was reached, an arrow where an interval goes on beyond them. {COVERAGE}",
    )


def _ranked(curves: Sequence[Curve], measure: str) -> list[Curve]:
    """The curves that take part in a ranking: at least two, one of which reached its L50; of one damaged level there is
    none, as L50 would be half of it whatever came out."""
    found = [c for c in curves if c.measure.name == measure and c.half.status in ("reached", "not reached")]
    found = [curve for curve in found if len(curve.series.axis.levels) > 2]
    return found if len(found) > 1 and any(curve.half.reached for curve in found) else []


def _ranking_row(curve: Curve, common: bool) -> dict[str, Any]:
    positions = curve.series.axis.positions
    # a quantile keeps its place under a rising function, so the ends of the interval may be carried over
    scale = curve.series.mean_rel_l2 if common else positions

    def carried(position: float) -> float:
        return float(numpy.interp(position, positions, scale)) if numpy.isfinite(position) else position

    half: Critical = curve.half
    end = float(scale[-1])
    at = carried(half.position)
    return {
        "series": curve.series,
        "status": half.status,
        "at": at,
        "low": carried(half.low),
        "high": carried(half.high),
        "end": end,
        "order": (0, at) if half.reached else (1, -end),
    }


def _draw_dot(panel, place: int, row: Mapping[str, Any], look: Look) -> None:
    colour, mark = look.colour, look.mark
    if row["status"] != "reached":
        panel.plot(row["end"], place, ">", color="white", mec=colour, mew=1.4, ms=7)
        panel.annotate(
            "not reached",
            (row["end"], place),
            xytext=(-8, 0),
            textcoords="offset points",
            fontsize=7,
            ha="right",
            va="center",
            color=GREY,
        )
        return
    if numpy.isfinite(row["low"]):
        high = row["high"] if numpy.isfinite(row["high"]) else row["end"]
        panel.plot([row["low"], high], [place, place], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
        if not numpy.isfinite(row["high"]):
            panel.plot(high, place, ">", color=colour, ms=5, alpha=0.6)
    panel.plot(row["at"], place, mark, color=colour, ms=6)
    panel.annotate(
        number(row["at"]),
        (row["at"], place),
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=7,
        ha="center",
        color=GREY,
    )
