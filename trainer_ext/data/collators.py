"""From rows of token ids to padded batches: masked, causal and classification.

Masking is a function of (seed, epoch, the row's own ids), not of a generator that is consumed as batches go by:

- evaluation masks the same positions every time, whatever the batch size, the order or the number of processes;
- training masks a row anew each epoch, and a resumed run masks exactly as the unbroken one would have. With torch's
  global generator it would not: the loader collates a batch ahead of the step it is used in, so the state saved with
  a checkpoint has already been advanced by a batch that the resumed run collates again;
- loader workers change nothing, and nothing has to be saved.

The epoch is told to the collator by `MaskingEpochs` of callbacks.py. It lives in shared memory, so persistent
loader workers see it too. `for_evaluation()` gives the twin that never leaves epoch "evaluation".
"""

import hashlib
import mmap
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from frankenlm.modeling.checks import check_choice
from frankenlm.modeling.outputs import IGNORED_LABEL

from ..common.objectives import OBJECTIVES
from .blocks import number_documents, without_first
from .tokenizers import special_token_ids

_EVALUATION = -1  # the epoch of evaluation; training counts from 0

MASK_SHARE = 0.8  # of the chosen positions: replaced by the mask token (Devlin et al. 2019, arXiv:1810.04805, 3.1)
RANDOM_SHARE = 0.1  # replaced by a random token; the rest stays as it is

Batch = dict[str, torch.Tensor]


def build_collator(
    objective: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    mlm_probability: float = 0.15,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
) -> Callable[[Sequence[dict]], Batch]:
    """Return the collator of an objective: a list of rows -> input_ids, attention_mask, labels (all int64).

    Rows need `input_ids` (and `labels` for classification; conversations bring theirs). `seq_lengths`, the lengths of a
    row's documents, give the batch `seq_idx` [B, T], which tells them apart; other columns are ignored.
    `input_ids` and `attention_mask` are [B, T] with T the longest row, rounded up to `pad_to_multiple_of`; `labels` are
    [B, T] with -100 where nothing is predicted ([B] for classification). Every collator has `for_evaluation()`.

    mlm_probability: share of the ordinary tokens that are predicted, in (0, 1).
    Raises ValueError where the tokenizer lacks the pad or mask token (`load_tokenizer` adds them).
    """
    check_choice("objective", objective, OBJECTIVES)
    padder = Padder(tokenizer, pad_to_multiple_of)
    if objective == "mlm":
        return MaskingCollator(tokenizer, padder, mlm_probability=mlm_probability, seed=seed)
    return CausalCollator(padder) if objective == "causal" else ClassificationCollator(padder)


class Padder:
    """Stacks rows of different lengths, on the tokenizer's padding side."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pad_to_multiple_of: int | None = None):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad token; load it with load_tokenizer, which adds one.")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} must be at least 1.")
        self.pad_id = tokenizer.pad_token_id
        self.left = tokenizer.padding_side == "left"
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        """Return int64 [B, T], short rows filled up with `value`."""
        width = -(-max(len(row) for row in rows) // self.multiple) * self.multiple
        batch = torch.full((len(rows), width), value, dtype=torch.long)
        for line, row in zip(batch, rows, strict=True):
            start = width - len(row) if self.left else 0
            line[start : start + len(row)] = row
        return batch

    def inputs(self, ids: Sequence[torch.Tensor], rows: Sequence[dict]) -> Batch:
        """Return padded input_ids, their attention_mask, and seq_idx where the rows tell their documents.

        The mask comes from the lengths: pad may equal eos.
        """
        ones = [torch.ones_like(row) for row in ids]
        batch = {"input_ids": self(ids, self.pad_id), "attention_mask": self(ones, 0)}
        if "seq_lengths" in rows[0]:
            width = batch["input_ids"].shape[1]
            batch["seq_idx"] = number_documents([row["seq_lengths"] for row in rows], width, self.left)
        return batch


class CausalCollator:
    """Labels are the row's own `labels`, or else the input ids; the model shifts them. Padding is not predicted, nor is
    the first token of a document, which a Trainer that divides by the number of labels would count."""

    def __init__(self, padder: Padder):
        self.padder = padder

    def __call__(self, rows: Sequence[dict]) -> Batch:
        ids = [_ids(row) for row in rows]
        labels = [torch.as_tensor(row.get("labels", row["input_ids"]), dtype=torch.long) for row in rows]
        labels = [without_first(each, row.get("seq_lengths")) for each, row in zip(labels, rows, strict=True)]
        return {**self.padder.inputs(ids, rows), "labels": self.padder(labels, IGNORED_LABEL)}

    def for_evaluation(self) -> "CausalCollator":
        return self


class ClassificationCollator:
    """One class id a row."""

    def __init__(self, padder: Padder):
        self.padder = padder

    def __call__(self, rows: Sequence[dict]) -> Batch:
        labels = torch.tensor([int(row["labels"]) for row in rows], dtype=torch.long)
        return {**self.padder.inputs([_ids(row) for row in rows], rows), "labels": labels}

    def for_evaluation(self) -> "ClassificationCollator":
        return self


class MaskingCollator:
    """BERT's 80/10/10 masking as a function of (seed, epoch, row). See the module's docstring.

    Special tokens are neither chosen nor used as random replacements. A row in which chance chooses nothing gets one
    position, so that no batch is without a label (the mean over none would be NaN).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, padder: Padder, *, mlm_probability: float = 0.15, seed: int = 0
    ):
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability={mlm_probability} must lie between 0 and 1.")
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token; load it with load_tokenizer(..., objective='mlm').")
        self.padder = padder
        self.mlm_probability = mlm_probability
        self.seed = seed
        self.mask_id = tokenizer.mask_token_id
        self.is_special = torch.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=torch.bool)
        self.is_special[special_token_ids(tokenizer)] = True
        ordinary = set(tokenizer.get_vocab().values()) - set(special_token_ids(tokenizer))
        self.ordinary_ids = torch.tensor(sorted(ordinary), dtype=torch.long)
        # forked loader workers see it change; torch's own shared memory needs /dev/shm, which not every container has
        self._epoch = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.long)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks from now on, in loader workers too. Epochs count from 0."""
        self._epoch.fill_(epoch)

    def for_evaluation(self) -> "MaskingCollator":
        """Return the twin that masks a row the same way every time, and not as any training epoch does."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _epoch=torch.tensor(_EVALUATION))
        return twin

    def __call__(self, rows: Sequence[dict]) -> Batch:
        masked = [self._mask(_ids(row)) for row in rows]
        inputs = self.padder.inputs([ids for ids, _ in masked], rows)
        return {**inputs, "labels": self.padder([labels for _, labels in masked], IGNORED_LABEL)}

    def _mask(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids with replacements, labels) of one unpadded row, both int64 [T]."""
        generator = torch.Generator().manual_seed(self._row_seed(ids))
        draw, fate = torch.rand(2, len(ids), generator=generator)
        random_ids = torch.randint(len(self.ordinary_ids), (len(ids),), generator=generator)

        draw[self.is_special[ids]] = 2.0  # out of reach
        chosen = draw < self.mlm_probability
        if len(ids) and not chosen.any() and draw.min() < 1:
            chosen[draw.argmin()] = True
        labels = torch.where(chosen, ids, IGNORED_LABEL)
        masked = torch.where(chosen & (fate < MASK_SHARE), self.mask_id, ids)
        randomised = chosen & (fate >= MASK_SHARE) & (fate < MASK_SHARE + RANDOM_SHARE)
        return torch.where(randomised, self.ordinary_ids[random_ids], masked), labels

    def _row_seed(self, ids: torch.Tensor) -> int:
        key = np.asarray([self.seed, self.epoch], np.int64).tobytes()
        digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little", signed=True)


def _ids(row: dict) -> torch.Tensor:
    return torch.as_tensor(row["input_ids"], dtype=torch.long)
