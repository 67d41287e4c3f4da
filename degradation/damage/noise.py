"""A field of random words addressed by name and index: Philox4x32-10, counter-based.

The word of element i does not depend on what was drawn before, on the order of the parameters, on the device, on the
number of threads or on how a tensor is cut up. Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy
as 1, 2, 3" (SC11): Philox4x32 with ten rounds, key from SHA-256 of a text, counter i // 4, word i % 4.

`philox4x32` is the plain form for any counters and keys. `fill_words` is the fast one for long ranges; it saves the
work of the two first rounds that the zero words of the counter make trivial. Both are NumPy, which lets other threads
run meanwhile. `words_torch` is the same field for tensors on any device, in plain int64 operations.
"""

import functools
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from .quantiles import BINS, load_tables

Key = tuple[int, int]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF
# Counters in one go: three arrays of 16 bytes each stay in a core's second-level cache.
COUNTERS = 1 << 14
WORDS = 4 * COUNTERS
# 2^23 elements of 80 bytes: below 1 GiB
TORCH_CHUNK = 1 << 23

_SHIFT = np.uint64(32)
_LOW = np.uint64(MASK)
_M = np.array(MULTIPLIERS, dtype=np.uint64)[:, None]


class _CounterScratch(threading.local):
    """Each thread's scratch arrays, which grow to the most counters it was asked for."""

    def __init__(self):
        self.grow(COUNTERS)

    def grow(self, count: int) -> None:
        self.count = count
        self.counters = np.empty(count, dtype=np.uint64)
        self.steps = np.arange(count, dtype=np.uint64)
        self.pairs = np.empty((3, 2 * count), dtype=np.uint64)


_scratch = _CounterScratch()

# --- keys


def derive_key(text: str) -> Key:
    """Return the two 32-bit words of the key: bytes 0-3 and 4-7, big-endian, of SHA-256 over the text in UTF-8."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def field_key(seed_base: int, repeat_index: int, method: str, canonical_name: str, level_key: str | None = None) -> Key:
    """Return the key of one tensor's field in one repeat.

    Without a level the levels of a repeat share the field: masks are nested and noise grows in one direction. With the
    `configs.level_key` of a level each has a field of its own.
    """
    text = f"deg1|{seed_base}|{repeat_index}|{method}|{canonical_name}"
    return derive_key(text if level_key is None else f"{text}|{level_key}")


# --- NumPy


def philox4x32(counter, key) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the four words of Philox4x32-10 for each counter.

    Args:
        counter: four and `key`: two integers or integer arrays of values in 0 ... 2^32 - 1; all six are broadcast.
    Returns:
        four uint32 arrays of the broadcast shape.
    """
    parts = np.broadcast_arrays(*(np.asarray(part).astype(np.uint64) for part in (*counter, *key)))
    x0, x1, x2, x3, k0, k1 = parts
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    for index in range(ROUNDS):
        first, second = x0 * m0, x2 * m1
        x0, x2 = (second >> _SHIFT) ^ x1 ^ k0, (first >> _SHIFT) ^ x3 ^ k1
        x1, x3 = second & _LOW, first & _LOW
        if index < ROUNDS - 1:
            k0, k1 = (k0 + np.uint64(KEY_STEPS[0])) & _LOW, (k1 + np.uint64(KEY_STEPS[1])) & _LOW
    return tuple(x.astype(np.uint32) for x in (x0, x1, x2, x3))


@functools.lru_cache(maxsize=64)
def _round_keys(key: Key) -> np.ndarray:
    """Return the keys of the rounds, uint64 [ROUNDS, 2, 1]."""
    rows = [[(key[side] + index * KEY_STEPS[side]) & MASK for side in (0, 1)] for index in range(ROUNDS)]
    return np.array(rows, dtype=np.uint64)[:, :, None]


def _buffers(count: int) -> tuple[np.ndarray, ...]:
    """Return this thread's scratch arrays: uint64 [count] once, [2, count] three times."""
    if _scratch.count < count:
        _scratch.grow(count)
    pairs = [pair[: 2 * count].reshape(2, count) for pair in _scratch.pairs]
    return (_scratch.counters[:count], *pairs)


def fill_counters(key: Key, low: np.ndarray, high: int, out: np.ndarray) -> None:
    """Write the words of the counters (low, high, 0, 0) to `out`, uint32 [len(low), 4]; low is uint64 [count]."""
    count = len(low)
    _, product, x, y = _buffers(count)  # x: words 0 and 2, y: words 1 and 3
    keys = _round_keys(key)
    _first_two_rounds(keys, low, high, product, x, y)
    swapped = product[::-1]
    for index in range(2, ROUNDS):
        np.multiply(x, _M, out=product)
        np.right_shift(swapped, _SHIFT, out=x)
        np.bitwise_xor(x, y, out=x)
        np.bitwise_xor(x, keys[index], out=x)
        if index < ROUNDS - 1:
            np.bitwise_and(swapped, _LOW, out=y)
    np.copyto(out[:, 0::2].T, x, casting="unsafe")
    np.copyto(out[:, 1::2].T, swapped, casting="unsafe")


def _first_two_rounds(keys, low, high, product, x, y) -> None:
    """Two rounds on (low, high, 0, 0), where half of the products are zero or the same for all counters."""
    (k0, k1), (l0, l1) = keys[0, :, 0], keys[1, :, 0]
    np.multiply(low, _M[0], out=product[0])
    np.right_shift(product[0], _SHIFT, out=x[0])
    np.bitwise_xor(x[0], k1, out=x[0])  # word 2 after round 1; word 0 is high ^ k0, word 1 is 0
    common = (high ^ int(k0)) * MULTIPLIERS[0]
    np.multiply(x[0], _M[1], out=product[1])
    np.right_shift(product[1], _SHIFT, out=x[0])
    np.bitwise_xor(x[0], l0, out=x[0])
    np.bitwise_and(product[0], _LOW, out=x[1])
    np.bitwise_xor(x[1], np.uint64((common >> 32) ^ int(l1)), out=x[1])
    np.bitwise_and(product[1], _LOW, out=y[0])
    y[1] = np.uint64(common & MASK)


def fill_words(key: Key, start: int, out: np.ndarray) -> None:
    """Write the words of the elements start, start + 1, ... to `out`, uint32 [count], contiguous.

    Any start and count; fastest in pieces of up to WORDS elements that begin at a multiple of 4.
    """
    position = 0
    while position < len(out):
        counter, lead = divmod(start + position, 4)
        # a piece keeps to one value of the counter's high word
        count = min(COUNTERS, (1 << 32) - (counter & MASK), (lead + len(out) - position + 3) // 4)
        taken = min(4 * count - lead, len(out) - position)
        low = _buffers(count)[0]
        np.add(_scratch.steps[:count], np.uint64(counter & MASK), out=low)
        if lead == 0 and taken == 4 * count:
            fill_counters(key, low, counter >> 32, out[position : position + taken].reshape(count, 4))
        else:
            whole = np.empty((count, 4), dtype=np.uint32)
            fill_counters(key, low, counter >> 32, whole)
            out[position : position + taken] = whole.reshape(-1)[lead : lead + taken]
        position += taken


def words(key: Key, start: int, count: int) -> np.ndarray:
    """Return the words of the elements start ... start + count - 1 of a field, uint32 [count]."""
    if start < 0 or count < 0:
        raise ValueError(f"start={start} and count={count} must not be negative.")
    out = np.empty(count, dtype=np.uint32)
    fill_words(key, start, out)
    return out


def extreme_words(drawn: np.ndarray) -> np.ndarray:
    """Return the places of the words in the first and the last of the 2^16 bins, int64."""
    return np.flatnonzero(drawn + np.uint32(BINS) < np.uint32(2 * BINS))


def look_up(drawn: np.ndarray, bins: np.ndarray, low_tail: np.ndarray, high_tail: np.ndarray, out: np.ndarray) -> None:
    """Write to `out` what the tables hold for each word.

    Args:
        drawn: words, uint32 [count].
        bins: by the upper 16 bits, [65536]. low_tail, high_tail: by the lower 16 bits, for the first and the last bin.
        out: [count], of the tables' type.
    """
    np.take(bins, drawn >> np.uint32(16), out=out, mode="clip")
    places = extreme_words(drawn)
    if len(places):
        extreme = drawn[places]
        inner = extreme & np.uint32(BINS - 1)
        out[places] = np.where(extreme < BINS, low_tail[inner], high_tail[inner])


def gaussian_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (bins, low_tail, high_tail) of the standard normal for `look_up`, float32 [65536] each."""
    bins, tail = load_tables()
    return bins, tail, -tail[::-1]


# --- torch, any device


def words_torch(key: Key, starts: int | Sequence[int], count: int, device):
    """Return the same words as `words`, int64 with values in 0 ... 2^32 - 1, on `device`.

    Args:
        starts: index of the first element, or several: one for each run of `count` elements.
    Returns:
        the words of all runs one after the other, [runs * count].

    Only int64 products, shifts, masks and exclusive ors: the same bits on every device. It takes about 80 bytes of
    memory for each element; callers cut long ranges into chunks of TORCH_CHUNK.
    """
    import torch

    first = torch.as_tensor(starts, dtype=torch.int64, device=device).view(-1, 1)
    counters = first // 4 + torch.arange((count + 6) // 4, device=device)
    x0, x1 = counters & MASK, counters >> 32
    x2 = x3 = torch.zeros_like(counters)
    k0, k1 = key
    for index in range(ROUNDS):
        (high0, low0), (high1, low1) = _wide_product(x0, MULTIPLIERS[0]), _wide_product(x2, MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        if index < ROUNDS - 1:
            k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    drawn = torch.stack((x0, x1, x2, x3), dim=2).view(len(first), -1)
    places = first % 4 + torch.arange(count, device=device)
    return drawn.gather(1, places).view(-1)


def _wide_product(x, multiplier: int):
    """Return (upper, lower) 32 bits of a product of two 32-bit numbers held in int64."""
    # The int64 product wraps around with the right bits; the shift copies the sign, which the mask takes away.
    product = x * multiplier
    return (product >> 32) & MASK, product & MASK


def look_up_torch(drawn, bins, low_tail, high_tail):
    """Return what the tables hold for each word: `look_up` for tensors on one device, without synchronising it."""
    import torch

    upper, lower = drawn >> 16, drawn & (BINS - 1)
    values = torch.where(upper == 0, low_tail[lower], bins[upper])
    return torch.where(upper == BINS - 1, high_tail[lower], values)
