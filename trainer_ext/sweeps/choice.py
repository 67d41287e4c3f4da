"""A value of a setting for each run of a sweep, chosen before the seeds that are reported: `choice` in the file.

    choice: {setting: learning_rate, values: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], seed: 1000}
    report: {validation_dataset: test.jsonl}     # what the reported runs set: a text that chose nothing
    seeds: [0, 1, 2]                             # of the reported runs

The seed of the choice is trained at every value. The best lies between two others, or it is none: at an end of those
tried, the list grows by its own steps, at most `MOST_MORE` at either end and to no value that the setting cannot have.
The seeds are trained at what is chosen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frankenlm.modeling.checks import check_keys

from ..common.cli import UserError

KEYS = ("setting", "values", "seed")
FEWEST = 3  # values: fewer have nothing between their ends
MOST_MORE = 3
DIGITS = 3  # of a value that was not in the file
CHOICE, REPORT = STAGES = ("choice", "report")


@dataclass(frozen=True)
class ValueChoice:
    """The setting that is chosen, its values in rising order, the seed that chooses."""

    setting: str
    values: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Decision:
    """What the values tried so far come to.

    values: to be tried, in rising order. chosen: the best of them, None as long as there is none. reason: why not. end:
    where the best lies, if that is all that is wrong with it.
    """

    values: tuple[float, ...]
    chosen: float | None
    reason: str = ""
    end: str | None = None


def read_choice(place: str, given: Any) -> ValueChoice:
    """Read the `choice` of a sweep's file; the name of its setting is checked by the reader.

    Raises:
        UserError: something is missing, or the values are too few, not positive or not rising.
    """
    where = f"--config {place}, choice"
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected setting, values and seed, found {type(given).__name__}.")
    check_keys(where, given, KEYS)
    missing = [key for key in KEYS if key not in given]
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing; it takes {', '.join(KEYS)}.")
    values, seed = given["values"], given["seed"]
    if not isinstance(values, list) or len(values) < FEWEST or not all(map(_is_positive, values)):
        raise UserError(
            f"{where}, values: at least {FEWEST} numbers above 0 are expected: a best one lies between two."
        )
    if values != sorted(set(values)):
        raise UserError(f"{where}, values: expected in rising order, each once.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{where}, seed: expected a whole number, found {seed!r}.")
    return ValueChoice(str(given["setting"]), tuple(values), seed)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def decide(
    choice: ValueChoice,
    found: Mapping[float, float],
    more_is_better: bool = False,
    is_refused: Callable[[float], bool] = lambda value: False,
) -> Decision:
    """Say which values are to be tried, and which is chosen once they all are.

    Args:
        found: the metric at each value that was tried; infinitely bad where training gave up.
        is_refused: whether a value that the list would grow by is none that the setting can have.
    """
    values = list(choice.values)
    while True:
        decision = best_inside(values, found, more_is_better)
        if decision.end is None:
            return decision
        beyond = grown(values, choice, decision.end)
        if beyond is None:
            return decision
        (added,) = set(beyond) - set(values)
        if is_refused(added):
            return replace(decision, reason=f"{decision.reason}, and {added:g} cannot be trained")
        values = beyond


def best_inside(values: Sequence[float], found: Mapping[float, float], more_is_better: bool = False) -> Decision:
    """The best of values in rising order, which is none at their end."""
    missing = sum(value not in found for value in values)
    if missing:
        return Decision(tuple(values), None, f"{missing} of {len(values)} values are not finished")
    best = (max if more_is_better else min)(values, key=found.__getitem__)
    if not math.isfinite(found[best]):
        return Decision(tuple(values), None, "training gave up at every value")
    if best in values[1:-1]:
        return Decision(tuple(values), best)
    end = "smallest" if best == values[0] else "largest"
    return Decision(
        tuple(values), None, f"{best:g} is the {end} of {len(values)} values: a better one may lie beyond", end
    )


def grown(values: Sequence[float], choice: ValueChoice, end: str) -> list[float] | None:
    """The values and one more at an end, or None where there were enough.

    The step is that of two places before: 1, 3, 10, 30 is followed by 100, and 1, 2, 4 by 8.
    """
    is_above = end == "largest"
    added = [value for value in values if (value > choice.values[-1] if is_above else value < choice.values[0])]
    if len(added) >= MOST_MORE:
        return None
    if is_above:
        return [*values, _rounded(values[-1] * values[-2] / values[-3], choice)]
    return [_rounded(values[0] * values[1] / values[2], choice), *values]


def _rounded(value: float, choice: ValueChoice) -> float:
    """A value that was not in the file; whole ones are followed by whole ones, as a count takes no other."""
    value = float(f"{value:.{DIGITS}g}")
    return int(value) if value.is_integer() and all(isinstance(one, int) for one in choice.values) else value
