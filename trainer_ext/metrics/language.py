"""Likelihood of text under a model: nats, perplexity, bits per byte, accuracy, and the unigram bound to compare with.

Every figure is a sum over tokens divided by a count of tokens, and exponentiated once; an average of averages would
weight the tokens of short texts more. Models are any Hugging Face models whose forward gives `.logits`; they are put
into eval mode and back, and run without gradients. Losses are computed in float32 and summed in float64, text by text,
so that intervals can be drawn over texts (bootstrap.py).

    causal   sum of -log p(token | tokens before it), over windows that overlap
    masked   sum of -log p(token | all others), each token masked in turn: the pseudo-log-likelihood of
             Salazar et al. 2020, "Masked Language Model Scoring", arXiv:1910.14659, eq. 1. Not a likelihood: compare it
             with masked models only.
    sampled  the masked loss at the positions a collator chose; cheap, and what training reports.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from frankenlm.modeling.outputs import IGNORED_LABEL

from .bootstrap import Summed

TOP = (1, 3, 5)
# columns of Scores.sums
NATS, TOKENS, TOP_1, TOP_3, TOP_5 = range(2 + len(TOP))


@dataclass(frozen=True)
class Scores:
    """What a model made of texts, and how they were read.

    sums: float64 [N, 5], a row for each text: nats of its token losses, how many tokens were scored, and how many of
        them were among the 1, 3 and 5 tokens that the model held likeliest.
    context: the longest input in tokens. stride: how many tokens a window scores; context where each token is read
        once. Both are 0 where the caller made the batches.
    """

    sums: np.ndarray
    context: int = 0
    stride: int = 0

    @property
    def nats(self) -> float:
        return float(self.sums[:, NATS].sum())

    @property
    def tokens(self) -> int:
        return int(self.sums[:, TOKENS].sum())

    def accuracy(self) -> Summed:
        """Return top_1_accuracy, top_3_accuracy and top_5_accuracy: the share of the scored tokens that were among the
        1, 3 or 5 likeliest; None where none was scored."""
        names = [f"top_{k}_accuracy" for k in TOP]

        def finish(sums: np.ndarray) -> dict[str, float | None]:
            tokens = sums[TOKENS]
            return {
                name: float(hits / tokens) if tokens else None for name, hits in zip(names, sums[TOP_1:], strict=True)
            }

        return Summed(self.sums, finish, upper=1.0)

    def likelihood(
        self,
        utf8_bytes: Sequence[float] | None,
        words: Sequence[int] | None = None,
        other_tokens: Sequence[int] | None = None,
    ) -> Summed:
        """Return loss (nats a token), perplexity, bits_per_byte and, with `words`, word_perplexity.

        With `other_tokens`, those of another tokenizer, also reference_perplexity, which spreads the same nats over
        them: exactly 2 ** (bits_per_byte * bytes / other_tokens).

        None where no token was scored, or a length is 0 or not known. utf8_bytes, words, other_tokens: of what was
        scored of each text, N of them.
        """
        lengths = {"bits_per_byte": utf8_bytes, "word_perplexity": words, "reference_perplexity": other_tokens}
        lengths = {name: counts for name, counts in lengths.items() if counts is not None}
        names = list(dict.fromkeys(["loss", "perplexity", "bits_per_byte", *lengths]))

        def finish(sums: np.ndarray) -> dict[str, float | None]:
            nats, tokens, *sizes = sums.tolist()
            if tokens < 1:
                return dict.fromkeys(names)
            a_unit = {name: nats / size for name, size in zip(lengths, sizes, strict=True) if size > 0}
            found = {"loss": nats / tokens, "perplexity": perplexity_of(nats / tokens)}
            found |= {name: perplexity_of(value) for name, value in a_unit.items()}
            if "bits_per_byte" in a_unit:
                found["bits_per_byte"] = a_unit["bits_per_byte"] / math.log(2)
            return {name: found.get(name) for name in names}

        parts = np.column_stack([self.sums[:, : TOKENS + 1], *lengths.values()])
        return Summed(parts, finish, logarithms=tuple(name for name in names if name.endswith("perplexity")))


def token_ranks(logits: torch.Tensor, answers: torch.Tensor, most: int = TOP[-1]) -> torch.Tensor:
    """Return how many tokens the model held likelier than each answer, at most `most`: [N, V], [N] -> int64 [N].

    Of equal logits the lower id counts as the likelier one, as argmax has it, so that a model that says the same of
    every token is right once in V and not always. What is not a number beats no token: NaN logits are never right.
    """
    own = logits.gather(1, answers[:, None])  # [N, 1]
    top = logits.topk(min(most + 1, logits.shape[1])).values  # NaN comes first
    ranks = (top > own).sum(1)
    unsure = top[:, 0].isnan() | ((top == own).sum(1) > 1)
    if unsure.any():
        ranks[unsure] = _ranks_by_comparing(logits[unsure], answers[unsure])
    return ranks.clamp(max=most)


def _ranks_by_comparing(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """`token_ranks` without an end, each logit compared with the answer's: several times the work of topk."""
    own = logits.gather(1, answers[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    beaten = (logits < own) | ((logits == own) & (ids >= answers[:, None]))
    return logits.shape[1] - beaten.sum(1)


def top_accuracies(logits: torch.Tensor, answers: torch.Tensor) -> dict[str, float | None]:
    """Return top_1_accuracy, top_3_accuracy and top_5_accuracy of logits [N, V] and answers [N]; -100 is not asked for.

    None where nothing is. Raises ValueError for an answer that is none of V.
    """
    asked = answers != IGNORED_LABEL
    logits, answers = logits[asked], answers[asked]
    if ((answers < 0) | (answers >= logits.shape[-1])).any():
        raise ValueError(f"answers must lie between 0 and {logits.shape[-1] - 1}, or be {IGNORED_LABEL}.")
    ranks = token_ranks(logits, answers)
    return {f"top_{k}_accuracy": float((ranks < k).double().mean()) if len(ranks) else None for k in TOP}


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
    total_nats: float, tokens: int, utf8_bytes: float, words: int | None = None
) -> dict[str, float | int]:
    """Return loss_nats (a token), perplexity, bits_per_byte, tokens and bytes; with `words`, word_perplexity and words.

    utf8_bytes: length of the scored text in UTF-8; bits per byte does not depend on the tokenizer, nats a token do.
    A perplexity beyond the largest float is inf, of nats that are NaN it is NaN. Raises ValueError unless tokens and
    bytes are positive.
    """
    if tokens < 1 or utf8_bytes <= 0:
        raise ValueError(f"nothing was scored: tokens={tokens}, utf8_bytes={utf8_bytes}; both must be positive.")
    of_words = {"word_perplexity": perplexity_of(total_nats / words), "words": words} if words else {}
    return {
        "loss_nats": total_nats / tokens,
        "perplexity": perplexity_of(total_nats / tokens),
        "bits_per_byte": total_nats / math.log(2) / utf8_bytes,
        "tokens": tokens,
        "bytes": utf8_bytes,
        **of_words,
    }


def perplexity_of(nats: float) -> float:
    """Return exp(nats), or inf beyond the largest float."""
    return math.inf if nats >= math.log(torch.finfo(torch.double).max) else math.exp(nats)


# --- causal models


def causal_scores(
    model: torch.nn.Module,
    sequences: Iterable[Sequence[int]],
    *,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 8,
    start_token_id: int | None = None,
) -> Scores:
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
    sums = _TextSums()
    windows = (
        (text, *window)
        for text, sequence in enumerate(sums.counting(sequences))
        for window in windows_of([*start, *sequence], context_length, stride)
    )
    with _scoring(model):
        for batch in _batches(windows, batch_size):
            texts, rows, firsts = zip(*batch, strict=True)
            ids, mask, labels = _pad(rows, firsts, _device(model))
            logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
            sums.add(texts, logits, labels[:, 1:])
    return Scores(sums.table(), context_length, stride)


def windows_of(ids: Sequence[int], context_length: int, stride: int) -> Iterator[tuple[Sequence[int], int]]:
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


def pseudo_scores(
    model: torch.nn.Module,
    sequences: Iterable[Sequence[int]],
    *,
    mask_token_id: int,
    special_ids: Collection[int],
    context_length: int,
    batch_size: int = 32,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Scores:
    """Score sequences of token ids with a masked model: each ordinary token is masked in turn, all others are seen.

    Costs a forward row for each token. Sequences longer than context_length - len(prefix) - len(suffix) are cut into
    neighbouring pieces (stride = piece length). prefix, suffix: what the tokenizer's template puts around a text.
    special_ids: never masked, not counted.
    """
    size = context_length - len(prefix) - len(suffix)
    if size < 1:
        raise ValueError(f"context_length={context_length} leaves no room beside {len(prefix) + len(suffix)} specials.")
    special = frozenset(special_ids)
    sums = _TextSums()
    pieces = (
        (text, [*prefix, *sequence[start : start + size], *suffix])
        for text, sequence in enumerate(sums.counting(sequences))
        for start in range(0, len(sequence), size)
    )
    targets = (
        (text, piece, index) for text, piece in pieces for index, token in enumerate(piece) if token not in special
    )
    with _scoring(model):
        for batch in _batches(targets, batch_size):
            texts, asked, indices = zip(*batch, strict=True)
            ids, mask, _ = _pad(asked, [0] * len(batch), _device(model))
            rows, columns = torch.arange(len(batch)), torch.tensor(indices)
            answers = ids[rows, columns].clone()
            ids[rows, columns] = mask_token_id
            logits = model(input_ids=ids, attention_mask=mask).logits[rows, columns]
            sums.add(texts, logits[:, None], answers[:, None])
    return Scores(sums.table(), context_length, size)


def masked_lm_scores(model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]]) -> Scores:
    """Score the positions that a masking collator chose: batches of input_ids, attention_mask, labels, all [B, T].

    What else a batch holds, such as seq_idx, goes to the model. Labels are -100 where nothing is asked. Use the
    collator's `for_evaluation()` twin: same positions every time. A text of the scores is a row here.
    """
    sums, first = _TextSums(), 0
    with _scoring(model):
        for batch in batches:
            batch = {name: tensor.to(_device(model)) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            sums.add(range(first, first + len(labels)), model(**batch).logits, labels)
            first += len(labels)
    return Scores(sums.table(first))


# --- shared


class _TextSums:
    """Gathers what is scored, batch by batch, text by text."""

    def __init__(self):
        self.texts = 0
        self.of: dict[int, np.ndarray] = {}

    def counting(self, sequences: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the sequences and count them: one without a token to score has a row of zeros too."""
        for sequence in sequences:
            self.texts += 1
            yield sequence

    def add(self, texts: Sequence[int], logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add rows of logits [B, T, V] and labels [B, T], -100 where nothing is asked; row b is of text texts[b]."""
        asked = labels != IGNORED_LABEL
        chosen, answers = logits[asked].float(), labels[asked]  # [N, V], [N]
        losses = F.cross_entropy(chosen, answers, reduction="none").double()
        ranks = token_ranks(chosen, answers)
        columns = [losses, torch.ones_like(losses), *((ranks < k).double() for k in TOP)]
        of_row = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[asked]
        sums = torch.zeros(len(labels), len(columns), dtype=torch.double, device=labels.device)
        sums.index_add_(0, of_row, torch.stack(columns, dim=1))
        for text, row in zip(texts, sums.cpu().numpy(), strict=True):
            self.of[text] = self.of[text] + row if text in self.of else row

    def table(self, texts: int = 0) -> np.ndarray:
        """Return the sums, float64 [N, 5]."""
        rows = np.zeros((max(self.texts, texts), 2 + len(TOP)))
        for text, row in self.of.items():
            rows[text] = row
        return rows


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
