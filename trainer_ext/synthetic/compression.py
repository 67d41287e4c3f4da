"""Compression: Poli et al. 2024, "MAD", arXiv:2403.17844.

    4 9 0 3 ... | end      asked at the end, for each place by its number: the token that stood there

All of the row is to be read from the last position: a model's state there, with the number of a place added to it,
goes through a small network (`PlaceReader` in models.py), as in the paper's autoencoder. Labels therefore stand at the
places of the tokens themselves, and none at the end token.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from frankenlm.modeling.outputs import IGNORED_LABEL

from .task import SyntheticRows, SyntheticTask, check_sizes


@dataclass(frozen=True)
class Compression(SyntheticTask):
    """MAD's compression of a row of `kinds` kinds of token."""

    reads_last: ClassVar[bool] = True

    length: int = 16
    kinds: int = 15

    def __post_init__(self):
        check_sizes(self, length=2, kinds=2)

    @property
    def vocab_size(self) -> int:
        return self.kinds + 1

    @property
    def answers(self) -> range:
        return range(self.kinds)

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        inputs = rng.integers(self.kinds, size=(rows, self.length))
        inputs[:, -1] = self.kinds
        labels = inputs.copy()
        labels[:, -1] = IGNORED_LABEL
        return SyntheticRows(inputs, labels)
