"""The smallest experiments of the lab's tests, and what two ways of running one must agree in."""

import json

import pytest

from frankenlm.degradation import get_config

SMALL = get_config("smoke") | {
    "dtype": "float32",
    "levels": (0.0, 0.3),
    "n_rep": 2,
    "max_new_tokens": 6,
    "perplexity": False,
}
# what may differ between two ways of getting the same rows
INCIDENTAL = {
    "timestamp",
    "duration",
    "batch_duration",
    "attempt",
    "batch_size_effective",
    "batch_shape",
    "rank",
    "device",
    "vram_usage_percent",
}
ROUNDED = ("mean_logprob", "mean_entropy")


def rows_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def essence(rows):
    """What rows say, apart from when and in which company; in the order of the file."""
    kept = [{name: value for name, value in row.items() if name not in INCIDENTAL} for row in rows]
    for row in kept:
        for name in ROUNDED:
            row[name] = pytest.approx(row[name], abs=1e-3) if row[name] is not None else None
    return kept
