"""Critical levels -> sentences: what broke first, how certain that is, what the results cannot show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from ..measures.names import Measure
from .bootstrap import CONFIDENCE, COVERAGE, FEW, draw_counts, mean_curve
from .cells_of_series import MODEL_MEASURES, Series
from .critical import AT_CHANCE, NO_CHANGE, NOT_REACHED, earlier_share
from .curves import Curve
from .harness_tasks import mixed_tasks
from .level_axis import level_text
from .result_files import ResultFile, run_of

CERTAIN = 0.975  # share of draws from which an order is called certain
MANY_CUT = 0.5  # share of undamaged answers
MOST_NAMED = 6


def what_broke_first(curves: Sequence[Curve], names: Sequence[str]) -> dict[str, Any]:
    """Order the measures of one series by L50, and say so in a sentence or two.

    Args:
        curves: of one series. names: the measures that take part.

    Returns:
        series, order (measure, L50 record and text of each that was reached, first one first), not_reached,
        at_chance, unchanged (labels), first_before_second (share of the draws, None without), lead, rest, and both as
        sentence.
    """
    taking_part = [curve for name in names for curve in curves if curve.measure.name == name]
    series = taking_part[0].series if taking_part else curves[0].series
    reached = sorted((c for c in taking_part if c.half.reached), key=lambda c: c.half.position)
    facts = {
        "series": series.label,
        "order": [
            {"measure": c.measure.name, "text": c.half.text(series.axis), **c.half.record(series.axis)} for c in reached
        ],
        "not_reached": [c.measure.label for c in taking_part if c.half.status == NOT_REACHED],
        "at_chance": [c.measure.label for c in taking_part if c.half.status == AT_CHANCE],
        "unchanged": [c.measure.label for c in taking_part if c.half.status == NO_CHANGE],
        "first_before_second": earlier_share(reached[0].half, reached[1].half) if len(reached) > 1 else None,
    }
    lead, rest = _sentences(series, reached, facts)
    return facts | {"lead": lead, "rest": rest, "sentence": f"{lead} {rest}".strip()}


def _sentences(series: Series, reached: Sequence[Curve], facts: Mapping[str, Any]) -> tuple[str, str]:
    """What broke first, and everything else."""
    where = f"{series.key.method} on {series.key.group}"
    if series.label.endswith(")"):
        where += f" ({run_of(series.key.experiment)})"
    if not series.has_baseline:
        return f"{where}: there is no undamaged cell to compare with, so no critical level.", ""
    if len(series.axis.levels) == 1:
        return f"{where}: only the undamaged model was tested.", ""
    if len(series.axis.levels) == 2:
        return f"{where}: with one damaged level there is no order in which measures break.", ""
    last = f"{series.axis.symbol} = {level_text(series.axis.levels[-1])}"
    lead, rest = f"{where}: nothing broke up to {last}.", []
    if reached:
        lead = f"{where}: {_name(reached[0])} broke first, at {_level(reached[0])}."
    if len(reached) > 1:
        rest.append(f"Then {', '.join(f'{_name(c)} at {c.half.text(series.axis)}' for c in reached[1:])}.")
        rest.append(_order(reached, facts["first_before_second"]))
    if facts["not_reached"]:
        rest.append(f"Not half way to the floor by {last}: {_listed(facts['not_reached'])}.")
    if facts["at_chance"]:
        rest.append(f"Undamaged no better than chance, so nothing to lose: {_listed(facts['at_chance'])}.")
    if facts["unchanged"]:
        rest.append(f"No change is shown for {_listed(facts['unchanged'])}.")
    return lead, " ".join(rest)


def _order(reached: Sequence[Curve], share: float | None) -> str:
    first, second = _name(reached[0]), _name(reached[1])
    repeats = len(reached[0].series.repeats)
    if share is None:
        alone = [_name(curve) for curve in reached[:2] if numpy.isnan(curve.half.low)]
        what = f"{' and '.join(alone)} measured in one repeat only" if repeats > 1 and alone else "one repeat"
        return f"With {what} nothing can be said about how certain this order is."
    if repeats < FEW:
        return f"Whether that order would hold in other repeats, {repeats} repeats cannot show."
    if share == 1:
        return f"That {first} came before {second} holds in all bootstrap draws."
    if share >= CERTAIN:
        text = f"{100 * share:.1f}" if share < 0.9995 else "more than 99.9"
        return f"That {first} came before {second} holds in {text} % of the bootstrap draws."
    return f"That {first} came before {second} holds in only {100 * share:.0f} % of the bootstrap draws: not certain."


def ranking(curves: Sequence[Curve], measure: Measure) -> str | None:
    """Say which series of a task lost a measure first on the common axis, relative L2; None with fewer than two.

    With one damaged level there is nothing between it and the undamaged model: L50 would be half of it, whatever came
    out. Where all have that same one, as in a map of depth, they are ranked by how far the measure fell there.
    """
    found = [c for c in curves if c.measure.name == measure.name and numpy.isfinite(c.series.mean_rel_l2).all()]
    levels = {_only_level(curve) for curve in found}
    if len(levels) == 1 and None not in levels:
        return _ranking_by_change(found, measure)
    found = [c for c in found if len(c.series.axis.levels) > 2]
    reached = sorted((c for c in found if c.half.reached), key=common_position)
    if len(found) < 2 or not reached:
        return None
    parts = [f"{c.series.label} at {common_position(c):.2f}{_common_interval(c)}" for c in reached]
    name = measure.label.partition(" (")[0]
    text = f"{name}, by relative L2 change of the weights, most vulnerable first: {'; '.join(parts)}."
    held = [c.series.label for c in found if c.half.status == NOT_REACHED]
    if held:
        text += f" Not reached: {', '.join(held)}."
    if len(reached) > 1 and _overlap(reached[0], reached[1]):
        text += " The intervals of the first two overlap."
    return text


def _only_level(curve: Curve) -> float | None:
    """The damaged level of a curve that has an undamaged cell and one more; None for others."""
    series = curve.series
    return series.axis.levels[1] if series.has_baseline and len(series.axis.levels) == 2 else None


def _ranking_by_change(found: Sequence[Curve], measure: Measure) -> str | None:
    """Series by the mean change of a measure at their only damaged level, with intervals over repeats."""
    if len(found) < 2 or measure.worse is None:
        return None
    changes = []
    for curve in found:
        stats = mean_curve(curve.values[:, 1:] - curve.values[:, :1], draw_counts(len(curve.values)))
        most = 1.0 if measure.share else numpy.inf
        mean, low, high = (float(numpy.clip(stats[name][0], -most, most)) for name in ("mean", "low", "high"))
        interval = "" if numpy.isnan(low) else f" ({measure.text(low)} to {measure.text(high)})"
        changes.append((measure.worse * mean, f"{curve.series.label} by {measure.text(mean)}{interval}"))
    changes = [change for change in changes if numpy.isfinite(change[0])]
    if len(changes) < 2 or not any(change for change, _ in changes):
        return None
    parts = [text for _, text in sorted(changes, key=lambda change: -change[0])]
    name, axis = measure.label.partition(" (")[0], found[0].series.axis
    level = f"{axis.label} {level_text(axis.levels[1])}"
    return f"{name}, change at the one damaged level ({level}), most vulnerable first: {'; '.join(parts)}."


def common_position(curve: Curve) -> float:
    """L50 of a curve as relative L2 change, read off the mean change at its levels."""
    return _carried(curve, curve.half.position)


def _carried(curve: Curve, position: float) -> float:
    if not numpy.isfinite(position):
        return position
    return float(numpy.interp(position, curve.series.axis.positions, curve.series.mean_rel_l2))


def _common_interval(curve: Curve) -> str:
    if numpy.isnan(curve.half.low):
        return ""
    low, high = (_carried(curve, end) for end in (curve.half.low, curve.half.high))
    return f" ({low:.2f} to {f'{high:.2f}' if numpy.isfinite(high) else 'not reached'})"


def _overlap(first: Curve, second: Curve) -> bool:
    """Whether two intervals overlap; false where one has none."""
    return _carried(first, first.half.high) >= _carried(second, second.half.low)


def warnings(files: Sequence[ResultFile], series: Sequence[Series], curves: Sequence[Curve]) -> list[str]:
    """Return what a reader must know before believing the numbers, a sentence for each kind of trouble."""
    found = _file_problems(files) + _mixed_tasks(files)
    found += _few_repeats(series)
    for what, note in (
        ("All repeats gave the same answers, so they count as one: intervals and p-values mean nothing", _same_repeats),
        ("Cells (level × repeat) without rows", _missing_cells),
        ("Cells with fewer answers than others", _uneven_cells),
        ("No undamaged cell, so no critical levels", _no_baseline),
        ("Cells whose logits were not finite (their answers count as data)", _not_finite),
        ("Cells without a finite perplexity (its curve speaks of the others only)", _no_perplexity),
    ):
        noted = [f"{note(one)} {one.key.task}: {one.label}".strip() for one in series if note(one) is not None]
        if noted:
            found.append(f"{what}: {'; '.join(noted[:MOST_NAMED])}{_more(noted)}.")
    return found + _cut_off(curves)


def _file_problems(files: Sequence[ResultFile]) -> list[str]:
    """What was wrong with the files, each kind once."""
    names: dict[str, list[str]] = {}
    for file in files:
        for problem in file.problems:
            names.setdefault(problem, []).append(file.path.name)
    return [
        f"{', '.join(which) if len(which) < 4 else f'{len(which)} of {len(files)} files'}: {problem}"
        for problem, which in names.items()
    ]


def _mixed_tasks(files: Sequence[ResultFile]) -> list[str]:
    mixed = mixed_tasks(record for file in files for record in file.cells)
    if not mixed:
        return []
    return [
        f"{', '.join(mixed)}: cells were measured with different limits, versions of lm-evaluation-harness or tasks of "
        "this name, so their figures cannot be compared: run the same --lm_eval over all of them."
    ]


def _more(noted: Sequence[str]) -> str:
    return f"; and {len(noted) - MOST_NAMED} more" if len(noted) > MOST_NAMED else ""


def _few_repeats(series: Sequence[Series]) -> list[str]:
    few = {len(one.repeats) for one in series if len(one.repeats) < FEW}
    if not few:
        return []
    if few == {1}:
        return ["There is one repeat only, so no interval and no spread. Repeats differ a lot: run at least 5."]
    return [
        f"n_rep = {', '.join(map(str, sorted(few)))} is below {FEW}: repeats differ a lot, so the intervals are wide. "
        f"{COVERAGE}"
    ]


def _same_repeats(series: Series) -> str | None:
    """Note a series whose damaged cells do not differ between repeats, as of uni_quant with greedy answers."""
    damaged = slice(1 if series.has_baseline else 0, None)
    found = [values[:, damaged] for name, values in series.cells.items() if name not in MODEL_MEASURES]
    if not found:
        return None
    values = numpy.stack(found)
    several = numpy.isfinite(values).sum(axis=1) > 1  # repeats that have the cell
    if not several.any():
        return None
    values = values.transpose(0, 2, 1)[several]
    return "" if (numpy.nanmax(values, axis=1) == numpy.nanmin(values, axis=1)).all() else None


def _missing_cells(series: Series) -> str | None:
    missing = int((series.answers == 0).sum())
    return f"{missing} of {series.answers.size} in" if missing else None


def _uneven_cells(series: Series) -> str | None:
    filled = series.answers[series.answers > 0]
    fewer = int((filled < filled.max()).sum())
    return f"{fewer} of {len(filled)} in" if fewer else None


def _no_baseline(series: Series) -> str | None:
    return None if series.has_baseline else ""


def _not_finite(series: Series) -> str | None:
    broken = series.cells.get("non_finite")
    count = 0 if broken is None else int((broken > 0).sum())
    return f"{count} in" if count else None


def _no_perplexity(series: Series) -> str | None:
    measured = series.cells.get("log_perplexity")
    if measured is None:
        return None
    rows = numpy.isfinite(measured).any(axis=1)  # repeats in which perplexity was measured at all
    lost = int((~numpy.isfinite(measured[rows]) & (series.answers[rows] > 0)).sum())
    return f"{lost} in" if lost else None


def _cut_off(curves: Sequence[Curve]) -> list[str]:
    """Tasks whose undamaged answers are mostly cut off."""
    shares = {c.series.key.task: c.baseline for c in curves if c.measure.name == "cut_off" and c.baseline > MANY_CUT}
    return [
        f"{task}: {100 * share:.0f} % of the undamaged answers are cut off at the token limit: lengths say little."
        for task, share in shares.items()
    ]


ALPHA = 0.05  # of trends
NOT_SHOWN = (
    "Levels of a repeat share one field of noise and the noise of sampling (unless the settings say otherwise), so a "
    "curve over levels is smoother than independent experiments would be. The unit of every interval is the repeat.",
    "Repeats are other damage to the same model (uni_quant's is always the same) and other draws of its answers. "
    "Nothing here speaks about other models, other prompts or other texts.",
    "L50 without a chance level is half way to the value at the most severe level tested: it depends on where the "
    "levels end, and compares measures only within the same grid. A level that is not reached is not extrapolated.",
    "Between two levels a curve is taken for a straight line: a sudden collapse looks as wide as the step.",
    "Cohen's d with the spread between answers asks whether single answers differ; with the spread between repeats it "
    "asks whether means differ, and is reached far earlier. Neither is a test.",
    "A change counts as shown when its 95 % interval excludes 0. Of many measures that do not change, some in a "
    "hundred seem to (more with few repeats): a lone surprising measure is a reason to look, not a finding.",
    "The p-values of the trend treat levels as exchangeable under no effect. Where no direction is better, it is taken "
    "from the data and p is two-sided.",
    "Graders read the number, choice or name an answer settles on. A right answer in an unexpected form counts as "
    "wrong, more often in a rambling model than in a healthy one.",
    "Measures of coherence count words; no reader and no judge model has looked at the texts.",
    "Relative L2 says how far weights moved, not how much the layer's output did.",
)


def multiplicity(curves: Sequence[Curve]) -> str:
    """Say how many curves a report looks at, and what that does to its intervals and p-values."""
    tested = [curve.trend["p"] for curve in curves if curve.trend["p"] is not None]
    intervals = sum(int(numpy.isfinite(curve.stats["low"]).sum()) for curve in curves)
    found = sum(p <= ALPHA for p in tested)
    held = sum(curve.trend["p_holm"] <= ALPHA for curve in curves if curve.trend["p"] is not None)
    return (
        f"This report looks at {len(curves)} curves and {intervals:,} intervals: about "
        f"{intervals * (1 - CONFIDENCE):,.0f} of these would miss by chance alone, and none is widened for that. Of "
        f"{len(tested)} trends, {found} have a p of at most {ALPHA}, and {held} still have when all are taken together "
        "(Holm)."
    )


def _name(curve: Curve) -> str:
    return _inside(curve.measure.label)


def _inside(label: str) -> str:
    """A label inside a sentence: without its unit, and small unless it is an abbreviation."""
    label = label.partition(" (")[0]
    return label if label[:2].isupper() else label[:1].lower() + label[1:]


def _level(curve: Curve) -> str:
    axis, half = curve.series.axis, curve.half
    at = axis.text_at(half.position)
    text = f"{axis.symbol} {at}" if at.startswith("above") else f"{axis.symbol} = {at}"
    if numpy.isnan(half.low):
        return text
    ends = [axis.text_at(end) if numpy.isfinite(end) else "not reached" for end in (half.low, half.high)]
    return f"{text} (95 % interval {ends[0]} to {ends[1]})"


def _listed(names: Sequence[str]) -> str:
    names = [_inside(name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
