"""Memorization: Poli et al. 2024, "MAD", arXiv:2403.17844: facts that no row tells.

    k3 ? k0 ? k3 ? ...      asked at each "?": the value of the key before it, by a table that all rows share

The table is a permutation drawn once, from `table_seed`; it is the same in training and test, and what differs is
which keys a row has. A row holds no value.
Token ids: keys, then values, then the token "?".
"""

from dataclasses import dataclass

import numpy as np

from frankenlm.modeling.outputs import IGNORED_LABEL

from .task import SyntheticRows, SyntheticTask, check_sizes


@dataclass(frozen=True)
class Memorization(SyntheticTask):
    """MAD's memorization of `facts` keys, each with a value of its own."""

    length: int = 32
    facts: int = 127
    table_seed: int = 12345

    def __post_init__(self):
        check_sizes(self, length=2, facts=2, table_seed=0)
        if self.length % 2:
            raise ValueError(f"length={self.length} must be even: a key and its question take two tokens.")

    @property
    def vocab_size(self) -> int:
        return 2 * self.facts + 1

    @property
    def answers(self) -> range:
        return range(self.facts, 2 * self.facts)

    def table(self) -> np.ndarray:
        """The value of each key, (facts,)."""
        return self.facts + np.random.default_rng(self.table_seed).permutation(self.facts)

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        keys = rng.integers(self.facts, size=(rows, self.length // 2))
        inputs = np.full((rows, self.length), 2 * self.facts, dtype=np.int64)
        inputs[:, ::2] = keys
        labels = np.full_like(inputs, IGNORED_LABEL)
        labels[:, 1::2] = self.table()[keys]
        return SyntheticRows(inputs, labels)
