"""What the README says of skills is that of the shipped sample."""

import csv
from pathlib import Path

import pytest

from frankenlm.degradation.report.level_axis import number
from frankenlm.degradation.skills.items import BLOCKS
from frankenlm.degradation.skills.table import DIFFERENCE

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "results" / "samples" / "degradation" / "skills"
NAMES = {"math": "mathematics", "factual": "facts", "language": "language", "logic": "logic"}
WEIGHTS = {"attn_only": "values", "mlp_only": "MLP"}


def read(name):
    with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def interval(line, value, kind=""):
    """`0.26 (0.1 to 0.4)` of a line; what is not there, as the tables say it."""
    if not line[value]:
        return "not reached"
    text = number(float(line[value]))
    low, high = line[f"{kind}low"], line[f"{kind}high"]
    if not low:
        return text
    return f"{text} ({number(float(low))} to {number(float(high)) if high else 'not reached'})"


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "degradation" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sentences(readme):
    return " ".join(readme.split())


def test_the_readme_has_the_samples_order_of_skills(readme):
    order = {(line["group"], line["skill"]): line for line in read("order.csv")}
    groups = list(dict.fromkeys(group for group, _ in order))
    assert groups == list(WEIGHTS)
    (repeats,) = {line["repeats"] for line in order.values()}
    assert f"skills.md); {repeats} repeats)" in readme
    for skill, name in NAMES.items():
        cells = [interval(order[group, skill], "L50") for group in groups]
        shares = f"{float(order[groups[0], skill]['undamaged_share']):.2f}"
        chosen = order[groups[0], skill]["chosen"]
        assert f"| {name} | {chosen} | {shares} | {' | '.join(cells)} |" in readme


def test_the_readme_has_the_samples_difference_of_mathematics_and_language(sentences):
    found = [line for line in read("pairs.csv") if (line["first"], line["second"]) == ("math", "language")]
    assert [line["group"] for line in found] == list(WEIGHTS)
    assert "each by itself has " + " and ".join(f"{float(line['matched_p']):.3f}" for line in found) in sentences
    for line in found:
        for kind in ("", "matched_"):
            said = f"{interval(line, kind + DIFFERENCE, kind)}, p {float(line[f'{kind}p_holm']):.3f}"
            assert f"{said} in the {WEIGHTS[line['group']]}" in sentences
        first, second = (float(line[f"matched_share_{side}"]) for side in ("first", "second"))
        assert (
            f"on {line['pairs']} pairs of questions" in sentences
            and f"(shares {first:.2f} and {second:.2f})" in sentences
        )


def test_the_readme_tells_apart_what_the_sample_does(sentences):
    pairs = read("pairs.csv")
    p = {
        (line["group"], line["first"], line["second"], kind): float(line[f"{kind}p_holm"])
        for line in pairs
        for kind in ("", "matched_")
        if line[f"{kind}p_holm"]
    }
    assert f"over all {len(p)} p-values" in sentences
    logic = ("attn_only", "math", "logic")
    assert f"(p {p[*logic, '']:.3f}, on matched pairs {p[*logic, 'matched_']:.3f})" in sentences
    shown = {key for key, each in p.items() if each < 0.05}
    assert shown == {(group, "math", "language", "") for group in WEIGHTS} | {(*logic, "")}


def test_the_readme_has_what_the_sample_keeps_of_logic(sentences):
    lines = read("scores.csv")
    chosen = {
        (line["topic"], line["answer"])
        for line in lines
        if line["wording"] == "1" and line["skill"] == "logic" and float(line["margin"]) > 0
    }
    topics = {topic for topic, _ in chosen}
    assert len(topics) == 6 and "in all six topics" in sentences
    questions = {(b.topic, answer): b.questions(1)[place] for b in BLOCKS for place, answer in enumerate(b.answers)}
    assert all(answer in questions[topic, answer] for topic, answer in chosen)
    for topic, words in {
        "inside": "`inside`, where no other of the four answers does, keeps a share of {}",
        "all but one": "`all but one`, where it stands apart from the list of all four, {}",
        "first in line": "`first in line`, where they stand in a row, falls to {}",
    }.items():
        shares = [
            float(line["share"])
            for line in lines
            if (line["group"], line["level"], line["topic"]) == ("attn_only", "0.9", topic)
            and (topic, line["answer"]) in chosen
        ]
        assert words.format(f"{sum(shares) / len(shares):.2f}") in sentences
