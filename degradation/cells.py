"""The cells of an experiment: one damage of the weights, at one level, in one repeat."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .configs import ExperimentConfig, level_key


@dataclass(frozen=True)
class Cell:
    """One level of one repeat. level None: the baseline of uni_quant; 0: that of the other methods."""

    level_index: int
    level: float | int | None
    repeat_index: int

    @property
    def key(self) -> str:
        """The level as text."""
        return level_key(self.level)

    @property
    def is_baseline(self) -> bool:
        return self.level is None or self.level == 0

    def name(self, config: ExperimentConfig) -> str:
        """Return what processes claim this cell by; safe in file names once `+`, `@` and commas are."""
        return f"{config.group}_{self.key}_{self.repeat_index}"


def cell_levels(config: ExperimentConfig) -> tuple[float | int | None, ...]:
    """Return the levels with the baseline among them: first, where the experiment names none."""
    levels = config.resolved_levels
    if config.method == "uni_quant":
        levels = tuple(None if level == 0 else level for level in levels)
    baseline = None if config.method == "uni_quant" else 0.0
    has_one = any(level is None or level == 0 for level in levels)
    return levels if has_one else (baseline, *levels)


def level_places(config: ExperimentConfig, others: Iterable[float | int | None] = ()) -> dict[str, int]:
    """Return the level_index of every level by its key.

    Args:
        others: levels that have rows from earlier runs. Where the experiment does not name all of them, all levels
            together are numbered from mild to severe.
    """
    levels = {level_key(level): level for level in cell_levels(config)}
    together = {level_key(level): level for level in others} | levels
    ordered = levels
    if len(together) > len(levels):
        ordered = sorted(together, key=lambda key: _severity(config, together[key]))
    return {key: place for place, key in enumerate(ordered)}


def _severity(config: ExperimentConfig, level: float | int | None) -> float:
    if level is None or level == 0:
        return -math.inf
    return -level if config.method == "uni_quant" else level


def make_cells(config: ExperimentConfig, others: Iterable[float | int | None] = ()) -> list[Cell]:
    """Return all cells, a repeat after the other, each from mild to severe as the levels stand; see `level_places`."""
    places = level_places(config, others)
    return [
        Cell(places[level_key(level)], level, repeat_index)
        for repeat_index in range(config.n_rep)
        for level in cell_levels(config)
    ]
