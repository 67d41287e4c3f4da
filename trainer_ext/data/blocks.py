"""Packed documents: how blocks of one row are filled, and how a batch tells where each begins, to those who listen."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedConfig

from frankenlm.modeling import FAMILIES
from frankenlm.modeling.outputs import IGNORED_LABEL

# What becomes of the documents of a packed row; auto is apart where the model can, else joined.
PACKED_DOCUMENTS = ("auto", "apart", "joined")


def pack_blocks(
    pieces: Iterable[np.ndarray], max_length: int, prefix: list[int], suffix: list[int]
) -> Iterator[np.ndarray]:
    """Join 1-D arrays of ids and yield int32 blocks of `max_length`, then the shorter rest, if any.

    `prefix` and `suffix` stand around each block and are counted in `max_length`.
    """
    size = max_length - len(prefix) - len(suffix)
    head, tail = np.asarray(prefix, np.int32), np.asarray(suffix, np.int32)
    rest = np.empty(0, np.int32)
    for piece in pieces:
        rest = np.concatenate([rest, np.asarray(piece, np.int32)])
        full = len(rest) // size * size
        for block in rest[:full].reshape(-1, size):
            yield np.concatenate([head, block, tail])
        rest = rest[full:]
    if len(rest):
        yield np.concatenate([head, rest, tail])


class PackedBlock(NamedTuple):
    """ids: (T,) int32. lengths: how many of them each document has, in order; they sum to T."""

    ids: np.ndarray
    lengths: list[int]


def pack_documents(
    documents: Iterable[np.ndarray], max_length: int, prefix: list[int], suffix: list[int]
) -> Iterator[PackedBlock]:
    """Put 1-D arrays of ids one after another into blocks of `max_length`, each with `prefix` and `suffix` around it.

    A document that does not fit into the rest of a block is cut there, and what is left of it opens the next block as
    a document of its own. A block ends early where not one id of the next document would fit between its prefix and
    suffix; the last block ends where the documents do. Empty documents leave nothing.
    """
    around = len(prefix) + len(suffix)
    head, tail = np.asarray(prefix, np.int32), np.asarray(suffix, np.int32)
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    room = max_length
    for document in documents:
        rest = np.asarray(document, np.int32)
        while len(rest):
            taken = min(len(rest), room - around)
            parts += [head, rest[:taken], tail]
            lengths.append(taken + around)
            rest, room = rest[taken:], room - lengths[-1]
            if room <= around:
                yield PackedBlock(np.concatenate(parts), lengths)
                parts, lengths, room = [], [], max_length
    if parts:
        yield PackedBlock(np.concatenate(parts), lengths)


# --- what a batch tells


def keeps_documents_apart(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration lets no document of a row see another one: those of our families do."""
    return isinstance(config, tuple(family.config_class for family in FAMILIES))


def without_first(labels: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """Return the labels (T,) of a row with -100 at the first token of each document, given the documents' lengths."""
    if lengths is None:
        return labels
    ends = torch.as_tensor(lengths, dtype=torch.long).cumsum(0)
    return labels.index_fill(0, ends - torch.as_tensor(lengths, dtype=torch.long), IGNORED_LABEL)


def number_documents(lengths: Sequence[Sequence[int]], width: int, left: bool) -> torch.Tensor:
    """Return `seq_idx`, int64 [B, T]: the number of each token's document in its row, from 0.

    Args:
        lengths: of the documents of each row. width: T, with pads.
        left: the pads are at the left; they are of the first document, those at the right of the last.
    """
    numbers = torch.empty(len(lengths), width, dtype=torch.long)
    for line, row in zip(numbers, lengths, strict=True):
        each = torch.as_tensor(row, dtype=torch.long)
        ids = torch.arange(len(each)).repeat_interleave(each)
        missing = width - len(ids)
        line[missing if left else 0 : width if left else len(ids)] = ids
        line[slice(0, missing) if left else slice(len(ids), width)] = 0 if left else len(each) - 1
    return numbers
