"""Damage that removes units somebody has chosen: heads, neurons, experts, rows, columns or single elements."""

from dataclasses import dataclass

import numpy as np

from .layout import Layout, Piece


@dataclass(frozen=True, eq=False)
class Chosen:
    """The units of one target that are removed.

    kind: row, column, head or expert of `Layout.unit_of`, or element. numbers: the sorted numbers that the target's
    units have there; for elements None, they go by their places in the runs. removed: bool, one for each unit.
    """

    layout: Layout
    kind: str
    numbers: np.ndarray | None
    removed: np.ndarray

    def of(self, piece: Piece) -> np.ndarray:
        """Return which of a piece's elements are removed, bool [numel]."""
        if self.numbers is None:
            rows = self.removed.reshape(self.layout.outer, self.layout.length)
            return piece.of(rows).reshape(-1)
        found = np.searchsorted(self.numbers, self.layout.numbers(self.kind, piece))
        return self.removed[found]


class ChosenDamage:
    """Chosen units are zero, the others keep their bits."""

    draws = on_device = False

    def __init__(self, chosen: Chosen):
        self.chosen = chosen

    def apply(self, values: np.ndarray, drawn: None, piece: Piece, out: np.ndarray) -> None:
        """Write the damaged values to `out`; float32 or float64 [count]."""
        np.copyto(out, np.where(self.chosen.of(piece), 0, values))

    def occupied(self) -> int | None:
        return None
