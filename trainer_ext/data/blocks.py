"""How blocks of token ids are filled: cut from one long text, or document by document."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


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


class Block(NamedTuple):
    """ids: (T,) int32. lengths: how many of them each document has, in order; they sum to T."""

    ids: np.ndarray
    lengths: list[int]


def pack_documents(
    documents: Iterable[np.ndarray], max_length: int, prefix: list[int], suffix: list[int]
) -> Iterator[Block]:
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
                yield Block(np.concatenate(parts), lengths)
                parts, lengths, room = [], [], max_length
    if parts:
        yield Block(np.concatenate(parts), lengths)
