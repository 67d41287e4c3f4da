"""Borders between the documents of a packed row: which models keep them, and how a batch tells them."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from frankenlm.modeling import FAMILIES
from frankenlm.modeling.outputs import IGNORED_LABEL

# What becomes of the documents of a packed row; auto is apart where the model can, else joined.
PACKED_DOCUMENTS = ("auto", "apart", "joined")


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
