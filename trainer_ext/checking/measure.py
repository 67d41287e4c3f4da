"""What a promise measures: how far two computations of the same lie apart, and how far they would if it were broken."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Difference:
    """How a promise was kept.

    difference: the largest one, relative to the largest value; 0 is what is promised.
    control: the same where the model is led astray on purpose (no borders, no mask, another past); close to 0 it says
        that a fault would not have been seen. None where nothing of the kind can be done.
    note: what a reader should know.
    """

    difference: float
    control: float | None = None
    note: str = ""


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest value; infinite where one is not finite, or a shape differs."""
    if actual.shape != expected.shape:
        return float("inf")
    if not bool(actual.isfinite().all()) or not bool(expected.isfinite().all()):
        return float("inf")
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((actual - expected).abs().max() / scale)


def farthest(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest distance among pairs."""
    return max(distance(actual, expected) for actual, expected in pairs)
