"""Writes a damaged tensor from the undamaged one, piece by piece: a thread pool on the CPU, large chunks elsewhere.

Everything about one piece (words, arithmetic, rounding, the sums of the lesion record) happens while it lies in the
cache. Bits do not depend on the number of threads, on the size of the pieces, or on the device.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .layout import Layout, Piece
from .lesion_sums import lesion_sums, lesion_sums_torch
from .noise import TORCH_CHUNK, WORDS
from .rounding import round_once, settle_nans
from .words import WordSource

# torch hands longer copies to a thread pool of its own, which then competes with ours
SERIAL_COPY = 1 << 15


def damage_rows(
    before: torch.Tensor,
    after: torch.Tensor,
    layout: Layout,
    damage,
    words: WordSource | None,
    *,
    threads: int | None = None,
    size: int = WORDS,
    on_device: bool | None = None,
) -> np.ndarray:
    """Write the damaged elements and return the sums of `lesion_sums.SUMS`, float64 [8].

    Args:
        before, after: matrices [outer, length] of the layout's elements, of one type, any strides, not overlapping.
        damage: one of the classes of `methods`; words: None where it draws none.
        threads: default torch.get_num_threads(). size: elements of a piece on the CPU.
        on_device: compute where `after` lies, with torch; default: unless that is the CPU.
    """
    if on_device is None:
        on_device = after.device.type != "cpu"
    if on_device and damage.on_device and not layout.gain_offset and (words is None or words.unit == "element"):
        sums = [_on_device(piece, before, after, damage, words) for piece in layout.pieces(TORCH_CHUNK)]
        return torch.stack(sums).cpu().numpy().sum(axis=0)
    work = functools.partial(_on_cpu, before=before, after=after, layout=layout, damage=damage, words=words)
    return np.sum(for_each(work, list(layout.pieces(size)), threads), axis=0)


def compare_rows(
    before: torch.Tensor, after: torch.Tensor, layout: Layout, *, threads: int | None = None
) -> np.ndarray:
    """Return the sums of `lesion_sums.SUMS` of two matrices [outer, length] of a layout's elements, float64 [8]."""

    def compare(piece: Piece) -> np.ndarray:
        scratch = _scratch.grow(piece.numel)
        for rows, array in ((before, scratch.before), (after, scratch.after)):
            part = piece.of(rows)
            copy_rows(part, torch.from_numpy(array[: piece.numel]).view(part.shape))
        with np.errstate(all="ignore"):
            return _sums(scratch, piece.numel, layout.gain_offset)

    return np.sum(for_each(compare, list(layout.pieces()), threads), axis=0)


def for_each(work: Callable, items: list, threads: int | None = None) -> list:
    """Return [work(item) for item in items], done by several threads."""
    threads = min(threads or torch.get_num_threads(), len(items))
    return list(_pool(threads).map(work, items)) if threads > 1 else [work(item) for item in items]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="damage")


if hasattr(os, "register_at_fork"):
    # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def copy_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a matrix to another, also of another type, in steps that torch does in the calling thread."""
    rows, length = source.shape
    if rows > 1 and length <= SERIAL_COPY:
        step = SERIAL_COPY // length
        for row in range(0, rows, step):
            target[row : row + step].copy_(source[row : row + step])
        return
    for row in range(rows):
        for start in range(0, length, SERIAL_COPY):
            target[row, start : start + SERIAL_COPY].copy_(source[row, start : start + SERIAL_COPY])


class _BlockScratch(threading.local):
    """One thread's arrays for one piece."""

    count = 0

    def grow(self, count: int) -> "_BlockScratch":
        if self.count < count:
            self.count = count
            self.before, self.after, self.work = np.empty((3, count), dtype=np.float32)
            self.words = np.empty(count, dtype=np.uint32)
            self.flags = np.empty(count, dtype=bool)
        return self


_scratch = _BlockScratch()


def _on_cpu(piece: Piece, before, after, layout, damage, words) -> np.ndarray:
    count = piece.numel
    scratch = _scratch.grow(count)
    shape = (piece.row_stop - piece.row_start, piece.stop - piece.start)
    old, new = (torch.from_numpy(array[:count]).view(shape) for array in (scratch.before, scratch.after))
    drawn = None
    if words is not None:
        drawn = scratch.words[:count]
        words.draw(piece, drawn)
    source, target = piece.of(before), piece.of(after)
    copy_rows(source, old)
    with np.errstate(all="ignore"):  # infinities and NaN are data here
        if layout.gain_offset:
            _damage_gain(scratch, count, layout, damage, drawn, piece, after.dtype)
        else:
            damage.apply(scratch.before[:count], drawn, piece, scratch.after[:count])
        copy_rows(new, target)
        if after.dtype != torch.float32:
            copy_rows(target, new)  # what the record describes is rounded
        sums = _sums(scratch, count, layout.gain_offset)
        if not np.isfinite(sums).all():
            settle_nans(source.to(target.device), target)
            copy_rows(target, new)
            sums = _sums(scratch, count, layout.gain_offset)
    return sums


def _damage_gain(scratch: _BlockScratch, count: int, layout: Layout, damage, drawn, piece: Piece, dtype) -> None:
    """Damage w + offset in float64; a weight whose gain stays the same keeps its bits."""
    old = scratch.before[:count]
    gain = old.astype(np.float64) + layout.gain_offset
    damaged = np.empty_like(gain)
    damage.apply(gain, drawn, piece, damaged)
    scratch.after[:count] = np.where(damaged == gain, old, round_once(damaged - layout.gain_offset, dtype))


def _sums(scratch: _BlockScratch, count: int, offset: float) -> np.ndarray:
    old, new, work = scratch.before[:count], scratch.after[:count], scratch.work[:count]
    if offset:
        old, new = old.astype(np.float64) + offset, new.astype(np.float64) + offset
        work = np.empty_like(new)
    return lesion_sums(old, new, work, scratch.flags[:count])


def _on_device(piece: Piece, before, after, damage, words) -> torch.Tensor:
    target = piece.of(after)
    source = piece.of(before).to(after.device, non_blocking=True)
    old = source.float().reshape(-1)
    drawn = None if words is None else words.draw_torch(piece, after.device)
    target.copy_(damage.apply_torch(old, drawn).view(target.shape))
    settle_nans(source, target)
    return lesion_sums_torch(old, target.float().reshape(-1))
