"""Benchmark helpers: the order of calls, the ratio, the report."""

import json

from frankenlm.trainer_ext.common.timing import interleaved_seconds, markdown_table, median_ratio, write_report


def test_calls_take_turns_and_warm_up_untimed():
    order = []
    seconds = interleaved_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(elapsed >= 0 for times in seconds.values() for elapsed in times)


def test_ratio_is_taken_round_by_round():
    """A slow round that hits both calls alike leaves the ratio alone; the ratio of medians would be 20 / 2 = 10."""
    assert median_ratio([2.0, 20.0, 200.0], [1.0, 2.0, 100.0]) == 2.0


def test_table():
    assert markdown_table([{"name": "x", "ms": 1.23456}]) == "| name | ms |\n|---|---|\n| x | 1.23 |"
    assert markdown_table([]) == ""


def test_report_is_written_and_the_record_appended(tmp_path):
    record = tmp_path / "record.md"
    record.write_text("earlier\n")
    rows = [{"layer": "x", "ms": 2.0}]
    text = write_report("title", {"table": rows}, tmp_path / "deep" / "out.json", record)
    saved = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert saved["tables"] == {"table": rows}
    assert {"command", "date", "threads", "torch", "transformers"} <= saved["environment"].keys()
    assert record.read_text() == "earlier\n\n" + text
