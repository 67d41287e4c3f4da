"""Bootstrap intervals over documents: what a figure would be on other documents of the same kind.

The unit is the document: its tokens belong together, and pretending that they were independent makes intervals too
narrow. A draw takes whole documents with replacement, and the figure is computed anew from their sums, so that long
documents weigh as they do in the figure itself (a ratio of sums; Davison and Hinkley 1997, "Bootstrap Methods and their
Application", section 2.4). The ends are percentiles of the draws, moved outward as few documents ask for (`widening`).

An interval says nothing of other trainings of the same model: that is what seeds are for (seeds.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 1000
CONFIDENCE = 0.95
_NORMAL = 1.960  # quantile 0.975 of the normal distribution, and of Student's t with 1, 2 ... 9 degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Summed:
    """Measures of many documents that are made of sums over them.

    parts: float64 [N, C], a row for each document. finish: sums (C,) -> measure -> value, None where there is none.
    upper: what no measure exceeds; all are at least 0. logarithms: measures that are exponentials of one that is at
        least 0, as perplexities are of a loss: they are spread as their logarithms are, and at least 1.
    """

    parts: np.ndarray
    finish: Callable[[np.ndarray], Mapping[str, float | None]]
    upper: float = math.inf
    logarithms: tuple[str, ...] = ()

    def values(self) -> Mapping[str, float | None]:
        """Return the measures of all documents together."""
        return self.finish(self.parts.sum(axis=0))


def widening(documents: int) -> float:
    """Return by how much the percentiles of so few documents have to move outward: 9.2 for 2, 1.2 for 10, 1.02 for 100.

    A percentile interval is too narrow by the bootstrap's standard error, sqrt((n - 1) / n), and by the normal's
    quantile, where Student's t belongs (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section
    4.1.3).
    """
    freedom = documents - 1
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL + 2.4 / freedom + 3.2 / freedom**2
    return student / _NORMAL * math.sqrt(documents / freedom)


def drawn_sums(
    parts: np.ndarray,
    draws: int,
    seed: int | tuple[int, ...],
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> np.ndarray:
    """Return the sums of `draws` drawings of as many documents: [N, C] -> [draws, C]; same seed, same drawings.

    watch: goes through the numbers of the drawings, such as a progress bar.
    """
    generator = np.random.default_rng(seed)
    documents = len(parts)
    chosen = (generator.integers(documents, size=documents) for _ in watch(range(draws)))
    return np.stack([np.bincount(places, minlength=documents) @ parts for places in chosen])


def drawn_together(
    summed: Sequence[Summed],
    draws: int = DRAWS,
    seed: int | tuple[int, ...] = 0,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, np.ndarray]:
    """Return `drawn_values` of several; those of equally many documents are measured on the same drawings of them."""
    found = {}
    for documents in dict.fromkeys(len(each.parts) for each in summed):
        if documents < 2 or draws < 1:
            continue
        alike = [each for each in summed if len(each.parts) == documents]
        sums = drawn_sums(np.column_stack([each.parts for each in alike]), draws, seed, watch)
        ends = np.cumsum([each.parts.shape[1] for each in alike])[:-1]
        for each, of_it in zip(alike, np.split(sums, ends, axis=1), strict=True):
            found |= _values(each, of_it)
    return found


def drawn_values(summed: Summed, draws: int = DRAWS, seed: int | tuple[int, ...] = 0) -> dict[str, np.ndarray]:
    """Return what each measure is in each drawing, moved outward by `widening`: measure -> (draws,).

    A measure that the documents do not have, or that is not finite, is not among them; none is where there are fewer
    than two documents or draws is 0. NaN: a drawing without anything to measure.
    """
    return drawn_together([summed], draws, seed)


def _values(summed: Summed, drawn_parts: np.ndarray) -> dict[str, np.ndarray]:
    """`drawn_values` of sums that have been drawn, [draws, C]."""
    factor = widening(len(summed.parts))
    rows = [summed.finish(sums) for sums in drawn_parts]
    found = {}
    for name, value in summed.values().items():
        if value is None or not math.isfinite(value):
            continue
        drawn = np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        floor = 0.0
        if name in summed.logarithms:
            floor = 1.0
            with np.errstate(over="ignore"):  # what is beyond the largest float is inf
                drawn = np.exp(math.log(value) + factor * (np.log(drawn) - math.log(value)))
        else:
            drawn = value + factor * (drawn - value)
        found[name] = np.clip(drawn, floor, summed.upper)
    return found


def interval(drawn: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the ends between which `confidence` of the drawings lie; None where none of them is a number."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None
    outside = (1 - confidence) / 2
    low, high = np.quantile(known, [outside, 1 - outside])
    return float(low), float(high)


def with_interval(value: Any, drawn: np.ndarray | None) -> dict[str, Any]:
    """Return value, low and high, as reports have them; low and high are None where nothing was drawn."""
    ends = None if drawn is None else interval(drawn)
    low, high = ends or (None, None)
    return {"value": value, "low": low, "high": high}
