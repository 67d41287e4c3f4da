"""Likelihood of text under a model: nats, perplexity, bits per byte, and the unigram bound to compare with.

Every figure is a sum of token losses over a count of tokens, divided and exponentiated once; an average of averages
would weight the tokens of short texts more. Models are any Hugging Face models whose forward gives `.logits`; they are
put into eval mode and back, and run without gradients. Losses are computed in float32 and summed in float64.

    causal   sum of -log p(token | tokens before it), over windows that overlap
    masked   sum of -log p(token | all others), each token masked in turn: the pseudo-log-likelihood of
             Salazar et al. 2020, "Masked Language Model Scoring", arXiv:1910.14659, eq. 1. Not a likelihood: compare it
             with masked models only.
    sampled  the masked loss at the positions a collator chose; cheap, and what training reports.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from frankenlm.modeling.outputs import IGNORED_LABEL


class LossSum(NamedTuple):
    """A sum of token losses in nats, and how it was made.

    tokens: how many losses were summed. context: the longest input in tokens. stride: how many tokens a window scores;
    context where each token is read once. Both are 0 where the caller made the batches.
    """

    nats: float
    tokens: int
    context: int = 0
    stride: int = 0


def unigram_cross_entropy(train_counts: torch.Tensor, eval_counts: torch.Tensor) -> float:
    """Return the loss, in nats a token, of guessing evaluation tokens by their frequency in training.

    Both counts are [V], of any integer type. Add-one smoothing keeps tokens unseen in training finite:
    p(v) = (train_v + 1) / (N + V). A model that has learnt anything beyond frequencies lies below this.
    Raises ValueError for counts of different shapes, negative ones, or no evaluation token.
    """
    train, held_out = train_counts.double(), eval_counts.double()
    if train.dim() != 1 or train.shape != held_out.shape:
        raise ValueError(f"counts must be two [V] tensors; got {list(train.shape)} and {list(held_out.shape)}.")
    if (train < 0).any() or (held_out < 0).any():
        raise ValueError("counts must not be negative.")
    total = held_out.sum()
    if total == 0:
        raise ValueError("no evaluation token to score: eval_counts are all zero.")
    log_p = torch.log(train + 1) - torch.log(train.sum() + len(train))
    return float(-(held_out * log_p).sum() / total)


def perplexity_report(
    total_nats: float, tokens: int, utf8_bytes: int, words: int | None = None
) -> dict[str, float | int]:
    """Return loss_nats (a token), perplexity, bits_per_byte, tokens and bytes; with `words`, word_perplexity and words.

    utf8_bytes: length of the scored text in UTF-8; bits per byte does not depend on the tokenizer, nats a token do.
    A perplexity beyond the largest float is inf. Raises ValueError unless tokens and bytes are positive.
    """
    if tokens < 1 or utf8_bytes < 1:
        raise ValueError(f"nothing was scored: tokens={tokens}, utf8_bytes={utf8_bytes}; both must be at least 1.")
    of_words = {"word_perplexity": _perplexity(total_nats / words), "words": words} if words else {}
    return {
        "loss_nats": total_nats / tokens,
        "perplexity": _perplexity(total_nats / tokens),
        "bits_per_byte": total_nats / math.log(2) / utf8_bytes,
        "tokens": tokens,
        "bytes": utf8_bytes,
        **of_words,
    }


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < math.log(torch.finfo(torch.double).max) else math.inf


# --- causal models


def causal_nats(
    model: torch.nn.Module,
    sequences: Iterable[Sequence[int]],
    *,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 8,
    start_token_id: int | None = None,
) -> LossSum:
    """Score sequences of token ids, of any length, with a causal model; every token is scored exactly once.

    context_length: the longest input the model gets. Longer sequences are read in windows that move on by `stride`
        (default: half of it) and score only what no window before has scored: from the second window on every token
        is predicted from at least context_length - stride + 1 tokens. With stride = context_length each token is read
        once; this is the rolling log-likelihood of lm-evaluation-harness.
    start_token_id: put before each sequence, which makes its first token a scored one too; without it the first token
        has nothing to be predicted from and is left out of the count.
    Raises ValueError for a stride outside 1 ... context_length, and for a model without weights.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride={stride} must lie between 1 and context_length = {context_length}.")
    start = [] if start_token_id is None else [start_token_id]
    windows = (window for sequence in sequences for window in _windows([*start, *sequence], context_length, stride))
    nats, tokens = 0.0, 0
    with _scoring(model):
        for batch in _batches(windows, batch_size):
            ids, mask, labels = _pad([ids for ids, _ in batch], [first for _, first in batch], _device(model))
            logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
            batch_nats, batch_tokens = _sum_losses(logits, labels[:, 1:])
            nats, tokens = nats + batch_nats, tokens + batch_tokens
    return LossSum(nats, tokens, context_length, stride)


def _windows(ids: Sequence[int], context_length: int, stride: int) -> Iterator[tuple[Sequence[int], int]]:
    """Yield (ids of a window, index in it of the first token to score). Token 0 of the text is never scored.

    A window is an input of at most context_length tokens with the token behind it, which the last of them predicts.
    """
    scored = 0
    while scored < len(ids) - 1:
        end = min(scored + (stride if scored else context_length), len(ids) - 1)
        start = max(0, end - context_length)
        yield ids[start : end + 1], scored + 1 - start
        scored = end


# --- masked models


def pseudo_nats(
    model: torch.nn.Module,
    sequences: Iterable[Sequence[int]],
    *,
    mask_token_id: int,
    special_ids: Collection[int],
    context_length: int,
    batch_size: int = 32,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> LossSum:
    """Score sequences of token ids with a masked model: each ordinary token is masked in turn, all others are seen.

    Costs a forward row for each token. Sequences longer than context_length - len(prefix) - len(suffix) are cut into
    neighbouring pieces (stride = piece length). prefix, suffix: what the tokenizer's template puts around a text.
    special_ids: never masked, not counted.
    """
    size = context_length - len(prefix) - len(suffix)
    if size < 1:
        raise ValueError(f"context_length={context_length} leaves no room beside {len(prefix) + len(suffix)} specials.")
    special = frozenset(special_ids)
    pieces = (
        [*prefix, *sequence[start : start + size], *suffix]
        for sequence in sequences
        for start in range(0, len(sequence), size)
    )
    targets = ((piece, index) for piece in pieces for index, token in enumerate(piece) if token not in special)
    nats, tokens = 0.0, 0
    with _scoring(model):
        for batch in _batches(targets, batch_size):
            ids, mask, _ = _pad([piece for piece, _ in batch], [0] * len(batch), _device(model))
            rows, columns = torch.arange(len(batch)), torch.tensor([index for _, index in batch])
            answers = ids[rows, columns].clone()
            ids[rows, columns] = mask_token_id
            logits = model(input_ids=ids, attention_mask=mask).logits[rows, columns]
            batch_nats, batch_tokens = _sum_losses(logits, answers)
            nats, tokens = nats + batch_nats, tokens + batch_tokens
    return LossSum(nats, tokens, context_length, size)


def masked_lm_nats(model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> LossSum:
    """Score the positions that a masking collator chose: batches of input_ids, attention_mask, labels, all [B, T].

    What else a batch holds, such as seq_idx, goes to the model. Labels are -100 where nothing is asked. Use the
    collator's `for_evaluation()` twin: same positions every time.
    """
    nats, tokens = 0.0, 0
    with _scoring(model):
        for batch in batches:
            batch = {name: tensor.to(_device(model)) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            batch_nats, batch_tokens = _sum_losses(model(**batch).logits, labels)
            nats, tokens = nats + batch_nats, tokens + batch_tokens
    return LossSum(nats, tokens)


# --- shared


def _sum_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Return (sum of cross-entropies in nats, count) where labels, of the leading shape of logits, are not -100."""
    asked = labels != IGNORED_LABEL
    losses = F.cross_entropy(logits[asked].float(), labels[asked], reduction="none")
    return float(losses.double().sum()), int(asked.sum())


def _pad(
    rows: Sequence[Sequence[int]], first_scored: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return right-padded ids, mask and labels, int64 [B, T]; labels are -100 before first_scored and in padding."""
    shape = len(rows), max(len(row) for row in rows)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED_LABEL)
    for index, (row, first) in enumerate(zip(rows, first_scored, strict=True)):
        values = torch.as_tensor(row, dtype=torch.long)
        ids[index, : len(row)] = values
        mask[index, : len(row)] = 1
        labels[index, first : len(row)] = values[first:]
    return ids.to(device), mask.to(device), labels.to(device)


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _device(model: torch.nn.Module) -> torch.device:
    device = next(model.parameters()).device
    if device.type == "meta":
        raise ValueError("the model is on the meta device, without weights: load it onto a device first.")
    return device


@contextmanager
def _scoring(model: torch.nn.Module) -> Iterator[None]:
    """Run the model in eval mode without gradients, and leave it as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
