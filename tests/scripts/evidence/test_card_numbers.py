"""Every figure of a card is one of a committed file: a test writes the card again, or finds the figure in the rows."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SAMPLES, CARDS = ROOT / "results" / "samples", ROOT / "model_cards"
# Cards written as a whole by a program; the test that writes them again.
WRITTEN = {
    "benchmarks": "tests/scripts/bench",
    "memory_evidence": "tests/scripts/evidence/test_findings.py",
    "mixer_evidence": "tests/scripts/evidence/test_findings.py",
    "suite": "tests/trainer_ext/synthetic/test_suite_reports.py",
}


@dataclass(frozen=True)
class Sources:
    """Where the figures of a card come from.

    folders: of results/samples. parts: files whose text stands in the card as it is. facts: figures that are no
    measurement, each with what it is.
    """

    folders: tuple[str, ...]
    parts: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()


SOURCES = {
    "fair_tables": Sources(
        ("coverage", "fair_mixers", "fair_embedding", "fair_norms", "fair_hope", "distil"),
        (
            "fair_mixers/table.md",
            "fair_embedding/table.md",
            "fair_norms/table.md",
            "fair_hope/table.md",
            "distil/table.md",
        ),
        facts=(f"{2 * 0.5**3:.2f}",),  # the sign test over three seeds
    ),
    "infinito": Sources(("recall",), ("recall/table.md",), facts=("0.98",)),  # how an importance fades at a write
    "legacy_1bit": Sources(
        ("legacy_1bit", "ternary_gap"),
        ("legacy_1bit/table.md", "ternary_gap/table.md"),
        facts=("4.39",),  # millions of bytes of the training text
    ),
    "optimizers": Sources(("optimizers",), facts=("2506.16659", "2412.05270")),  # papers
}
# Losses and shares: a point and two digits or more behind it.
FIGURE = re.compile(r"(?<![\w./])\d+\.\d{2,}(?![\w.]*\d)")


def values_in(content: Any) -> Iterator[float]:
    """Every number of a file's content, those in text included."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for one in content:
            yield from values_in(one)
    elif (
        isinstance(content, (int, float))
        or isinstance(content, str)
        and re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", content)
    ):
        yield float(content)


def values_of(folders: tuple[str, ...]) -> list[float]:
    """Every number in the CSV and JSON files of some folders of samples."""
    found: list[float] = []
    for path in sorted(path for folder in folders for path in (SAMPLES / folder).glob("*.*")):
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                found += values_in(list(csv.DictReader(file)))
        elif path.suffix == ".json":
            found += values_in(json.loads(path.read_text(encoding="utf-8")))
    return found


def untraced(text: str, sources: Sources) -> list[str]:
    """The figures of a card outside its parts and commands that are the rounding of no value of its files."""
    for part in sources.parts:
        path = SAMPLES / part
        text = text.replace(path.read_text(encoding="utf-8").strip(), "") if path.is_file() else text
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    values = values_of(sources.folders)
    return [
        figure
        for figure in FIGURE.findall(text)
        if figure not in sources.facts
        and not any(f"{value:.{len(figure.partition('.')[2])}f}" == figure for value in values)
    ]


def test_every_card_is_held():
    assert {path.stem for path in CARDS.glob("*.md")} == WRITTEN.keys() | SOURCES.keys()
    assert all((ROOT / place).exists() for place in WRITTEN.values())


@pytest.mark.parametrize("name", SOURCES)
def test_every_figure_of_a_card_is_in_its_files(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert untraced(text, SOURCES[name]) == []
    assert all(fact in text for fact in SOURCES[name].facts)


def test_a_figure_typed_by_hand_is_found():
    (loss,) = {value for value in values_of(("optimizers",)) if 5.75 < value < 5.7571}
    text = f"Muon ends at {loss:.3f}, and 5.123 is nowhere; 2506.16659 is a paper.\n```\n5.999\n```\n"
    assert untraced(text, SOURCES["optimizers"]) == ["5.123"]
