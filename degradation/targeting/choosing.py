"""Which units a lesion removes: the most important ones, or as many of the same layers, drawn."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..damage.chosen import Chosen
from ..damage.noise import derive_key, fill_words
from ..weights.units import UnitTable

NAMED = 100  # units that a lesion record names


@dataclass(frozen=True, eq=False)
class Ranking:
    """The scores of a group's units and how a repeat reads them.

    scores: float32 [rows, units], see `importance.py`. seed: seed_base of the experiment. shuffled: each repeat
    shuffles them. Every repeat draws prompts, with replacement, where there is a row for each: its most important units
    are those of another sample of the task.
    """

    table: UnitTable
    scores: np.ndarray
    seed: int
    shuffled: bool = False

    def of_repeat(self, repeat: int) -> np.ndarray:
        """Return the score of each unit in a repeat, float64 [units]."""
        rows = len(self.scores)
        drawn = self._words(repeat, "prompts", rows).astype(np.uint64) * np.uint64(rows) >> np.uint64(32)
        scores = self.scores[drawn.astype(np.int64)].astype(np.float64).mean(0)
        return scores[self._order(repeat, "shuffle", len(scores))] if self.shuffled else scores

    def most_important(self, repeat: int, count: int) -> np.ndarray:
        """Return which units are the `count` most important ones, bool [units]; of equal ones the first."""
        order = np.argsort(-self.of_repeat(repeat), kind="stable")
        return _marked(order[:count], self.table.count)

    def matched(self, repeat: int, count: int) -> np.ndarray:
        """Return as many units, drawn in each place where the most important ones are, as those are there."""
        important = self.most_important(repeat, count)
        drawn = [
            place.first + self._order(repeat, place.name, place.count)[: important[place.slots].sum()]
            for place in self.table.places
        ]
        return _marked(np.concatenate(drawn), self.table.count)

    def _words(self, repeat: int, what: str, count: int) -> np.ndarray:
        words = np.empty(count, dtype=np.uint32)
        fill_words(derive_key(f"target1|{self.seed}|{repeat}|{what}"), 0, words)
        return words

    def _order(self, repeat: int, what: str, count: int) -> np.ndarray:
        """Return a random order; the first of it are the same for every count of units: lesions of a repeat nest."""
        return np.argsort(self._words(repeat, what, count), kind="stable")


def _marked(numbers: np.ndarray, count: int) -> np.ndarray:
    marks = np.zeros(count, dtype=bool)
    marks[numbers] = True
    return marks


def removed(ranking: Ranking, method: str, repeat: int, count: int) -> np.ndarray:
    """Return the units that a method of `configs.TARGETED` removes, bool [units]."""
    return (ranking.most_important if method == "targeted" else ranking.matched)(repeat, count)


def chosen_of(table: UnitTable, marks: np.ndarray) -> dict[str, Chosen]:
    """Return what `apply_damage` needs of them, by the label of each target."""
    return {
        own.target.label: Chosen(own.layout, own.kind, own.numbers, marks[own.slots].copy()) for own in table.targets
    }


def told(table: UnitTable, marks: np.ndarray) -> Mapping[str, object]:
    """Return what a lesion record says of them: how many of each layer, and the names of the first ones."""
    numbers = np.flatnonzero(marks)
    layers: dict[str, int] = {}
    for place in table.places:
        here = int(marks[place.slots].sum())
        if here:
            # towers have layers of equal numbers, and names that tell no layer are told whole
            key = str(place.layer) if place.layer is not None and place.name.startswith("text/") else place.name
            layers[key] = layers.get(key, 0) + here
    return {
        "units": len(numbers),
        "units_by_layer": layers,
        "units_named": [table.name(int(number)) for number in numbers[:NAMED]],
    }
