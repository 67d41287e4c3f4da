"""Measure whether the memories and the mixers help: equal tokens, equal parameters, three seeds, with and without.

    python scripts/evidence/memory.py --output_dir runs/evidence --tables mixers   # about 15 CPU minutes
    python scripts/evidence/memory.py --output_dir runs/evidence --tables code     # about 35 CPU minutes
    python scripts/evidence/memory.py --output_dir runs/evidence --tables wikipedia --data DIR   # about 60 CPU minutes
    python scripts/evidence/memory.py --output_dir runs/evidence --tables code --report_only --card card.md
    python scripts/evidence/memory.py --from_report results/samples/memory_evidence/report.json --card card.md
    python scripts/evidence/memory.py --output_dir runs/smoke --smoke              # tiny, in a minute

The tables mixers and code take text that every Python installation carries; wikipedia takes yours, from --data.

Every run is a JSON file below the output folder. A finished one is never repeated, so an interrupted call goes on where
it stopped, and several calls may share the folder if their --models, --tables or --seeds differ. The report says which
runs are missing. One whose loss is no number any more gave up: that is its result,
and it is not tried again. What is compared, and how, is in scripts/evidence/plan.py.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers.utils import logging as transformers_logging

from frankenlm.modeling.checks import suggest
from frankenlm.scripts.evidence.plan import (
    SEEDS,
    TABLES,
    Laboratory,
    change_recipe,
    make_runs,
    parameter_lines,
    smoke_table,
)
from frankenlm.scripts.evidence.report import make_report, read_report, write_card, write_report_files
from frankenlm.scripts.evidence.runs import RunStore
from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_new_file,
    check_numbers,
    check_output_dir,
    check_seeds,
    check_threads,
    path_value,
    run_command,
    user_mistakes,
)

NEED_DATA = [name for name, table in TABLES.items() if table.needs_data]
MODELS = list(dict.fromkeys(variant.name for table in TABLES.values() for variant in table.variants))


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output_dir", type=path_value, help="folder of the runs, the kept checkpoints and the report")
    add(
        "--data",
        type=path_value,
        help=f"folder with train, validation and test.jsonl, a document a line; for the table {', '.join(NEED_DATA)}",
    )
    add(
        "--tables",
        nargs="+",
        help=f"some of {', '.join(TABLES)} (default: all with --data; without it, those that need none)",
    )
    add("--models", nargs="+", default=MODELS, help=f"some of {', '.join(MODELS)} (default: all)")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=list(SEEDS),
        help="the first one chooses the learning rates (default: 0 1 2)",
    )
    add(
        "--tokens",
        type=int,
        help="tokens a run trains on (default: the table's own, "
        f"{', '.join(f'{name} {table.recipe.tokens:,}' for name, table in TABLES.items())})",
    )
    add(
        "--learning_rates",
        nargs="+",
        type=float,
        help="rates to try instead of the tables' own; without this option, the report then lists them apart",
    )
    add("--bf16", action="store_true", help="autocast to bfloat16: faster, other numbers (default: float32)")
    add("--threads", type=int, help="torch threads (default: torch's own)")
    add("--smoke", action="store_true", help="tiny models, tiny text, four steps: does everything work?")
    add("--report_only", action="store_true", help="train nothing, report on the finished runs")
    add(
        "--report_dir",
        type=path_value,
        help="folder of report.json, tables and figures (default: output_dir/report)",
    )
    add("--card", type=path_value, help="Markdown file to write the report to, in words")
    add("--from_report", type=path_value, help="write --card from this report.json; its figures lie beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    if args.card:
        check_new_file("--card", args.card)
    if args.from_report:
        rewrite_card(args)
        return
    if args.output_dir is None:
        raise UserError("--output_dir is missing: the folder of the runs, the kept checkpoints and the report.")
    args.tables = choose_tables(args)
    check_choices("--models", args.models, MODELS)
    check_numbers(args, least={"tokens": 1})
    check_threads(args.threads)
    check_seeds(args.seeds)
    for rate in args.learning_rates or ():
        if not 0 < rate < 1:
            raise UserError(f"--learning_rates {rate:g}: must lie between 0 and 1.")
    report_dir = args.report_dir or args.output_dir / "report"
    for folder in (args.output_dir, report_dir):
        check_output_dir(folder)
    if args.threads:
        torch.set_num_threads(args.threads)
    store = RunStore(args.output_dir)
    tables = [table_of(args, name) for name in args.tables]

    if not args.report_only:
        with user_mistakes():
            laboratories = [
                Laboratory(table, table.load(args.data), store, args.seeds, args.models) for table in tables
            ]
        print(*parameter_lines(laboratories), sep="\n")
        make_runs(laboratories)
    report = make_report(tables, store, args.seeds)
    write_report_files(report, report_dir, args.card)
    print((report_dir / "table.md").read_text(encoding="utf-8"))
    print(f"report: {report_dir / 'report.json'}")


def rewrite_card(args: argparse.Namespace) -> None:
    """Write the card of an earlier report, with the rules of today.

    Raises:
        UserError: there is no --card, or no report.
    """
    if args.card is None:
        raise UserError("--from_report needs --card FILE to write to.")
    if args.card.absolute() == args.from_report.absolute():
        raise UserError(f"--card {args.card}: is the report itself; name another file.")
    report = read_report(args.from_report)
    write_card(report, args.from_report.parent, args.card)
    print(f"card: {args.card}")


def choose_tables(args: argparse.Namespace) -> list[str]:
    """The tables asked for; without --tables, all that can be made with what is given.

    Raises:
        UserError: an unknown name, or one that needs --data.
    """
    if args.tables is None:
        return [name for name in TABLES if args.data or args.report_only or name not in NEED_DATA]
    check_choices("--tables", args.tables, list(TABLES))
    lacking = [name for name in args.tables if name in NEED_DATA]
    if lacking and not (args.data or args.report_only):
        raise UserError(
            f"--tables {lacking[0]} needs --data FOLDER with train, validation and test.jsonl; "
            f"{' and '.join(name for name in TABLES if name not in NEED_DATA)} need none."
        )
    return args.tables


def table_of(args: argparse.Namespace, name: str):
    """The table as the options ask for it."""
    table = smoke_table(TABLES[name]) if args.smoke else TABLES[name]
    if args.learning_rates:
        table = replace(table, learning_rates=tuple(args.learning_rates))
    return change_recipe(table, bf16=args.bf16, tokens=args.tokens or table.recipe.tokens)


def check_choices(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that do not exist."""
    for name in given:
        if name not in known:
            raise UserError(f"{option}: unknown name {name!r}.{suggest(name, known)} Known: {', '.join(known)}.")


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    sys.exit(run_command(main))
