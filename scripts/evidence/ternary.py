"""Put finished runs of Legacy-1bit into one table, beside the bigram entropy of their data.

    python scripts/evidence/ternary.py --runs runs/legacy/* --dataset train.jsonl \
        --validation_dataset validation.jsonl --output_dir results/samples/legacy_1bit

Each run is an output folder of scripts/train.py; model_cards/legacy_1bit.md has their commands. Written are runs.csv,
report.json (the runs with all figures, and the bigram entropies) and table.md, with what the rows say above them.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.scripts.evidence.ternary_table import bigram_entropies, read_run, report_text, write_report
from frankenlm.trainer_ext.common.cli import OneLineParser, check_output_dir, path_value, run_command, user_mistakes
from frankenlm.trainer_ext.data.splits import iter_texts, load_splits


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--runs",
        nargs="+",
        type=path_value,
        required=True,
        help="folders of finished runs, in the table's order",
    )
    add("--dataset", required=True, help="the text they were trained on, given as to scripts/train.py")
    add("--validation_dataset", help="the text they were evaluated on (default: split off the training text)")
    add("--output_dir", type=path_value, required=True, help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    with user_mistakes():
        rows = [read_run(folder) for folder in args.runs]
        splits = load_splits(args.dataset, validation=args.validation_dataset)
        bigram = bigram_entropies(iter_texts(splits["train"]), iter_texts(splits["validation"]))
    write_report(args.output_dir, rows, bigram)
    print(report_text(rows, bigram))


if __name__ == "__main__":
    sys.exit(run_command(main))
