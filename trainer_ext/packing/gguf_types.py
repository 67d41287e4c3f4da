"""The tensor types of GGUF files that the package `gguf` does not know, and which of them can be read.

Numbers and layouts as in the sources of those who write them: Q1_0 and Q2_0 in llama.cpp (pull request 24448; Q2_0 has
64 weights a block, and had 128 under the same number in PrismML's fork before), PQ2_0 and PTQ1_0 in PrismML's fork,
I2_S in microsoft/BitNet for x86. A block is its scale d, float16, and codes c that stand for (c - 1) d.
Shapes: B blocks of W weights in S bytes each.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

I2_S_BLOCK, I2_S_TAIL = 128, 32  # weights; bytes behind the last block, of which the first four are the scale


class BlockType(NamedTuple):
    """A type: weights and bytes of a block, and what turns blocks uint8 (B, S) into values float32 (B, W)."""

    name: str
    weights: int
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]


def _scale(two_bytes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(two_bytes).view(np.float16).astype(np.float32)  # (B, 1)


def _planes(codes: np.ndarray) -> np.ndarray:
    """Return codes of two bits (B, n) in the order they are stored in, lowest bits first: (B, 4 n)."""
    return (codes[:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(codes), -1)


def _q1_0(blocks: np.ndarray) -> np.ndarray:
    """Scale first; one bit a weight, 1 for +d and 0 for -d."""
    return (2.0 * np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") - 1.0).astype(np.float32) * _scale(
        blocks[:, :2]
    )


def _q2_0(blocks: np.ndarray) -> np.ndarray:
    """Scale first; two bits a weight."""
    return (_planes(blocks[:, 2:]).astype(np.float32) - 1) * _scale(blocks[:, :2])


def _ptq1_0(blocks: np.ndarray) -> np.ndarray:
    """Runs of 16 and of 8 bytes with five trits each, two bytes with four, the scale.

    A byte holds the fraction 0.t1 t2 ... in base 3, times 256; all first trits of a run come first, as in TQ1_0.
    """
    trits = [_trits(blocks[:, :16], 5), _trits(blocks[:, 16:24], 5), _trits(blocks[:, 24:26], 4)]
    return (np.concatenate(trits, axis=1).astype(np.float32) - 1) * _scale(blocks[:, 26:28])


def _trits(run: np.ndarray, each: int) -> np.ndarray:
    powers = (3 ** np.arange(each, dtype=np.uint16)).astype(np.uint8)  # (each,)
    shifted = run[:, None, :] * powers[:, None]  # (B, each, n), modulo 256: the trits that came before fall out
    return (shifted.astype(np.uint16) * 3 >> 8).reshape(len(run), -1)


Q1_0 = BlockType("Q1_0", 128, 18, _q1_0)
Q2_0_64, Q2_0_128 = BlockType("Q2_0", 64, 18, _q2_0), BlockType("Q2_0", 128, 34, _q2_0)
PQ2_0 = BlockType("PQ2_0", 128, 34, _q2_0)
PTQ1_0 = BlockType("PTQ1_0", 128, 28, _ptq1_0)
Q2_0_ID, I2_S_ID = 42, 36
OTHERS = {41: Q1_0, 142: PQ2_0, 143: PTQ1_0}
# what can be told apart, not read
REFUSED = {37: "I8_S", 38: "TL1", 134: "IQ1_BN", 135: "IQ2_BN", 335: "IQ2_BN_R4"}


def i2_s_bytes(weights: int) -> int:
    """Return how many bytes a tensor of type I2_S takes."""
    return weights // 4 + I2_S_TAIL


def i2_s_values(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values float32 of a whole I2_S tensor: blocks of 128, weight 32 p + j in bits 6 - 2 p of byte j."""
    codes = data[:-I2_S_TAIL].reshape(-1, 1, I2_S_BLOCK // 4)  # (B, 1, 32)
    planes = codes >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3  # (B, 4, 32)
    return ((planes.astype(np.float32) - 1) * data[-I2_S_TAIL:][:4].view(np.float32)).reshape(shape)
