"""Means, standard deviations and paired differences over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return n, mean and sample standard deviation; None where there are too few values."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired_difference(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> dict[str, Any]:
    """Summarise ours - theirs over the seeds that both have, with a 95 % t interval of the mean.

    The interval speaks about seeds: other starts and orders of the same training on the same text.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    result = {**summary([ours[seed] - theirs[seed] for seed in seeds]), "seeds": seeds}
    error = result["sd"] / math.sqrt(result["n"]) if result["n"] > 1 else None
    return result | interval(result["mean"], error, result["n"] - 1)


def unpaired_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of two means whose seeds are not paired, with a 95 % interval after Welch.

    Args:
        ours, theirs: what `summary` returns, each of at least one value.

    Returns:
        n (of the smaller side), counts (of both), mean, sd (None, there is no such thing), low, high, excludes_zero.
    """
    counts = (ours["n"], theirs["n"])
    result = {"n": min(counts), "counts": list(counts), "mean": ours["mean"] - theirs["mean"], "sd": None}
    if min(counts) < 2:
        return result | interval(result["mean"], None, 0)
    squares = [side["sd"] ** 2 / side["n"] for side in (ours, theirs)]
    spread = sum(square**2 / (count - 1) for square, count in zip(squares, counts, strict=True))
    freedom = sum(squares) ** 2 / spread if spread else sum(counts) - 2
    return result | interval(result["mean"], math.sqrt(sum(squares)), freedom)


def interval(mean: float | None, error: float | None, freedom: float) -> dict[str, Any]:
    """A 95 % t interval of a mean by its standard error; degrees of freedom are rounded down, which widens it."""
    if error is None:
        return {"low": None, "high": None, "excludes_zero": None}
    half = T_QUANTILES[min(max(int(freedom), 1), len(T_QUANTILES)) - 1] * error
    return {"low": mean - half, "high": mean + half, "excludes_zero": mean - half > 0 or mean + half < 0}


def plus_minus(values: Mapping[str, Any], digits: int = 4, sign: bool = False) -> str:
    """Return "mean ± sd", the mean alone for one value, or "missing"."""
    if values["mean"] is None:
        return "missing"
    mean = f"{values['mean']:{'+' if sign else ''},.{digits}f}"
    return mean if values["sd"] is None else f"{mean} ± {values['sd']:,.{digits}f}"
