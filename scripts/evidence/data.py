"""The text of the memory evidence as rows of token ids, held in memory: a tokenizer, training rows, held-out rows.

    packed     documents joined with the end token and cut into rows; the last row is padded and its pads do not count
    documents  each document, with its end token, cut into rows of its own; what is left at its end is not used

A byte-level BPE is learnt from the training documents. Batches of held-out rows take rows that lie far apart, so that a
row's neighbour in its batch, whose memory it reads in the shuffled ablation, comes from another document.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data.packing import encode_pieces, pack_blocks
from frankenlm.trainer_ext.data.splits import iter_texts, load_documents, load_splits, load_tokenizer
from frankenlm.trainer_ext.metrics.language import unigram_cross_entropy

HELD_OUT_FILES = ("validation", "test")
CODE_VALIDATION_FRACTION = 0.1
DOCUMENTATION_HELD_OUT_FRACTION = 0.2
SPLIT_SEED = 0
# No file may dominate the held-out text.
ROWS_PER_HELD_OUT_DOCUMENT = 8


@dataclass(frozen=True)
class HeldOut:
    """Rows to score.

    rows, labels: [N, L] int64; labels are -100 at pads. documents: [N], which document a row begins in.
    tokens, utf8_bytes: of the whole split, for bits per byte. unigram: cross-entropy in nats per token of the rows.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    documents: torch.Tensor
    tokens: int
    utf8_bytes: int
    unigram: float

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield row numbers, at least `size` (or all) at once and never a row alone if there are two."""
        count = max(1, len(self.rows) // size)
        for start in range(count):
            yield torch.arange(start, len(self.rows), count)

    def shared_neighbours(self, size: int) -> int:
        """Count the rows whose neighbour in the batch begins in the same document."""
        return sum(int((self.documents[batch] == self.documents[batch.roll(-1)]).sum()) for batch in self.batches(size))


@dataclass(frozen=True)
class Corpus:
    """A table's text. train: [N, L] int64. counts: [V] occurrences in the training rows."""

    tokenizer: PreTrainedTokenizerFast
    train: torch.Tensor
    held_out: dict[str, HeldOut]
    counts: torch.Tensor
    facts: dict

    @property
    def special_ids(self) -> dict[str, int]:
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        return {name: getattr(self.tokenizer, name) for name in names}


def load_wikipedia(folder: Path, *, length: int, vocab_size: int, max_documents: int | None) -> Corpus:
    """train.jsonl, validation.jsonl and test.jsonl of a folder, packed.

    Raises:
        UserError: a file is missing.
    """
    texts = {}
    for name in ("train", *HELD_OUT_FILES):
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"--data {folder}: there is no {path.name}; it needs train, validation and test.jsonl.")
        texts[name] = list(iter_texts(load_documents(str(path), streaming=True, max_documents=max_documents)))
    return _corpus(texts, length=length, vocab_size=vocab_size, packed=True)


def load_documentation(*, length: int, vocab_size: int, max_documents: int | None) -> Corpus:
    """The standard library's own documentation, packed; every other held-out document is validation, the rest test."""
    splits = load_splits(
        "builtin",
        validation_fraction=DOCUMENTATION_HELD_OUT_FRACTION,
        seed=SPLIT_SEED,
        streaming=True,
        max_documents=max_documents,
    )
    held_out = list(iter_texts(splits["validation"]))
    texts = {"train": list(iter_texts(splits["train"])), "validation": held_out[::2], "test": held_out[1::2]}
    return _corpus(texts, length=length, vocab_size=vocab_size, packed=True)


def load_code(*, length: int, vocab_size: int, max_documents: int | None) -> Corpus:
    """The standard library's source files, some of them held out, each row from one file."""
    splits = load_splits(
        "builtin-code",
        validation_fraction=CODE_VALIDATION_FRACTION,
        seed=SPLIT_SEED,
        streaming=True,
        max_documents=max_documents,
    )
    texts = {name: list(iter_texts(split)) for name, split in splits.items()}
    return _corpus(texts, length=length, vocab_size=vocab_size, packed=False)


def _corpus(texts: dict[str, list[str]], *, length: int, vocab_size: int, packed: bool) -> Corpus:
    tokenizer = load_tokenizer("train", documents=texts["train"], vocab_size=vocab_size, objective="causal")
    pieces = {name: encode_pieces({"text": split}, tokenizer, "causal")["input_ids"] for name, split in texts.items()}
    train, _ = packed_rows(pieces["train"], length) if packed else document_rows(pieces["train"], length, None)
    train = train[(train >= 0).all(dim=1)]  # training takes full rows only
    if not len(train):
        raise UserError(f"no training document fills a row of {length} tokens; give longer text.")
    counts = torch.bincount(train.flatten(), minlength=vocab_size)
    held_out = {
        name: _held_out(texts[name], pieces[name], length, counts, packed, tokenizer)
        for name in texts
        if name != "train"
    }
    facts = {
        "digest": _digest(train, held_out),
        "documents": {name: len(split) for name, split in texts.items()},
        "tokens": {name: sum(map(len, split)) for name, split in pieces.items()},
        "rows": {"train": len(train), **{name: len(split.rows) for name, split in held_out.items()}},
        "vocabulary": len(tokenizer),
        "unigram": {name: split.unigram for name, split in held_out.items()},
        "bytes": {name: split.utf8_bytes for name, split in held_out.items()},
    }
    return Corpus(tokenizer, train, held_out, counts, facts)


def packed_rows(pieces: Sequence[Sequence[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [N, length] ids of all pieces joined, -1 after the end of the last row, and the piece each begins in."""
    blocks = list(pack_blocks((np.asarray(piece, np.int32) for piece in pieces), length, [], []))
    rows = torch.full((len(blocks), length), -1)
    for row, block in zip(rows, blocks, strict=True):
        row[: len(block)] = torch.from_numpy(block)
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    return rows, torch.searchsorted(ends, torch.arange(len(blocks)) * length, right=True)


def document_rows(pieces: Sequence[Sequence[int]], length: int, most: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [N, length] ids, each row from one piece, at most `most` rows of a piece, and the piece of each."""
    rows, documents = [], []
    for number, piece in enumerate(pieces):
        for start in range(0, len(piece) - length + 1, length)[:most]:
            rows.append(torch.tensor(piece[start : start + length]))
            documents.append(number)
    return torch.stack(rows) if rows else torch.empty(0, length, dtype=torch.long), torch.tensor(documents)


def _held_out(texts, pieces, length: int, counts: torch.Tensor, packed: bool, tokenizer) -> HeldOut:
    rows, documents = (
        packed_rows(pieces, length) if packed else document_rows(pieces, length, ROWS_PER_HELD_OUT_DOCUMENT)
    )
    if len(rows) < 2:
        raise UserError(f"the held-out text fills fewer than two rows of {length} tokens; give more text.")
    labels = rows.masked_fill(rows < 0, IGNORED_LABEL)
    rows = rows.masked_fill(rows < 0, tokenizer.pad_token_id)
    scored = labels[:, 1:]
    held_out_counts = torch.bincount(scored[scored != IGNORED_LABEL], minlength=len(counts))
    return HeldOut(
        rows=rows,
        labels=labels,
        documents=documents,
        tokens=sum(map(len, pieces)),
        utf8_bytes=sum(len(text.encode()) for text in texts),
        unigram=unigram_cross_entropy(counts, held_out_counts),
    )


def _digest(train: torch.Tensor, held_out: dict[str, HeldOut]) -> str:
    """Eight bytes in hex that stand for every token id of the corpus."""
    digest = hashlib.blake2b(train.numpy().tobytes(), digest_size=8)
    for split in held_out.values():
        digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()
