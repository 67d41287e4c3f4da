"""Which figures a report has, and what is missing for those that it has not."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ...measures.names import ANSWERS, HEADLINE, PER_PART, PER_SKILL, PER_TASK, RANKED
from ..curves import Curve, by_task
from ..result_files import common, run_of
from .depth_map import maps_of, plot_depth
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
    plot_tasks,
)
from .profile_plot import plot_profile
from .ranking_plot import plot_ranking
from .recovery_plot import before_training, plot_recovery, step_of

LONGEST = 180  # bytes of a figure's name; with its ending and a scratch name it stays below 255


def draw_all(curves: Sequence[Curve], folder: Path) -> tuple[dict[tuple[str, str], list[Plot]], list[dict[str, str]]]:
    """Draw every figure that the results hold data for; return them by model and task, and what is missing and why."""
    drawn: dict[tuple[str, str], list[Plot]] = {}
    skipped = []
    names = figure_names(curves)
    for (model, task), chosen in by_task(curves).items():
        drawn[model, task] = []
        for title, name, draw in figures_of(chosen):
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
        for _, name, _ in figures_of(chosen):
            text = f"{model}_{task}_{name}"
            stem = slug(text)
            if len(stem.encode()) > LONGEST or stem in found.values():
                digest = hashlib.sha1(repr((model, task, name)).encode()).hexdigest()[:10]
                stem = f"{stem.encode()[:LONGEST].decode(errors='ignore')}-{digest}"
            found[model, task, name] = stem
    return found


def figures_of(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
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
        tasks = sorted({curve.measure.name for curve in own if curve.measure.name.startswith(PER_TASK)})
        if tasks:
            yield (
                f"tasks over the level, {method}",
                f"tasks_{method}",
                lambda *to, own=own, tasks=tasks: plot_tasks(own, tasks, *to),
            )
    yield "all groups over relative L2", "rel_l2", lambda *to: plot_common_axis(curves, HEADLINE, *to)
    yield from _skill_figures(curves)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        yield f"loops and length, {method}", f"answers_{method}", lambda *to, own=own: plot_answers(own, ANSWERS, *to)
        yield f"perplexity, {method}", f"perplexity_{method}", lambda *to, own=own: plot_perplexity(own, *to)
    yield "every repeat", "repeats", lambda *to: plot_repeats(curves, spread, *to)
    yield from _depth_figures(curves)
    for method in common(curve.series.key.method for curve in curves):
        own = [curve for curve in curves if curve.series.key.method == method]
        if any(step_of(curve.series.key.experiment) for curve in own):
            yield (
                f"recovery, {method}",
                f"recovery_{method}",
                lambda *to, own=own: plot_recovery(own, HEADLINE, *to),
            )
    yield from _layer_figures(curves)


def _depth_figures(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
    """A map for each method; where a method has several, for each experiment and number of windows."""
    maps = maps_of(curves)
    methods = [method for method, *_ in maps]
    for (method, experiment, windows), own in maps.items():
        more = "" if methods.count(method) == 1 else f", {windows} windows ({run_of(experiment)})"
        yield (
            f"components by depth, {method}{more}",
            f"depth_{method}{more}",
            lambda *to, own=own: plot_depth(own, HEADLINE, *to),
        )


def _skill_figures(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
    """The profile and the parts of a battery; sub-skills of all other prompts."""
    there = [curve.measure.name for curve in curves]
    is_battery = any(name.startswith(PER_PART) for name in there)
    if is_battery:
        yield "profile by level", "profile", lambda *to: plot_profile(curves, *to)
        yield "score by part", "parts", lambda *to: plot_skills(curves, PER_PART, *to)
    if not is_battery or any(name.startswith(PER_SKILL) for name in there):
        yield "accuracy by sub-skill", "skills", lambda *to: plot_skills(curves, PER_SKILL, *to)


def _layer_figures(curves: Sequence[Curve]) -> Iterable[tuple[str, str, Callable[[Path, str], Plot]]]:
    """A heat map for each method, base group and experiment; one that says what is missing where no run names layers.

    Of recoveries, the damaged model before its training.
    """
    sorts: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in before_training(curves):
        key = curve.series.key
        if layer_subset(key.group):
            sorts.setdefault((key.method, key.group.partition("@")[0], key.experiment), []).append(curve)
    if not sorts:
        yield "layers by level", "layers", lambda *to: plot_layers(curves, HEADLINE, *to)
    pairs = [pair for *pair, _ in sorts]
    for (method, base, experiment), own in sorts.items():
        more = "" if pairs.count([method, base]) == 1 else f" ({run_of(experiment)})"
        yield (
            f"layers by level, {method} on {base}{more}",
            f"layers_{method}_{base}{more}",
            lambda *to, own=own: plot_layers(own, HEADLINE, *to),
        )


def slug(text: str) -> str:
    """Return a text as a file name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")
