"""The words of a layout's elements, also where rows, columns or heads share them; a limit below which n of them lie."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from .layout import Layout, Piece, draw_words
from .noise import BINS, WORDS, Key, words, words_torch


class WordSource:
    """Draws the words of a layout's pieces. A unit (row, column, head) has the word of its number."""

    def __init__(self, layout: Layout, key: Key, unit: str = "element"):
        self.layout, self.key, self.unit = layout, key, unit
        self.of_units = None if unit == "element" else words(key, 0, layout.unit_count(unit))

    def draw(self, piece: Piece, out: np.ndarray) -> None:
        """Write the words of a piece to `out`, uint32 [numel]."""
        if self.of_units is None:
            draw_words(self.layout, self.key, piece, out)
        else:
            np.take(self.of_units, self.layout.numbers(self.unit, piece), out=out, mode="clip")

    def draw_torch(self, piece: Piece, device: torch.device) -> torch.Tensor:
        """Return the words of a piece, int64 [numel], drawn on `device`; single elements only."""
        return words_torch(self.key, self.layout.starts(piece), piece.stop - piece.start, device)

    def each(self) -> Iterator[tuple[np.ndarray, Callable[[], np.ndarray]]]:
        """Yield words, uint32 [count], and a function that returns the numbers of their elements or units, int64.

        Every element, or every unit that occurs, is there once.
        """
        if self.of_units is not None:
            found = [np.unique(self.layout.numbers(self.unit, piece)) for piece in self.layout.pieces()]
            present = np.unique(np.concatenate(found))
            yield self.of_units[present], lambda: present
            return
        buffer = np.empty(WORDS, dtype=np.uint32)
        for piece in self.layout.pieces():
            drawn = buffer[: piece.numel]
            self.draw(piece, drawn)
            yield drawn, lambda piece=piece: self.layout.flat_index(piece)


def exact_limit(source: WordSource, share: float) -> tuple[int, int]:
    """Return (threshold, last) such that exactly round(share n) words count as low.

    Low are the words below the threshold, and those equal to it whose element (unit) has a number up to `last` (-1:
    none). Two passes: the upper halves of the words are counted, then the few words of the deciding bin are sorted;
    for single elements memory does not grow with the tensor.
    """
    counts = sum(np.bincount(drawn >> np.uint32(16), minlength=BINS) for drawn, _ in source.each())
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = round(share * int(below[-1]))
    if wanted == below[-1]:
        return 1 << 32, -1
    chosen = int(np.searchsorted(below, wanted, side="right")) - 1
    missing = wanted - int(below[chosen])
    if missing == 0:
        return chosen << 16, -1
    found = []
    for drawn, numbers in source.each():
        inside = (drawn >> np.uint32(16)) == chosen
        if inside.any():
            found.append(np.stack([drawn[inside].astype(np.int64), numbers()[inside]]))
    values, places = np.concatenate(found, axis=1)
    last = np.lexsort((places, values))[missing - 1]
    return int(values[last]), int(places[last])
