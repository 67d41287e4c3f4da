"""From rows of token ids to padded batches: masked, causal, both at once, and classification.

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

CAUSAL_SHARE = 1 / 8  # of joint training's rows are read left to right

Batch = dict[str, torch.Tensor]


def build_collator(
    objective: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    mlm_probability: float = 0.15,
    causal_share: float = CAUSAL_SHARE,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
    two_directions: bool = False,
) -> Callable[[Sequence[dict]], Batch]:
    """Return the collator of an objective: a list of rows -> input_ids, attention_mask, labels (all int64).

    Rows need `input_ids` (and `labels` for classification; conversations bring theirs). `seq_lengths`, the lengths of a
    row's documents, give the batch `seq_idx` [B, T], which tells them apart; other columns are ignored.
    `input_ids` and `attention_mask` are [B, T] with T the longest row, rounded up to `pad_to_multiple_of`; `labels` are
    [B, T] with -100 where nothing is predicted ([B] for classification). Every collator has `for_evaluation()`.

    `causal_rows`, bool [B], says in joint training which rows are read left to right.

    mlm_probability: share of the ordinary tokens that are predicted, in (0, 1). causal_share: of joint training's rows.
    two_directions: the model predicts each token at the one before it, so that masks spare a document's first.
    Raises ValueError where the tokenizer lacks the pad or mask token (`load_tokenizer` adds them).
    """
    check_choice("objective", objective, OBJECTIVES)
    padder = Padder(tokenizer, pad_to_multiple_of)
    masks = OBJECTIVES[objective].masks
    if masks:
        both_ways = OBJECTIVES[objective].goes_both_ways
        spared = both_ways or two_directions
        masking = MaskingCollator(tokenizer, padder, mlm_probability=mlm_probability, seed=seed, spares_first=spared)
        return JointCollator(masking, causal_share) if both_ways else masking
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

    spares_first: choose no document's first token, for models that predict each at the one before it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        padder: Padder,
        *,
        mlm_probability: float = 0.15,
        seed: int = 0,
        spares_first: bool = False,
    ):
        if not 0 < mlm_probability < 1:
            raise ValueError(f"mlm_probability={mlm_probability} must lie between 0 and 1.")
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token; load it with load_tokenizer(..., objective='mlm').")
        self.padder = padder
        self.mlm_probability = mlm_probability
        self.seed = seed
        self.spares_first = spares_first
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
        masked = [self.mask(row) for row in rows]
        inputs = self.padder.inputs([ids for ids, _ in masked], rows)
        return {**inputs, "labels": self.padder([labels for _, labels in masked], IGNORED_LABEL)}

    def mask(self, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids with replacements, labels) of one unpadded row, both int64 [T]."""
        ids = _ids(row)
        generator = torch.Generator().manual_seed(self._row_seed(ids))
        draw, fate = torch.rand(2, len(ids), generator=generator)
        random_ids = torch.randint(len(self.ordinary_ids), (len(ids),), generator=generator)

        draw[self.is_special[ids]] = 2.0  # out of reach
        if self.spares_first:
            draw[without_first(torch.zeros_like(ids), row.get("seq_lengths", [len(ids)])) == IGNORED_LABEL] = 2.0
        chosen = draw < self.mlm_probability
        if len(ids) and not chosen.any() and draw.min() < 1:
            chosen[draw.argmin()] = True
        labels = torch.where(chosen, ids, IGNORED_LABEL)
        masked = torch.where(chosen & (fate < MASK_SHARE), self.mask_id, ids)
        randomised = chosen & (fate >= MASK_SHARE) & (fate < MASK_SHARE + RANDOM_SHARE)
        return torch.where(randomised, self.ordinary_ids[random_ids], masked), labels

    def draw_of(self, row: dict) -> float:
        """Return a number in [0, 1) that belongs to the row in this epoch, and is not one of those that mask it."""
        return (self._row_seed(_ids(row), b"direction") + 2**63) / 2**64

    def _row_seed(self, ids: torch.Tensor, use: bytes = b"") -> int:
        key = np.asarray([self.seed, self.epoch], np.int64).tobytes()
        digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8, key=key, person=use).digest()
        return int.from_bytes(digest, "little", signed=True)


class JointCollator:
    """GPT-BERT's rows: some are read left to right, the others masked and read both ways, and either way each token is
    predicted at the one before it; see modeling/two_directions.py.

    Which rows are which is a function of (seed, epoch, row), as masks are. A row without a token that could be masked
    is read left to right.

    causal_share: of the rows that are read left to right, in (0, 1). A row predicts all its tokens in one way and
    `mlm_probability` of them in the other, and a loss counts tokens: at an eighth, about as many of either.
    """

    def __init__(self, masking: MaskingCollator, causal_share: float = CAUSAL_SHARE):
        if not 0 < causal_share < 1:
            raise ValueError(f"causal_share={causal_share} must lie between 0 and 1.")
        self.masking, self.padder, self.causal_share = masking, masking.padder, causal_share

    def set_epoch(self, epoch: int) -> None:
        """Draw other masks and directions from now on."""
        self.masking.set_epoch(epoch)

    def for_evaluation(self) -> "BothWaysCollator":
        """Return the twin that reads every row both ways."""
        return BothWaysCollator(self.masking.for_evaluation())

    def __call__(self, rows: Sequence[dict]) -> Batch:
        read = [(row, self.masking.draw_of(row) < self.causal_share) for row in rows]
        return joint_batch(self.masking, read)


class BothWaysCollator:
    """Each row twice, first all of them left to right, then all of them masked, the same way every time.

    A row without a token that could be masked comes once.
    """

    def __init__(self, masking: MaskingCollator):
        self.masking = masking

    def __call__(self, rows: Sequence[dict]) -> Batch:
        masked = [row for row in rows if bool((self.masking.mask(row)[1] != IGNORED_LABEL).any())]
        return joint_batch(self.masking, [*((row, True) for row in rows), *((row, False) for row in masked)])


def joint_batch(masking: MaskingCollator, read: Sequence[tuple[dict, bool]]) -> Batch:
    """Return the batch of rows, each with whether it is read left to right, with `causal_rows`, bool [B]."""
    rows, ids, labels, causal = [], [], [], []
    for row, is_causal in read:
        masked, targets = masking.mask(row)
        if is_causal or bool((targets == IGNORED_LABEL).all()):
            is_causal, masked = True, _ids(row)
            targets = without_first(masked, row.get("seq_lengths", [len(masked)]))
        for values, value in ((rows, row), (ids, masked), (labels, targets), (causal, is_causal)):
            values.append(value)
    padder = masking.padder
    labels = padder(labels, IGNORED_LABEL)
    return {**padder.inputs(ids, rows), "labels": labels, "causal_rows": torch.tensor(causal)}


def _ids(row: dict) -> torch.Tensor:
    return torch.as_tensor(row["input_ids"], dtype=torch.long)
