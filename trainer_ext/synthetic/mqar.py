"""Multi-query associative recall (MQAR): Arora et al. 2023, "Zoology", arXiv:2312.04927.

    k3 v7 k0 v2 ... | k0 . . . k3 . . k1 ...        asked at each key of the second part: its value

Every key of a row is given one value, and is asked for once. The distance of a query from the pairs follows a power
law, as repetitions do in text: slot i of the second part (two tokens each) is taken with a weight of i^(a - 1),
a = 0.01. Between the queries stands token 0, as in the published figure; with `random_filler` a token drawn from the
whole vocabulary, which in a small one may look like a pair. The answers themselves are not part of the row.
Token ids: 0 the filler, then keys, then values.
"""

from dataclasses import dataclass

import numpy as np

from frankenlm.modeling.outputs import IGNORED_LABEL

from .task import SyntheticRows, SyntheticTask, check_sizes, without_repetition


@dataclass(frozen=True)
class MultiQueryRecall(SyntheticTask):
    """MQAR. `keys` and `values` are kinds of token, `pairs` of them stand in a row; `power`: a of the power law."""

    length: int = 64
    pairs: int = 8
    keys: int = 64
    values: int = 64
    power: float = 0.01
    random_filler: bool = False

    def __post_init__(self):
        check_sizes(self, pairs=1)
        if self.length % 2:
            raise ValueError(f"length={self.length} must be even: a query and its answer's place take two tokens.")
        if 4 * self.pairs > self.length:
            raise ValueError(
                f"pairs={self.pairs} do not fit into length={self.length}: each takes 4 tokens, so at most "
                f"{self.length // 4}."
            )
        for field in ("keys", "values"):
            if self.__dict__[field] < self.pairs:
                raise ValueError(
                    f"{field}={self.__dict__[field]} must be at least pairs={self.pairs}: a row has each once."
                )
        if not 0 < self.power <= 1:
            raise ValueError(f"power={self.power} must lie in (0, 1]; 1 spreads the queries evenly.")

    @property
    def vocab_size(self) -> int:
        return 1 + self.keys + self.values

    @property
    def answers(self) -> range:
        return range(1 + self.keys, self.vocab_size)

    @property
    def chance(self) -> float:
        """One of the values that stand in the row."""
        return 1 / self.pairs

    def query_slots(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """The slot of each pair's query, (B, P): without repetition, by the weights of the power law."""
        slots = (self.length - 2 * self.pairs) // 2
        weights = np.arange(1, slots + 1, dtype=float) ** (self.power - 1)
        # The largest of log(weight) + Gumbel noise are a draw without replacement (Efraimidis & Spirakis 2006).
        scores = np.log(weights) + rng.gumbel(size=(rows, slots))
        return scores.argsort(axis=1)[:, ::-1][:, : self.pairs]

    def draw(self, rows: int, rng: np.random.Generator, *, is_test: bool = False) -> SyntheticRows:
        keys = 1 + without_repetition(self.keys, rows, self.pairs, rng)
        values = 1 + self.keys + without_repetition(self.values, rows, self.pairs, rng)
        told = np.stack([keys, values], axis=2).reshape(rows, -1)
        # taken in order of their weights, slots would go to early pairs first: which pair gets which is drawn
        slots = rng.permuted(self.query_slots(rows, rng), axis=1)
        places = 2 * self.pairs + 2 * slots
        inputs = np.zeros((rows, self.length), dtype=np.int64)
        if self.random_filler:
            inputs[:] = rng.integers(self.vocab_size, size=inputs.shape)
        inputs[:, : 2 * self.pairs] = told
        np.put_along_axis(inputs, places, keys, axis=1)
        labels = np.full_like(inputs, IGNORED_LABEL)
        np.put_along_axis(labels, places, values, axis=1)
        return SyntheticRows(inputs, labels)
