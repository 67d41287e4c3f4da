"""What every synthetic task promises.

A task draws rows of token ids and, for each position, the token that a model is asked for once it has read the row up
to there: labels are not shifted, as in the papers. Where nothing is asked the label is -100. The answer is always
decided by what stands before it in the row (or, in memorization, by a table that every row shares).
Shapes: B rows, L tokens.
"""

import abc
import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from frankenlm.modeling.outputs import IGNORED_LABEL

GUESSED_ROWS = 2048


@dataclass(frozen=True)
class SyntheticRows:
    """Rows of a task. inputs: (B, L) int64 token ids. labels: (B, L) int64, what is asked there, or -100."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def apart_from(self, others: set[bytes]) -> "SyntheticRows":
        """The rows that are not among `others`, which are bytes as `keys` returns them."""
        kept = [index for index, key in enumerate(self.keys()) if key not in others]
        return self if len(kept) == len(self) else SyntheticRows(self.inputs[kept], self.labels[kept])

    def keys(self) -> list[bytes]:
        """One value for each row that tells its inputs from those of others."""
        return [row.tobytes() for row in self.inputs]


@dataclass(frozen=True)
class SyntheticTask(abc.ABC):
    """A task of some size.

    `reads_last`: every label is to be read from the last position alone, through its number (compression).
    """

    reads_last: ClassVar[bool] = False

    length: int

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Token ids lie below it."""

    @property
    @abc.abstractmethod
    def answers(self) -> range:
        """The token ids that an answer may be."""

    @property
    def chance(self) -> float:
        """The accuracy of a guess that knows the row, but not what is asked: `guessing` over many rows."""
        return _chance(self)

    @abc.abstractmethod
    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        """Draw rows; where training and test differ, `is_test` says which are wanted."""


def guessing(task: SyntheticTask, rows: SyntheticRows) -> float:
    """The accuracy of answering with whatever possible answer stood in the row most often so far.

    Of several it is the lowest id, as it is where none stood there yet. Where all is read from the last position, the
    whole row counts.
    """
    everyone = np.arange(len(rows))
    counts = np.zeros((len(rows), task.vocab_size), dtype=np.int64)
    best = np.full(len(rows), task.answers.start)
    guesses = np.empty_like(rows.labels)
    for place, tokens in enumerate(rows.inputs.T):
        may_be = (tokens >= task.answers.start) & (tokens < task.answers.stop)
        counts[everyone, tokens] += may_be
        ours, theirs = counts[everyone, tokens], counts[everyone, best]
        best = np.where(may_be & ((ours > theirs) | ((ours == theirs) & (tokens < best))), tokens, best)
        guesses[:, place] = best
    if task.reads_last:
        guesses[:] = best[:, None]
    is_asked = rows.labels != IGNORED_LABEL
    return float((guesses == rows.labels)[is_asked].mean())


@functools.cache
def _chance(task: SyntheticTask) -> float:
    return round(guessing(task, task.draw(GUESSED_ROWS, np.random.default_rng(0), is_test=True)), 4)


def check_sizes(task: SyntheticTask, **least: int) -> None:
    """Raises ValueError for a field below its least value, by name."""
    for field, smallest in least.items():
        value = task.__dict__[field]
        if value < smallest:
            raise ValueError(f"{field}={value} must be at least {smallest}.")


def without_repetition(choices: int, rows: int, picks: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `picks` different numbers below `choices` for each row, in random order: (rows, picks)."""
    return rng.random((rows, choices)).argsort(axis=1)[:, :picks]


def seen_before(keys: np.ndarray) -> np.ndarray:
    """Whether each entry of (B, P) stands further left in its row as well."""
    same = keys[:, :, None] == keys[:, None, :]  # (B, P, P)
    return (same & np.tri(keys.shape[1], k=-1, dtype=bool)).any(axis=2)


def next_token_labels(tokens: np.ndarray, is_answer: np.ndarray) -> SyntheticRows:
    """Rows in which the answers stand themselves: each is asked for at the position before it.

    Args:
        tokens: (B, L + 1). is_answer: (B, L + 1) bool.
    """
    return SyntheticRows(tokens[:, :-1], np.where(is_answer[:, 1:], tokens[:, 1:], IGNORED_LABEL))
