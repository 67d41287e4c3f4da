"""In-context recall and noisy in-context recall: Poli et al. 2024, "MAD", arXiv:2403.17844.

    k3 v7 k0 v2 k3 [v7] . . k0 [v2] ...      asked at a key that stood in the row before: its value

Keys are drawn with repetition and each keeps its value through the row; the answers are part of the row. The last pair
is always one that was there before. With `noise`, a place of a pair is taken by two tokens of a vocabulary of its own
with that probability, but for one place that always holds a pair.
Token ids: keys, then values, then noise.
"""

from dataclasses import dataclass

import numpy as np

from .task import SyntheticRows, SyntheticTask, check_sizes, next_token_labels, seen_before


@dataclass(frozen=True)
class InContextRecall(SyntheticTask):
    """MAD's recall; `noise`: the share of places taken by noise, of `noise_kinds` kinds of token."""

    length: int = 64
    keys: int = 8
    values: int = 8
    noise: float = 0.0
    noise_kinds: int = 0

    def __post_init__(self):
        check_sizes(self, length=4, keys=1, values=2, noise_kinds=0)
        if self.length % 2:
            raise ValueError(f"length={self.length} must be even: it is made of pairs.")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} must lie in [0, 1).")
        if bool(self.noise) != bool(self.noise_kinds):
            raise ValueError(
                f"noise={self.noise} and noise_kinds={self.noise_kinds} go together: give both, or leave both at 0."
            )

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + self.noise_kinds

    @property
    def answers(self) -> range:
        return range(self.keys, self.keys + self.values)

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        pairs = self.length // 2
        keys = rng.integers(self.keys, size=(rows, pairs))
        is_noise = rng.random((rows, pairs)) < self.noise
        np.put_along_axis(is_noise, rng.integers(pairs - 1, size=(rows, 1)), False, axis=1)
        is_noise[:, -1] = False
        keys[is_noise] = -1  # no key
        keys[:, -1] = self._one_of(keys[:, :-1], rng)
        value_of = self.keys + rng.integers(self.values, size=(rows, self.keys))
        values = np.take_along_axis(value_of, keys, axis=1)  # at noise of no meaning
        tokens = np.stack([keys, values], axis=2)  # (B, P, 2)
        tokens[is_noise] = self.keys + self.values + rng.integers(self.noise_kinds or 1, size=(is_noise.sum(), 2))
        is_answer = np.zeros(tokens.shape, dtype=bool)
        is_answer[:, :, 1] = seen_before(keys) & ~is_noise
        # the last value is asked for and read by nobody, so that inputs are one token shorter than `length`
        return next_token_labels(tokens.reshape(rows, -1), is_answer.reshape(rows, -1))

    def _one_of(self, keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A key of each row of (B, P), every one that is there equally likely: (B,)."""
        is_there = (keys[:, :, None] == np.arange(self.keys)).any(axis=1)  # (B, K)
        return np.where(is_there, rng.random(is_there.shape), -1.0).argmax(axis=1)
