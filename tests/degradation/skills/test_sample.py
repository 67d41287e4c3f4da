"""The README's table of skills is that of the shipped sample."""

import csv
import math
from pathlib import Path

from frankenlm.degradation.report.level_axis import number

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "results" / "samples" / "degradation" / "skills"
NAMES = {"math": "mathematics", "factual": "facts", "language": "language", "logic": "logic"}


def read(name):
    with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def interval(line, value):
    """`0.26 (0.1 to 0.4)` of a line; what is not there, as the tables say it."""
    if not line[value]:
        return "not reached"
    text = number(float(line[value]))
    if not line["low"]:
        return text
    return f"{text} ({number(float(line['low']))} to {number(float(line['high'])) if line['high'] else 'not reached'})"


def test_the_readme_has_the_samples_order_of_skills():
    readme = (ROOT / "degradation" / "README.md").read_text(encoding="utf-8")
    order = {(line["group"], line["skill"]): line for line in read("order.csv")}
    groups = list(dict.fromkeys(group for group, _ in order))
    for skill, name in NAMES.items():
        cells = [interval(order[group, skill], "L50") for group in groups]
        shares = f"{float(order[groups[0], skill]['undamaged_share']):.2f}"
        chosen = order[groups[0], skill]["chosen"]
        assert f"| {name} | {chosen} | {shares} | {' | '.join(cells)} |" in readme


def test_the_readme_has_the_samples_difference_of_mathematics_and_language():
    readme = " ".join((ROOT / "degradation" / "README.md").read_text(encoding="utf-8").split())
    found = [line for line in read("pairs.csv") if (line["first"], line["second"]) == ("math", "language")]
    assert found
    for line in found:
        if line["p_holm"] and not math.isnan(float(line["p_holm"])):
            assert f"{interval(line, 'difference')}, p {float(line['p_holm']):.3f}" in readme
