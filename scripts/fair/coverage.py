"""How often the 95 % intervals of few seeds hold the truth, by simulation: what a card says of them.

    python scripts/fair/coverage.py --output_dir results/samples/coverage --card model_cards/fair_tables.md

Differences between paired runs are drawn with a known mean, from a normal distribution and from an exponential one,
where now and then a seed goes astray to one side. Written are coverage.csv and the block of the card.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frankenlm.scripts.fair.blocks import with_block
from frankenlm.trainer_ext.common.cli import OneLineParser, check_output_dir, path_value, run_command
from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.metrics.seeds import paired_difference

SEEDS, SIMULATIONS, RANDOM_SEED = (3, 4, 5), 20_000, 0
# With mean 1 and standard deviation 1 each.
DIFFERENCES = {
    "normal": lambda generator, size: generator.normal(1.0, 1.0, size),
    "exponential": lambda generator, size: generator.exponential(1.0, size),
}
COLUMNS = ("differences", "seeds", "simulations", "held", "share")
MARK = "coverage: coverage.csv"


def coverage(kind: str, seeds: int, simulations: int = SIMULATIONS) -> dict[str, Any]:
    """Count the intervals of a mean difference over so many seeds that hold the true mean, 1."""
    drawn = DIFFERENCES[kind](np.random.default_rng(RANDOM_SEED), (simulations, seeds))
    held = 0
    for ours in drawn.tolist():
        found = paired_difference(dict(enumerate(ours)), dict.fromkeys(range(seeds), 0.0))
        held += found["low"] <= 1.0 <= found["high"]
    return {"differences": kind, "seeds": seeds, "simulations": simulations, "held": held, "share": held / simulations}


def coverage_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: a line a distribution, the share in percent by seeds."""
    lines = []
    for kind in dict.fromkeys(row["differences"] for row in rows):
        mine = [row for row in rows if row["differences"] == kind]
        shares = {f"{row['seeds']} seeds": f"{100 * float(row['share']):.1f} %" for row in mine}
        lines.append({"differences are": kind, **shares})
    return markdown_table(lines) + "\n"


def read_coverage(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=path_value, required=True, help="folder of coverage.csv")
    parser.add_argument("--card", type=path_value, help="Markdown file whose block is written anew")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(args.output_dir / "coverage.csv", [coverage(kind, n) for kind in DIFFERENCES for n in SEEDS], COLUMNS)
    text = coverage_text(read_coverage(args.output_dir / "coverage.csv"))
    if args.card:
        write_text(args.card, with_block(args.card, args.card.read_text(encoding="utf-8"), MARK, text))
    print(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
