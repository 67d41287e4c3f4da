"""The profile of a battery: the score of each of its parts at each level, and the kinds of errors, as tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

from ..measures.names import GRADED, PER_PART
from ..prompts import PARTS
from .curves import Curve
from .drawing.plot_style import key_columns
from .level_axis import level_text
from .page import folded, heading, paragraph, table
from .result_files import common

ERROR = "error_"
TOTAL = GRADED[1]
CAPTION = "Mean score over the repeats, with the 95 % interval; below each part, what guessing scores."
ERRORS_CAPTION = "Share of all answers of the battery, mean over the repeats, with the 95 % interval."


def parts_of(names: Iterable[str]) -> list[str]:
    """Return the measures that are parts of a battery: those of `PARTS` in their order, then any of one's own."""
    found = {name for name in names if name.startswith(PER_PART)}
    known = [PER_PART + part for part in PARTS]
    return [*(name for name in known if name in found), *sorted(found - set(known))]


def batteries(curves: Sequence[Curve]) -> list[dict[str, Curve]]:
    """Return the curves of each series that has parts of a battery, by measure."""
    series = common(curve.series for curve in curves if curve.measure.name.startswith(PER_PART))
    return [{curve.measure.name: curve for curve in curves if curve.series is one} for one in series]


def profiles(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return the profiles for JSON: of each series the levels, and of each part and the whole the scores there."""
    return [_record(found) for found in batteries(curves)]


def _record(found: Mapping[str, Curve]) -> dict[str, Any]:
    names = [TOTAL, *parts_of(found)]
    series = found[TOTAL].series
    return {
        **key_columns(series),
        "levels": list(series.axis.levels),
        "scores": {
            name.removeprefix(PER_PART): {
                "chance": found[name].chance,
                **{stat: found[name].stats[stat].tolist() for stat in ("centre", "low", "high")},
            }
            for name in names
        },
        "errors": {
            name.removeprefix(ERROR): found[name].stats["centre"].tolist() for name in found if name.startswith(ERROR)
        },
    }


def profile_section(curves: Sequence[Curve]) -> list[str]:
    """Return the part of a task's page that shows its profiles; nothing for a task that is no battery."""
    found = batteries(curves)
    if not found:
        return []
    body = [heading(3, "Profile"), paragraph("Parts of the battery by level; scores by rules, no judge.", "soft")]
    for each in found:
        series = each[TOTAL].series
        name = f"{series.label}, {series.key.method}"
        scores = _by_level(each, [*parts_of(each), TOTAL], CAPTION)
        body += [scores if len(found) == 1 else folded(f"{name}: scores", scores)]
        errors = [one for one in each if one.startswith(ERROR) and numpy.nansum(each[one].stats["centre"]) > 0]
        if errors:
            body.append(folded(f"{name}: kinds of errors", _by_level(each, errors, ERRORS_CAPTION)))
    return body


def _by_level(found: Mapping[str, Curve], names: Sequence[str], caption: str) -> str:
    """Return a table with a line for each measure and a column for each level."""
    axis = found[TOTAL].series.axis
    header = [axis.symbol, *map(level_text, axis.levels)]
    rows = [[_name(found[name]), *(found[name].text_at(place) for place in range(len(axis.levels)))] for name in names]
    return table(header, rows, caption)


def _name(curve: Curve) -> str:
    chance = f" (chance {curve.measure.text(curve.chance)})" if curve.chance else ""
    return f"{curve.measure.label}{chance}"
