"""Every figure of a card is one of a committed file: a test writes the card again, or finds the figure in the rows."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from frankenlm.scripts.evidence.ternary_findings import FULL
from frankenlm.scripts.fair.tables import TABLES

ROOT = Path(__file__).resolve().parents[3]
SAMPLES, CARDS = ROOT / "results" / "samples", ROOT / "model_cards"
# Cards written as a whole by a program; the test that writes them again.
WRITTEN = {
    "memory_evidence": "tests/scripts/evidence/test_findings.py",
    "mixer_evidence": "tests/scripts/evidence/test_findings.py",
    "suite": "tests/trainer_ext/synthetic/test_suite_reports.py",
}


# Cards of which nothing but the page was kept, with the sentence by which they say so.
UNHELD = {"benchmarks": "no rows lie behind them, and no test compares their figures"}


@dataclass(frozen=True)
class Sources:
    """Where the figures of a card come from.

    folders: of results/samples, their tables of runs. parts: files whose text stands in the card as it is. blocks: what
    stands between two marks, and the test that writes it again. settings: files of settings. counts: tests that hold
    numbers of parameters. facts: figures that are no measurement, each with what it is. claims: sentences typed by
    hand, each with the file and the runs of the losses in it. rows: the test that holds the lines of its table.
    """

    folders: tuple[str, ...]
    parts: tuple[str, ...] = ()
    blocks: tuple[tuple[str, str], ...] = ()
    settings: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    claims: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    rows: str | None = None


SOURCES = {
    "fair_tables": Sources(
        (),
        tuple(f"{name}/table.md" for name in TABLES),
        blocks=(
            ("coverage", "tests/scripts/fair/test_fair.py"),
            ("memory_use", "tests/scripts/fair/test_memory_use.py"),
        ),
        settings=("configs/small/fair.yaml", "configs/sweeps/distil_teacher.yaml"),
        facts=(f"{2 * 0.5**3:.2f}",),  # the sign test over three seeds
    ),
    "infinito": Sources(
        ("recall",),
        ("recall/table.md",),
        settings=("modeling/presets/infinito.yaml", "configs/infinito_wikitext.yaml"),
        counts=("tests/modeling/test_infinito.py",),
        facts=(
            f"{3 * 8 * 513:,}",  # the memory's parameters: layers, heads, width of a head and a bias
            "0.05",  # of an age, in the ranking of slots
            "71.4",  # millions of parameters of the model that this one is compared with
            f"{2 * 50_257 * 512 / 1e6:.1f}",  # millions of parameters: embedding and head
            f"{70_965_353 / 1e6:.1f}",  # of all
            "2.4",  # millions of tokens of the text
        ),
    ),
    "legacy_1bit": Sources(
        ("legacy_1bit", "ternary_gap"),
        ("legacy_1bit/table.md", "ternary_gap/table.md"),
        settings=("modeling/presets/legacy-1bit.yaml",),
        counts=("tests/modeling/test_legacy_1bit.py",),
        facts=(
            f"{10_616_832 / 4 / 1e6:.2f}",  # MB, at four codes a byte
            "0.02",  # the deviation of other families' embeddings
            "4.0",  # a licence
            "4.39",  # millions of bytes of the training text
            "242,693",  # bytes of the validation text
        ),
        claims=(
            (
                "At a start of 1.0 a million bytes end at {:.4f} nats, at 0.25 at {:.4f};",
                "legacy_1bit/runs.csv",
                ("1M-ternary_absmean", "1M-start-0.25-ternary_absmean"),
            ),
        ),
    ),
    "optimizers": Sources(
        ("optimizers",),
        settings=("configs/sweeps/optimizers.yaml",),
        # tokens of a run; per cent below AdamW, which tests/trainer_ext/sweeps/test_table.py works out; papers
        facts=(f"{500 * 4 * 64:,}", "6.8", "2506.16659", "2412.05270"),
        claims=(
            (
                "Muon's best is {:.3f}, 6.8 % below AdamW's {:.3f}; GaLore's, at rank 96 (a quarter of the width), is "
                "{:.3f},",
                "optimizers/sweep.csv",
                ("muon,learning_rate=0.003", "adamw,learning_rate=0.0003", "galore,learning_rate=0.003"),
            ),
        ),
        rows="tests/trainer_ext/sweeps/test_table.py",
    ),
}
# Losses, shares, counts: a point and digits behind it, or thousands set off.
LOSS_DIGITS = 3
FIGURE = re.compile(r"(?<![\w./,])(?:\d+\.\d+|\d{1,3}(?:,\d{3})+)(?![\w.]*\d)")


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
    """Every number in the CSV and JSON files of some folders of samples, but for curves, which have any number."""
    found: list[float] = []
    for path in sorted(path for folder in folders for path in (SAMPLES / folder).glob("*.*")):
        if path.name.startswith("training"):
            continue
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                found += values_in(list(csv.DictReader(file)))
        elif path.suffix == ".json":
            found += values_in(json.loads(path.read_text(encoding="utf-8")))
    return found


def said(claim: tuple[str, str, tuple[str, ...]]) -> str:
    """A sentence with the losses of its runs."""
    phrase, table, names = claim
    with (SAMPLES / table).open(newline="", encoding="utf-8") as file:
        losses = {row.get("name") or row["run"]: float(row["eval_loss"]) for row in csv.DictReader(file)}
    return phrase.format(*(losses[name] for name in names))


def untraced(text: str, sources: Sources) -> list[str]:
    """The figures of a card outside its parts, blocks, rows and commands that nothing holds.

    One is held by a claim, or as the rounding of a value of its files; one of three digits behind the point, as losses
    have, by a claim alone.
    """
    for part in sources.parts:
        path = SAMPLES / part
        text = text.replace(path.read_text(encoding="utf-8").strip(), "") if path.is_file() else text
    for name, _ in sources.blocks:
        text = re.sub(rf"<!-- {name}:.*?<!-- /{name} -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    if sources.rows is not None:
        text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    text = " ".join(text.split())
    for claim in sources.claims:
        text = text.replace(said(claim), "")
    settings: list[float] = []
    for path in sources.settings:
        settings += values_in(yaml.safe_load((ROOT / path).read_text(encoding="utf-8")))
    values = settings + values_of(sources.folders)
    counted = "".join((ROOT / path).read_text(encoding="utf-8") for path in sources.counts)
    return [
        figure
        for figure in FIGURE.findall(text)
        if figure not in sources.facts
        and not re.search(rf"\b{figure.replace(',', '_')}\b", counted)
        and not any(
            f"{value:,.{digits}f}" == figure
            for digits in [len(figure.partition(".")[2])]
            for value in (values if digits < LOSS_DIGITS else settings)
        )
    ]


def test_every_card_is_held():
    assert {path.stem for path in CARDS.glob("*.md")} == WRITTEN.keys() | SOURCES.keys() | UNHELD.keys()
    blocks = [place for sources in SOURCES.values() for _, place in sources.blocks]
    blocks += [sources.rows for sources in SOURCES.values() if sources.rows]
    assert all(place.endswith(".py") and (ROOT / place).is_file() for place in (*WRITTEN.values(), *blocks))
    assert all(name in (ROOT / place).read_text(encoding="utf-8") for name, place in WRITTEN.items())
    for name, told in UNHELD.items():
        assert told in " ".join((CARDS / f"{name}.md").read_text(encoding="utf-8").split())


def rows_of(folder: str) -> list[dict[str, str]]:
    with (SAMPLES / folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_readme_tells_the_seeds_that_the_ternary_rows_have():
    gap = [row for row in rows_of("ternary_gap") if row["weights"] != FULL]
    taught = {}
    for row in gap:
        if row["teacher"]:
            taught.setdefault(round(int(row["tokens_seen"]), -6), set()).add(row["seed"])
    (alone,) = {row["seed"] for row in gap if not row["teacher"]}
    assert alone and len({row["seed"] for row in rows_of("legacy_1bit")}) == 1
    counts = {millions: ("one", "two", "three", "four")[len(seeds) - 1] for millions, seeds in taught.items()}
    told = (
        f"The ternary comparisons rest on one seed, those with a teacher on {counts[3_000_000]} at three million bytes "
        f"and {counts[1_000_000]} at one million"
    )
    assert told in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", SOURCES)
def test_every_figure_of_a_card_is_in_its_files(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert untraced(text, SOURCES[name]) == []
    assert all(fact in text for fact in SOURCES[name].facts)
    parts = [SAMPLES / part for part in SOURCES[name].parts]
    assert all(part.read_text(encoding="utf-8").strip() in text for part in parts if part.is_file())
    assert all(f"<!-- /{block} -->" in text for block, _ in SOURCES[name].blocks)
    assert all(said(claim) in " ".join(text.split()) for claim in SOURCES[name].claims)


@pytest.mark.parametrize("name", [name for name, sources in SOURCES.items() if sources.claims])
def test_losses_that_change_places_are_found(name):
    """Both are in the rows, and neither is said of its own run."""
    text = " ".join((CARDS / f"{name}.md").read_text(encoding="utf-8").split())
    for claim in SOURCES[name].claims:
        phrase, table, (first, second, *others) = claim
        losses = re.findall(r"\d\.\d{3,}", said(claim))
        wrong = text.replace(said(claim), said((phrase, table, (second, first, *others))))
        assert wrong != text and set(losses) <= set(untraced(wrong, SOURCES[name]))


def test_a_figure_typed_by_hand_is_found():
    (loss,) = {value for value in values_of(("optimizers",)) if 5.75 < value < 5.7571}
    text = f"Muon ends at {loss:.3f}, and 5.123 is nowhere; 2506.16659 is a paper.\n```\n5.999\n```\n"
    text += "A tenth too, 8.7 %, and 12,345 tokens of a vocabulary of 4,000; torch 2.13.0.\n"
    assert untraced(text, SOURCES["optimizers"]) == [f"{loss:.3f}", "5.123", "8.7", "12,345"]


def test_a_curve_holds_no_figure_of_a_card():
    assert len(values_of(("legacy_1bit",))) < 1000
    assert untraced("The loss was 0.37 then, 0.73 later, 0.93 at last.", SOURCES["legacy_1bit"]) != []
