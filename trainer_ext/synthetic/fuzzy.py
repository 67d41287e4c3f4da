"""Fuzzy in-context recall: Poli et al. 2024, "MAD", arXiv:2403.17844: keys and values of several tokens.

    k1 k4 v2 | k3 v0 v5 v1 | ... | k1 k4 [v2]     asked behind a key that was there before: its value, token by token

A key is one to `longest` different key tokens, a value one to `longest` different value tokens, all lengths equally
likely; a key keeps its value through the row, and the answers are part of the row. The last pair was there before. In
test rows every key has `longest` tokens. Rows are filled with whole pairs and padded at their left.
Token ids: key tokens, then value tokens, then the pad.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from .task import SyntheticRows, SyntheticTask, check_sizes, next_token_labels, seen_before

ABSENT = -1


@dataclass(frozen=True)
class FuzzyRecall(SyntheticTask):
    """MAD's fuzzy recall. `keys` and `values`: kinds of key tokens and of value tokens."""

    length: int = 64
    keys: int = 7
    values: int = 8
    longest: int = 3

    def __post_init__(self):
        check_sizes(self, longest=1, keys=self.longest, values=max(2, self.longest))
        if self.length + 1 < 4 * self.longest:
            raise ValueError(
                f"length={self.length} must be at least {4 * self.longest - 1}: two pairs of {self.longest} and "
                f"{self.longest} tokens."
            )

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + 1

    @property
    def answers(self) -> range:
        return range(self.keys, self.keys + self.values)

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        key_words, value_words = words(self.keys, self.longest), words(self.values, self.longest) + self.keys
        value_words[value_words < self.keys] = ABSENT
        most = (self.length + 1) // 2
        lengths = (self.longest,) if is_test else range(1, self.longest + 1)
        # (B, P) ids of words; the value of a key is one word for the whole row
        keys = draw_words(self.keys, self.longest, lengths, (rows, most), rng)
        every_length = range(1, self.longest + 1)
        value_of = draw_words(self.values, self.longest, every_length, (rows, len(key_words)), rng)
        # the pair asked for at the end stands at a place that is kept in every row
        probe = rng.integers((self.length + 1) // (2 * self.longest) - 1, size=(rows, 1))
        asked = np.take_along_axis(keys, probe, axis=1)
        values = np.take_along_axis(value_of, keys, axis=1)
        pairs = np.concatenate([key_words[keys], value_words[values]], axis=2)  # (B, P, 2 longest)
        pairs[~self._fits(pairs, np.take_along_axis(pairs, probe[:, :, None], axis=1))] = ABSENT
        last = np.take_along_axis(pairs, probe[:, :, None], axis=1)
        pairs = np.concatenate([pairs, last], axis=1)
        repeated = seen_before(np.concatenate([keys, asked], axis=1))
        is_answer = np.broadcast_to(repeated[:, :, None], pairs.shape) & (np.arange(pairs.shape[2]) >= self.longest)
        return self._rows(pairs.reshape(rows, -1), is_answer.reshape(rows, -1))

    def _fits(self, pairs: np.ndarray, probe: np.ndarray) -> np.ndarray:
        """Which pairs of (B, P, T) are kept, (B, P): as many as leave room for the one at the end, (B, 1, T)."""
        ends = (pairs != ABSENT).sum(axis=2).cumsum(axis=1)
        return ends <= self.length + 1 - (probe != ABSENT).sum(axis=2)

    def _rows(self, tokens: np.ndarray, is_answer: np.ndarray) -> SyntheticRows:
        """Close the gaps of (B, T): present tokens to the right, pads at the left."""
        order = (tokens != ABSENT).argsort(axis=1, kind="stable")[:, -(self.length + 1) :]
        tokens, is_answer = (np.take_along_axis(each, order, axis=1) for each in (tokens, is_answer))
        is_pad = tokens == ABSENT
        return next_token_labels(np.where(is_pad, self.vocab_size - 1, tokens), is_answer & ~is_pad)


@functools.cache
def _words(kinds: int, longest: int) -> np.ndarray:
    found = [word for length in range(1, longest + 1) for word in itertools.permutations(range(kinds), length)]
    return np.array([word + (ABSENT,) * (longest - len(word)) for word in found])


def words(kinds: int, longest: int) -> np.ndarray:
    """Every sequence of 1 to `longest` different tokens below `kinds`, shortest first: (W, longest), -1 behind."""
    return _words(kinds, longest).copy()


def draw_words(kinds: int, longest: int, lengths, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Indices into `words`, of the given lengths, each equally likely, and each word of a length too."""
    sizes = (words(kinds, longest) != ABSENT).sum(axis=1)
    first, count = (np.array([of(sizes == length) for length in lengths]) for of in (np.argmax, np.sum))
    chosen = rng.integers(len(first), size=shape)
    return first[chosen] + rng.integers(count[chosen])
