"""Selective copying: Poli et al. 2024, "MAD", arXiv:2403.17844; Gu & Dao 2023, arXiv:2312.00752.

    . 5 . . 2 7 . 1 | copy . . .      asked from the copy token on: 5 2 7 1, in the order they stood in

Tokens to be copied stand at random places among blanks; from the copy token on, blanks leave room for the answers.
(In MAD's code blanks are inserted before tokens only, so that the last token always stands at the end; here every
place is equally likely, and the copy token itself is where the first answer is read.)
Token ids: tokens to be copied, then the blank, then the copy token.
"""

from dataclasses import dataclass

import numpy as np

from frankenlm.modeling.outputs import IGNORED_LABEL

from .task import SyntheticRows, SyntheticTask, check_sizes, without_repetition


@dataclass(frozen=True)
class SelectiveCopying(SyntheticTask):
    """MAD's selective copying of `copied` tokens of `kinds` kinds."""

    length: int = 64
    copied: int = 8
    kinds: int = 14

    def __post_init__(self):
        check_sizes(self, copied=1, kinds=2)
        if self.length < 2 * self.copied:
            raise ValueError(
                f"copied={self.copied} do not fit into length={self.length}: each stands there twice, so at most "
                f"{self.length // 2}."
            )

    @property
    def vocab_size(self) -> int:
        return self.kinds + 2

    @property
    def answers(self) -> range:
        return range(self.kinds)

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        blank, copy = self.kinds, self.kinds + 1
        told = self.length - self.copied
        tokens = rng.integers(self.kinds, size=(rows, self.copied))
        inputs = np.full((rows, self.length), blank, dtype=np.int64)
        places = np.sort(without_repetition(told, rows, self.copied, rng), axis=1)
        np.put_along_axis(inputs, places, tokens, axis=1)
        inputs[:, told] = copy
        labels = np.full_like(inputs, IGNORED_LABEL)
        labels[:, told:] = tokens
        return SyntheticRows(inputs, labels)
