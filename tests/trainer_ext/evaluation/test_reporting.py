"""The report of what was measured, by hand."""

import numpy as np
import pytest

from frankenlm.trainer_ext.evaluation.reporting import MeasuredSplit, describe, figure_panels, text_table
from frankenlm.trainer_ext.metrics.bootstrap import Summed


def split(name, losses, **measures):
    """Documents of one token each."""
    summed = Summed(np.array([[loss, 1.0] for loss in losses]), lambda sums: {"loss": float(sums[0] / sums[1])})
    facts = {"documents": len(losses), "tokens": len(losses)}
    return MeasuredSplit(name, facts, {**summed.values(), **measures}, [summed])


def report_of(*splits, draws=400):
    return {**describe(splits, ["diversity", "loss"], draws=draws, seed=0), "method": "causal"}


def test_splits_of_the_same_documents_are_drawn_apart():
    """Drawn alike, the gap of equal splits would be sure to be nothing."""
    losses = np.random.default_rng(0).normal(3, 1, 30)
    report = report_of(split("train", losses), split("test", losses))
    (gap,) = report["gaps"]
    entry = gap["measures"]["loss"]
    assert entry["value"] == 0 and entry["low"] < -0.2 < 0.2 < entry["high"]
    own = report["splits"]["train"]["measures"]["loss"]
    # the gap of two is wider than either, by the root of two
    assert (entry["high"] - entry["low"]) / (own["high"] - own["low"]) == pytest.approx(2**0.5, rel=0.15)


def test_a_gap_is_the_later_less_the_first():
    report = report_of(split("train", [1.0, 1.0]), split("validation", [1.5, 1.5]), split("test", [0.5, 0.5]))
    gaps = {gap["split"]: gap["measures"]["loss"] for gap in report["gaps"]}
    assert gaps == {
        "validation": {"value": 0.5, "low": 0.5, "high": 0.5},
        "test": {"value": -0.5, "low": -0.5, "high": -0.5},
    }


def test_what_a_split_lacks_is_left_out():
    report = report_of(
        split("train", [1.0, 2.0], distinct_1=0.5, distinct_2=None), split("test", [1.0], distinct_2=0.5)
    )
    assert set(report["splits"]["test"]["measures"]) == {"loss", "distinct_2"}
    assert report["splits"]["test"]["measures"]["loss"] == {"value": 1.0, "low": None, "high": None}  # one document
    measures = report["gaps"][0]["measures"]
    assert set(measures) == {"loss", "distinct_2"} and measures["distinct_2"]["value"] is None
    assert measures["loss"] == {"value": -0.5, "low": None, "high": None}
    assert list(figure_panels(report)) == ["loss (nats per token)"]
    lines = text_table("m", report).splitlines()
    assert lines[0] == "m, causal" and lines[1].split() == ["train", "test", "test", "-", "train"]
    assert lines[2].startswith("  loss (nats per token)  ") and lines[3].split() == ["distinct_1", "0.5", "-", "-"]
    assert lines[-2].split() == ["documents", "2", "1"] and len({len(line) for line in lines[1:4]}) == 1
