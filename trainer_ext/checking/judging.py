"""From what was measured to a verdict: holds, broken, refuses, or cannot be told."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ..common.cli import is_memory_error, one_line
from .measure import Difference
from .noise import FINEST, ROUNDINGS, measure_noise, wider
from .promises.lasting import save_and_load
from .promises.reading import repeated
from .subject import CannotBeTold, Refused
from .trial import Trial

HOLDS, BROKEN, REFUSES, UNKNOWN = "holds", "broken", "refuses", "cannot be told"
VERDICTS = (HOLDS, BROKEN, REFUSES, UNKNOWN)
NARROW = (torch.bfloat16, torch.float16)
# Above these nothing is said to hold, however much rounding moves a model: a fault could be as large.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}
ALIKE = 0.01  # of a difference: in another format a fault is as large, a jump is another one
LONGEST_NOTE = 110

Promise = Callable[[Trial], Difference]


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

    A difference that this rounding does not explain is looked at again, on other rows and in a wider format: a fault is
    there each time, and a jump (two experts that are equally good, a value on the edge between two steps) is not. In
    formats of 16 bits rounding hides small faults, so that the wider format is always asked.

    A model that answers the same input in two ways is told so, and no more: nothing of it can be compared.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self._twin = wider(trial.subject)
        self.noise = measure_noise(trial, self._twin)
        # without a wider format nothing tells a jump from a leak
        self.rounding = ROUNDINGS * (self.noise.largest if self._twin is None else self.noise.calm)
        self.tolerance = min(self.rounding, BOUNDS[trial.subject.dtype])

    @cached_property
    def wider(self) -> "Judge | None":
        """The judge of the same model in the next wider format."""
        return None if self._twin is None else Judge(Trial(self._twin, self.trial.rows))

    @cached_property
    def repeats(self) -> bool:
        """Whether the same input gives the same output."""
        return self._tried("", repeated).verdict != BROKEN

    def judge(self, name: str, promise: Promise) -> Finding:
        """Try one promise."""
        if promise is not repeated and not self.repeats:
            return Finding(name, UNKNOWN, note="the same input gives other outputs: nothing can be compared")
        return self._tried(name, promise)

    def _tried(self, name: str, promise: Promise) -> Finding:
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
        # what is saved and opened again computes in the same order: there is no rounding to look beneath
        narrow = self.trial.subject.dtype in NARROW and promise is not save_and_load and self.wider is not None
        verdict, note = self._by_wider(name, promise, measure) if narrow else self._verdict(promise, measure)
        return Finding(name, verdict, measure.difference, measure.control, note)

    def _verdict(self, promise: Promise, measure: Difference) -> tuple[str, str]:
        if promise is repeated:  # nothing rounds in another way here, but for sums in no fixed order
            still = measure.difference <= max(torch.finfo(self.trial.subject.dtype).eps, ROUNDINGS * FINEST)
            return (HOLDS, measure.note) if still else (BROKEN, "not deterministic")
        if not measure.difference <= self.tolerance:  # NaN is no proof
            if self.wider is None and measure.difference <= self.rounding:
                return UNKNOWN, f"rounding alone moves it by {self.noise.largest:.0e}, as a fault may"
            if self._again(promise) or self._same_in_wider(promise, measure):
                return BROKEN, measure.note
            if not measure.difference <= ROUNDINGS * self.noise.largest:
                return UNKNOWN, "differs on some rows only: a tie or a jump"
        if measure.control is not None and measure.control <= self.tolerance:
            return UNKNOWN, "a fault would not show: nothing comes through"
        return HOLDS, measure.note

    def _again(self, promise: Promise) -> bool:
        """Whether a difference is there on other rows too, and in the wider format."""
        others = [self._differs(promise, self.trial.on_other_rows(which)) for which in (1, 2)]
        if not any(others):
            return False
        wide = self.wider
        return wide is None or wide._differs(promise, wide.trial)

    def _same_in_wider(self, promise: Promise, measure: Difference) -> bool:
        """Whether these rows differ as much in the wider format: no tie, but a fault that depends on the tokens."""
        if self.wider is None:
            return False
        try:
            there = promise(self.wider.trial).difference
        except Exception as error:  # it computes in this format, but not all of this
            if is_memory_error(error):
                raise
            return False
        return abs(there - measure.difference) <= ALIKE * measure.difference

    def _differs(self, promise: Promise, trial: Trial) -> bool:
        try:
            return not promise(trial).difference <= self.tolerance
        except Exception as error:  # it computes in this format, but not all of this: nothing speaks against a fault
            if is_memory_error(error):
                raise
            return True

    def _by_wider(self, name: str, promise: Promise, measure: Difference) -> tuple[str, str]:
        """What the wider format says, unless this one has a fault of its own."""
        found = self.wider.judge(name, promise)
        if found.verdict == HOLDS and not measure.difference <= ROUNDINGS * self.noise.largest:
            return UNKNOWN, f"{found.difference:.0e} in a wider format: rounding, or a fault of this one"
        return found.verdict, found.note


def _said(error: Exception) -> str:
    text = f"{type(error).__name__}: {one_line(error)}"
    return text if len(text) <= LONGEST_NOTE else text[: LONGEST_NOTE - 3] + "..."
