"""From what was measured to a verdict: holds, broken, refuses, or cannot be told."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..common.cli import is_memory_error, one_line
from .measure import Difference
from .noise import measure_noise, wider
from .subject import CannotBeTold, Refused
from .trial import Trial

HOLDS, BROKEN, REFUSES, UNKNOWN = "holds", "broken", "refuses", "cannot be told"
VERDICTS = (HOLDS, BROKEN, REFUSES, UNKNOWN)
ROUNDINGS = 16  # times the noise: two computations round in different ways, and neither is the one that was measured
LONGEST_NOTE = 110


@dataclass(frozen=True)
class Finding:
    """What became of one promise. See `Difference`; tolerance is what rounding explains."""

    promise: str
    verdict: str
    difference: float | None = None
    control: float | None = None
    note: str = ""


class Judge:
    """Tries promises on a model in one number format, with a tolerance that is measured on it.

    A difference that rounding does not explain is looked at again in the next wider format, and there again: a leak is
    there in every format, and what rounding did is not.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        twin = wider(trial.subject)
        self.noise = measure_noise(trial, twin)
        self._twin = twin
        # without a wider format nothing tells a jump from a leak
        self.tolerance = ROUNDINGS * (self.noise.largest if twin is None else self.noise.calm)

    @cached_property
    def wider(self) -> "Judge | None":
        """The judge of the same model in the next wider format."""
        return None if self._twin is None else Judge(Trial(self._twin, self.trial.rows))

    def judge(self, name: str, promise: Callable[[Trial], Difference]) -> Finding:
        """Try one promise."""
        try:
            measure = promise(self.trial)
        except CannotBeTold as error:
            return Finding(name, UNKNOWN, note=str(error))
        except Refused as error:
            return Finding(name, REFUSES, note=str(error))
        except Exception as error:  # a model's way of saying no is its own
            if is_memory_error(error):
                raise
            return Finding(name, REFUSES, note=_said(error))
        verdict, note = self._verdict(promise, measure)
        return Finding(name, verdict, measure.difference, measure.control, note)

    def _verdict(self, promise: Callable[[Trial], Difference], measure: Difference) -> tuple[str, str]:
        if measure.difference > self.tolerance:
            again = self._without_rounding(promise)
            if again is None:
                return BROKEN, measure.note
            if measure.difference > ROUNDINGS * self.noise.largest:
                return UNKNOWN, f"{again:.0e} in a wider format: rounding, or a fault of this one"
        if measure.control is not None and measure.control <= self.tolerance:
            return UNKNOWN, "a fault would not show: nothing comes through"
        return HOLDS, measure.note

    def _without_rounding(self, promise: Callable[[Trial], Difference]) -> float | None:
        """Return the difference in the first wider format in which the promise holds; None where it does in none."""
        if self.wider is None:
            return None
        try:
            difference = promise(self.wider.trial).difference
        except Exception as error:  # it computes in this format, but not all of this
            if is_memory_error(error):
                raise
            return None
        return difference if difference <= self.wider.tolerance else self.wider._without_rounding(promise)


def _said(error: Exception) -> str:
    text = f"{type(error).__name__}: {one_line(error)}"
    return text if len(text) <= LONGEST_NOTE else text[: LONGEST_NOTE - 3] + "..."
