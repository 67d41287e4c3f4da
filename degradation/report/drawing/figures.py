"""Which figures a report has, and what is missing for those that it has not."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ...measures.names import ANSWERS, HEADLINE, RANKED
from ..curves import Curve, by_task
from ..result_files import common
from .depth_map import plot_depth, window_of_depth
from .plot_style import NothingToDraw, Plot
from .plots import (
    layer_subset,
    plot_answers,
    plot_common_axis,
    plot_layers,
    plot_levels,
    plot_perplexity,
    plot_repeats,
    plot_skills,
)
from .ranking_plot import plot_ranking
from .recovery_plot import plot_recovery, step_of

LONGEST = 180  # bytes of a figure's name; with its ending and a scratch name it stays below 255


def draw_all(curves: Sequence[Curve], folder: Path) -> tuple[dict[tuple[str, str], list[Plot]], list[dict[str, str]]]:
    """Draw every figure that the results hold data for; return them by model and task, and what is missing and why."""
    drawn: dict[tuple[str, str], list[Plot]] = {}
    skipped = []
    names = figure_names(curves)
    for (model, task), chosen in by_task(curves).items():
        drawn[model, task] = []
        for title, name, draw in _figures(chosen):
            try:
                drawn[model, task].append(draw(folder, names[model, task, name]))
            except NothingToDraw as reason:
                skipped.append({"model": model, "task": task, "figure": title, "reason": str(reason)})
    return drawn, skipped


def figure_names(curves: Sequence[Curve]) -> dict[tuple[str, str, str], str]:
    """Return the files' name, without ending, of every figure that may be drawn, by model, task and figure.

    One that file systems find too long, or that another figure has already, ends in a hash of what it stands for.
    """
    found: dict[tuple[str, str, str], str] = {}
    for (model, task), chosen in by_task(curves).items():
        for _, name, _ in _figures(chosen):
            text = f"{model}_{task}_{name}"
            stem = slug(text)
            if len(stem.encode()) > LONGEST or stem in found.values():
                digest = hashlib.sha1(repr((model, task, name)).encode()).hexdigest()[:10]
                stem = f"{stem.encode()[:LONGEST].decode(errors='ignore')}-{digest}"
            found[model, task, name] = stem
    return found


def _figures(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
    """The figures of one task: title, name of the file, and what draws it."""
    spread = next((name for name in RANKED if any(c.measure.name == name for c in curves)), RANKED[0])
    yield "vulnerability ranking", "ranking", lambda *to: plot_ranking(curves, RANKED, *to)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        yield (
            f"measures over the level, {method}",
            f"levels_{method}",
            lambda *to, own=own: plot_levels(own, HEADLINE, *to),
        )
    yield "all groups over relative L2", "rel_l2", lambda *to: plot_common_axis(curves, HEADLINE, *to)
    yield "accuracy by sub-skill", "skills", lambda *to: plot_skills(curves, *to)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        yield f"loops and length, {method}", f"answers_{method}", lambda *to, own=own: plot_answers(own, ANSWERS, *to)
        yield f"perplexity, {method}", f"perplexity_{method}", lambda *to, own=own: plot_perplexity(own, *to)
    yield "every repeat", "repeats", lambda *to: plot_repeats(curves, spread, *to)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        if not any(window_of_depth(curve.series.key.group) for curve in own):
            continue
        yield f"components by depth, {method}", f"depth_{method}", lambda *to, own=own: plot_depth(own, HEADLINE, *to)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        if any(step_of(curve.series.key.experiment) for curve in own):
            yield (
                f"recovery, {method}",
                f"recovery_{method}",
                lambda *to, own=own: plot_recovery(own, HEADLINE, *to),
            )
    yield from _layer_figures(curves)


def _layer_figures(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
    """A heat map for each method and base group; one that says what is missing where no run names layers."""
    sorts = common(
        (curve.series.key.method, curve.series.key.group.partition("@")[0])
        for curve in curves
        if layer_subset(curve.series.key.group)
    )
    if not sorts:
        yield "layers by level", "layers", lambda *to: plot_layers(curves, HEADLINE, *to)
    for method, base in sorts:
        own = [
            curve
            for curve in curves
            if curve.series.key.method == method and curve.series.key.group.partition("@")[0] == base
        ]
        yield (
            f"layers by level, {method} on {base}",
            f"layers_{method}_{base}",
            lambda *to, own=own: plot_layers(own, HEADLINE, *to),
        )


def slug(text: str) -> str:
    """Return a text as a file name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")
