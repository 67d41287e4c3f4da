"""The sections of the report's page, from numbers that are there already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..measures.names import BREAKS, GRADED, HEADLINE, PER_TASK, SKILLS
from .bootstrap import COVERAGE
from .curves import Curve
from .drawing.plot_style import Plot
from .level_axis import level_text
from .page import bullets, facts, figure, folded, heading, navigation, page, paragraph, said, table, warning_box
from .profile import profile_section
from .result_files import common

SHOWN_SENTENCES = 8
TREND_CAPTION = (
    "ρ is Spearman's correlation of level and mean, p from permutations of the levels; p (Holm) holds for all curves "
    "of this report together"
)
L50_CAPTION = f"L50: half way from the baseline to the floor, with the interval over repeats. {COVERAGE}"
EFFECT_CAPTION = "d-crit: where Cohen's d against the baseline first reaches 0.8, by the spread between answers."
BETTER = {1: "more", -1: "less", None: "neither"}
Tasks = Mapping[tuple[str, str], Sequence[Curve]]


def build_page(
    report: Mapping[str, Any], tasks: Tasks, plots: Mapping[tuple[str, str], Sequence[Plot]], folder: Path
) -> str:
    """Return report.html. `report` is report.json's content; the figures lie below `folder`."""
    title = f"What damage does to {', '.join(map(short_name, report['models']))}"
    anchors = {key: f"task-{place}" for place, key in enumerate(tasks)}
    names = {key: key[1] if len(report["models"]) == 1 else f"{short_name(key[0])}: {key[1]}" for key in tasks}
    body = [
        heading(1, title),
        paragraph(f"Results: {', '.join(report['files'])}", "soft"),
        navigation(
            [
                ("first", "What broke first"),
                *((anchors[key], names[key]) for key in tasks),
                ("limits", "What this does not show"),
                ("origin", "Where it comes from"),
            ]
        ),
        facts(_overview(report, tasks)),
        warning_box(report["warnings"]),
        *_first(report, names),
    ]
    for key, curves in tasks.items():
        body += _task(names[key], anchors[key], curves, plots[key], folder)
    body += _limits(report) + _origin(report)
    return page(title, body)


def short_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def _overview(report, tasks: Tasks) -> list[tuple[str, str]]:
    series = common(curve.series for curves in tasks.values() for curve in curves)
    repeats = sorted({len(one.repeats) for one in series})
    return [
        ("Models", ", ".join(map(short_name, report["models"]))),
        ("Tasks", ", ".join(common(one.key.task for one in series))),
        ("Methods", ", ".join(common(one.key.method for one in series))),
        ("Groups", _few(common(one.key.group for one in series))),
        ("Answers", f"{report['rows']:,}"),
        ("Repeats", " to ".join(str(n) for n in common((repeats[0], repeats[-1])))),
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)}"


def _first(report, names) -> list[str]:
    body = [
        heading(2, "What broke first", "first"),
        paragraph(
            "For each measure, L50 is the first level at which the monotone fit of its mean over the repeats is half "
            "way from the undamaged model to the floor: the chance level of an accuracy, otherwise the value at the "
            "most severe level.",
            "soft",
        ),
    ]
    for (model, task), name in names.items():
        sentences = [e for e in report["broke_first"] if (e["model"], e["task"]) == (model, task)]
        ranks = [e["sentence"] for e in report["rankings"] if (e["model"], e["task"]) == (model, task)]
        body.append(heading(3, name))
        cards = [said(entry["lead"], entry["rest"]) for entry in sentences]
        body += cards[:SHOWN_SENTENCES]
        if len(cards) > SHOWN_SENTENCES:
            body.append(folded(f"{len(cards) - SHOWN_SENTENCES} more groups", "".join(cards[SHOWN_SENTENCES:])))
        if ranks:
            body.append(bullets(ranks))
    return body


def _task(name: str, anchor: str, curves: Sequence[Curve], plots: Sequence[Plot], folder: Path) -> list[str]:
    body = [heading(2, name, anchor), heading(3, "Critical levels")]
    for method in common(curve.series.key.method for curve in curves):
        body += _critical([curve for curve in curves if curve.series.key.method == method], method)
    body += profile_section(curves)
    for plot in plots:
        body += [heading(3, plot.title), figure(plot, folder)]
    body.append(heading(3, "Numbers"))
    for series in common(curve.series for curve in curves):
        own = [curve for curve in curves if curve.series is series]
        body.append(folded(f"{series.label}, {series.key.method}: by level", _levels(own)))
        body.append(folded(f"{series.label}, {series.key.method}: every measure", _measures(own)))
    return body


def headline(curves: Sequence[Curve]) -> list[str]:
    """The measures a short table shows: the headline ones, every sub-skill and part, and what can break."""
    there = common(curve.measure.name for curve in curves)
    skills = sorted(name for name in there if name.startswith(SKILLS))
    tasks = sorted(name for name in there if name.startswith(PER_TASK))
    wanted = [*GRADED, *skills, *tasks, *HEADLINE, *BREAKS]
    return [name for name in common(wanted) if name in there]


def _critical(curves: Sequence[Curve], method: str) -> list[str]:
    """Both critical levels of a method: side by side for one series, else a table each with a column a series."""
    series = common(curve.series for curve in curves)
    axis = series[0].axis
    labels = {curve.measure.name: curve.measure.label for curve in curves}
    found = {(curve.measure.name, id(curve.series)): curve for curve in curves}
    lines = [(labels[name], [found.get((name, id(one))) for one in series]) for name in headline(curves)]
    if len(series) == 1:
        header = [f"{method} on {series[0].key.group}: {axis.symbol}", "L50", "d-crit (answers)", "d-crit (repeats)"]
        rows = [[label, _half(c), _effect(c), _effect_repeats(c)] for label, (c,) in lines]
        return [table(header, rows, f"{L50_CAPTION} {EFFECT_CAPTION}")]
    header = [f"{method}: {axis.symbol}", *(one.label.replace(f", {method}", "") for one in series)]
    halves = [[label, *map(_half, cells)] for label, cells in lines]
    effects = [[label, *(f"{_effect(c)} [{_effect_repeats(c)}]" for c in cells)] for label, cells in lines]
    return [
        table(header, halves, L50_CAPTION),
        table(header, effects, f"{EFFECT_CAPTION} In square brackets: the level by the spread between repeats."),
    ]


def _half(curve: Curve | None) -> str:
    return curve.half.text(curve.series.axis) if curve else "–"


def _effect(curve: Curve | None) -> str:
    return curve.effect.text(curve.series.axis) if curve and curve.effect else "–"


def _effect_repeats(curve: Curve | None) -> str:
    if curve is None:
        return "–"
    found = curve.effect_repeats
    return curve.series.axis.text_at(found.position) if found.reached else found.status


def _levels(curves: Sequence[Curve]) -> str:
    series = curves[0].series
    found = {curve.measure.name: curve for curve in curves}
    names = headline(curves)
    header = ["Level", "Relative L2", "Answers", *(found[name].measure.label for name in names)]
    rows = []
    for place, level in enumerate(series.axis.levels):
        change = series.mean_rel_l2[place]
        row = [
            level_text(level),
            f"{change:.3f}" if numpy.isfinite(change) else "–",
            str(int(series.answers[:, place].sum())),
        ]
        rows.append([*row, *(found[name].text_at(place) for name in names)])
    return table(header, rows, "Mean over the repeats, with the 95 % interval")


def _measures(curves: Sequence[Curve]) -> str:
    axis = curves[0].series.axis
    header = ["Measure", "Undamaged", "Most severe", "L50", "d-crit", "ρ", "p", "p (Holm)", "test"]
    rows = []
    for curve in sorted(curves, key=lambda c: c.measure.label.lower()):
        trend, text = curve.trend, curve.measure.text
        rows.append(
            [
                curve.measure.label,
                text(curve.baseline),
                text(curve.last),
                curve.half.text(axis),
                curve.effect.text(axis) if curve.effect else "–",
                "–" if trend["rho"] is None else f"{trend['rho']:+.2f}",
                "–" if trend["p"] is None else f"{trend['p']:.4f}",
                "–" if trend["p_holm"] is None else f"{trend['p_holm']:.4f}",
                "–" if trend["test"] is None else f"{trend['test']}, {trend['alternative']}",
            ]
        )
    return table(header, rows, TREND_CAPTION)


def _limits(report) -> list[str]:
    known = report["measures"].values()
    rows = [[entry["label"], BETTER[entry["better"]], entry["meaning"]] for entry in known if entry["meaning"]]
    glossary = table(["Measure", "Better", "What it is"], sorted(rows))
    body = [
        heading(2, "What this does not show", "limits"),
        bullets(report["not_shown"]),
        folded("What the measures are", f'<div class="text">{glossary}</div>'),
    ]
    left_out = report["plots_without_data"]
    if left_out:
        texts = [f"{entry['task']}, {entry['figure']}: {entry['reason']}." for entry in left_out]
        body += [heading(3, "Figures without data"), bullets(texts)]
    return body


def _origin(report) -> list[str]:
    boot = report["bootstrap"]
    body = [
        heading(2, "Where it comes from", "origin"),
        paragraph(
            f"Intervals: percentile bootstrap over repeats, {boot['draws']:,} draws, seed {boot['seed']}, "
            f"{boot['confidence']:.0%}. The same files give the same page. All numbers: report.json, curves.csv, "
            "cells.csv and plots/ beside this page."
        ),
    ]
    for name, manifest in report["runs"].items():
        pairs = [[key, value] for key, value in _flat(manifest)]
        inside = table(["Field", "Value"], pairs) if pairs else paragraph("No manifest lies beside this file.")
        body.append(folded(name, inside))
    return body


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A manifest as pairs of dotted name and text; lists of records by their last one, which ran last."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return _flat(value[-1], f"{name}[{len(value) - 1}]")
    return [(name, ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value))]
