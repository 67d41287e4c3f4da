"""The levels of a damage method as places on a line, from undamaged to broken."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from ..configs import ALL_METHODS, Scale

UNKNOWN = Scale("level", "damage level")


@dataclass(frozen=True, eq=False)
class LevelAxis:
    """Levels, mild to severe, and their positions: σ and p themselves; for N, −log₂ N.

    The baseline of uni_quant has no N: its level is None, and it stands one step before the mildest N.
    """

    method: str
    levels: tuple[float | None, ...]
    positions: numpy.ndarray

    @classmethod
    def of(cls, method: str, levels: Sequence[float | None], baseline: bool) -> "LevelAxis":
        """Order the damaged `levels` (each once, no baseline among them); `baseline` puts that first."""
        if method != "uni_quant":
            ordered = sorted(levels)
            kept = ([0.0] if baseline else []) + ordered
            return cls(method, tuple(kept), numpy.array(kept, dtype=numpy.float64))
        ordered = sorted(levels, reverse=True)
        places = -numpy.log2(numpy.array(ordered, dtype=numpy.float64))
        if not baseline:
            return cls(method, tuple(ordered), places)
        step = float(numpy.median(numpy.diff(places))) if len(places) > 1 else 1.0
        first = places[0] - step if len(places) else 0.0
        return cls(method, (None, *ordered), numpy.concatenate([[first], places]))

    @property
    def has_baseline(self) -> bool:
        """Whether the first level is the undamaged one."""
        return bool(self.levels) and self.levels[0] in (None, 0.0)

    @property
    def symbol(self) -> str:
        return ALL_METHODS.get(self.method, UNKNOWN).symbol

    @property
    def label(self) -> str:
        return ALL_METHODS.get(self.method, UNKNOWN).meaning

    def level_at(self, position: float) -> float | None:
        """Return the level of a position; None milder than the mildest N, where there is no number for it."""
        if self.method != "uni_quant":
            return float(position)
        damaged = [place for place, level in zip(self.positions, self.levels, strict=True) if level is not None]
        return None if not damaged or position < damaged[0] else float(2.0**-position)

    def text_at(self, position: float) -> str:
        """Return a position as a reader's number, such as "0.432", "p"-free; "above 1024" before the mildest N."""
        level = self.level_at(position)
        if level is not None:
            return number(level)
        named = [entry for entry in self.levels if entry is not None]
        return f"above {number(named[0])}" if named else "baseline"

    def ticks(self) -> tuple[list[float], list[str]]:
        """Return places and labels of all levels, for an axis where each level is named."""
        return list(self.positions), [level_text(level) for level in self.levels]


def number(value: float) -> str:
    """Three significant digits, without exponent where that stays readable."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def level_text(level: float | None) -> str:
    """A level as a label; None is the baseline of uni_quant."""
    return "none" if level is None else f"{level:g}"
