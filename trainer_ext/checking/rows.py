"""The rows that promises are tried on: random ids, the same for the same seed.

Long enough for several chunks and windows of a tiny model, and odd; documents of one token, shorter and longer than a
window.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

LENGTH = 23
FIRST_ID = 4  # below it are the ids that tiny configurations keep for special tokens
DOCUMENTS = (7, 1, 9, 6)


@dataclass(frozen=True)
class Rows:
    """Draws ids from a vocabulary, without those in `special`."""

    vocabulary: int
    special: frozenset[int]
    seed: int

    def draw(self, rows: int, length: int = LENGTH, which: int = 0) -> torch.Tensor:
        """Return (rows, length) int64; another `which` gives other ids."""
        allowed = range(min(FIRST_ID, self.vocabulary // 2), self.vocabulary)
        ids = torch.tensor([each for each in allowed if each not in self.special])
        generator = torch.Generator().manual_seed(self.seed * 1000 + which)
        return ids[torch.randint(len(ids), (rows, length), generator=generator)]

    def other(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ids of the same shape that differ from these at every place."""
        candidates = self.draw(*ids.shape, which=7)
        again = self.draw(*ids.shape, which=8)
        mixed = torch.where(candidates == ids, again, candidates)
        return torch.where(mixed == ids, torch.where(ids == self.vocabulary - 1, ids - 1, ids + 1), mixed)


def special_ids(config: PreTrainedConfig) -> frozenset[int]:
    """Return the ids of a configuration's special tokens."""
    found = [value for name, value in config.to_dict().items() if name.endswith("token_id")]
    flat = [each for value in found for each in (value if isinstance(value, list) else [value])]
    return frozenset(each for each in flat if isinstance(each, int))
