"""Benchmarks that compare in one run: interleaved rounds, medians, and everything needed to run them again."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Time every call once a round, in turn, so that a noisy minute falls on all of them alike.

    Args:
        calls: name -> function without arguments.
        rounds: timed rounds, after `warmup` untimed ones.

    Returns:
        name -> seconds of each timed round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if number >= warmup:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median over rounds of the ratio within each round: noise shared by a round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def environment() -> dict:
    """Return what a figure depends on: processor, threads, versions, command, date."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "default"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Lay rows of equal keys out as a Markdown table; floats get three significant digits."""
    if not rows:
        return ""
    header = list(rows[0])
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def write_report(
    title: str,
    tables: Mapping[str, Sequence[Mapping]],
    json_path: Path,
    record: Path | None,
    data: Mapping[str, object] | None = None,
) -> str:
    """Write the tables as JSON, append them to the dated Markdown `record` if one is given, and return the Markdown.

    `data` holds further entries for the JSON alone: the figures behind tables that show a part of them.
    """
    facts = environment()
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(
        json.dumps({"environment": facts, "tables": tables, **(data or {})}, indent=2) + "\n", encoding="utf-8"
    )
    settings = ", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command"))
    parts = [f"## {facts['date']}: {title}", f"`{facts['command']}`", settings]
    parts += [f"### {name}\n\n{markdown_table(rows)}" for name, rows in tables.items()]
    text = "\n\n".join(parts) + "\n"
    if record is not None:
        with record.open("a", encoding="utf-8") as file:
            file.write("\n" + text)
    return text
