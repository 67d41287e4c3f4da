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


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Summarise ours - theirs over the seeds that both have, with a 95 % t interval of the mean.

    The interval speaks about seeds: other starts and orders of the same training on the same text.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    result = {**summary([ours[seed] - theirs[seed] for seed in seeds]), "seeds": seeds, "low": None, "high": None}
    result["excludes_zero"] = None
    if result["n"] > 1:
        quantile = T_QUANTILES[min(result["n"] - 1, len(T_QUANTILES)) - 1]
        half = quantile * result["sd"] / math.sqrt(result["n"])
        result["low"], result["high"] = result["mean"] - half, result["mean"] + half
        result["excludes_zero"] = result["low"] > 0 or result["high"] < 0
    return result


def plus_minus(values: Mapping[str, Any], digits: int = 4, sign: bool = False) -> str:
    """Return "mean ± sd", the mean alone for one value, or "missing"."""
    if values["mean"] is None:
        return "missing"
    mean = f"{values['mean']:{'+' if sign else ''},.{digits}f}"
    return mean if values["sd"] is None else f"{mean} ± {values['sd']:,.{digits}f}"
