"""What changes from epoch to epoch, and is the same again in a run that goes on: the order of batches by length, and
where packed blocks are cut, so that no token keeps the context that its block leaves it.

The blocks in their order are one long text; in epoch e all cuts move by an offset that (seed, e) decides. Row i is then
the end of block i and the beginning of block i + 1, every token stands in one row, and the last row ends with what the
first one lost. A document that went on in the next block is whole again where no cut is left in it.
"""

import hashlib
import mmap
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler

from .packing import template_ids
from .tokenizers import begin_id

# The column with a row's number; the Trainer must leave it, as it does `seq_lengths`.
PLACE = "place"


class EpochLengthSampler(LengthGroupedSampler):
    """Batches by length, in an order that depends on (seed, epoch) alone; accelerate calls `set_epoch`."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def with_random_offsets(
    rows: Dataset, collator: Callable, tokenizer: PreTrainedTokenizerFast, *, max_length: int, seed: int
) -> tuple[Dataset, "ShiftingCollator"]:
    """Return the packed rows with their numbers, and a collator around `collator` that moves their cuts.

    Raises:
        ValueError: conversations, or rows that are not packed, which have no cuts.
    """
    if "labels" in rows.column_names or "length" in rows.column_names:
        raise ValueError("--random_offsets moves the cuts between packed blocks, and each of these rows is a document.")
    prefix = template_ids(tokenizer)[0]
    begin = prefix[0] if prefix else begin_id(tokenizer)
    numbered = rows.add_column(PLACE, np.arange(len(rows)))
    return numbered, ShiftingCollator(collator, rows, begin, max_length=max_length, seed=seed)


class ShiftingCollator:
    """Fetches what a row is in this epoch, and hands it to the collator inside.

    rows: the packed blocks. begin: the id that a document begins with, None where there is none.
    """

    def __init__(self, inside: Callable, rows: Dataset, begin: int | None, *, max_length: int, seed: int):
        self.inside, self.rows, self.begin = inside, rows, begin
        self.max_length, self.seed = max_length, seed
        # forked loader workers see it change, as in MaskingCollator
        self._epoch = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.long)

    def set_epoch(self, epoch: int) -> None:
        """Cut at other places from now on, in loader workers too."""
        self._epoch.fill_(epoch)
        if hasattr(self.inside, "set_epoch"):
            self.inside.set_epoch(epoch)

    @property
    def offset(self) -> int:
        """How far the cuts have moved in this epoch, from 0 to max_length - 1."""
        key = np.asarray([self.seed, int(self._epoch)], np.int64).tobytes()
        drawn = hashlib.blake2b(b"offset", digest_size=8, key=key).digest()
        return int.from_bytes(drawn, "little") % self.max_length

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        return self.inside([self.shifted(int(row[PLACE])) for row in rows])

    def shifted(self, place: int) -> dict:
        """Return the row at a place: input_ids, and seq_lengths where documents are apart."""
        follower, offset = (place + 1) % len(self.rows), self.offset
        here, there = self.rows[place], self.rows[follower]
        row = {"input_ids": [*here["input_ids"][offset:], *there["input_ids"][:offset]]}
        if "seq_lengths" in here:
            left = _cut(here["seq_lengths"], offset, self.max_length)
            right = _cut(there["seq_lengths"], 0, offset)
            goes_on = follower and left and right and self._continues(there)
            row["seq_lengths"] = [*left[:-1], left[-1] + right[0], *right[1:]] if goes_on else [*left, *right]
        return row

    def _continues(self, block: dict) -> bool:
        """Whether a block begins amid a document: with another id than documents do, or with what only can end one."""
        return block["input_ids"][0] != self.begin or block["seq_lengths"][0] == 1


def _cut(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    """Return how long each document of a block is between two places, those without a token there left out."""
    ends = np.cumsum(lengths)
    inside = np.minimum(ends, stop) - np.maximum(ends - np.asarray(lengths), start)
    return inside[inside > 0].tolist()
