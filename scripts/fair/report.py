r"""Fair tables: what a part of the model changes, each entrant at its own best rate, over paired seeds, on a test text.

    python scripts/fair/fetch_texts.py --output_dir runs/texts/wikipedia
    frankenlm sweep --config configs/sweeps/fair_norms.yaml --output_dir runs/fair_norms --dry_run   # runs and minutes
    frankenlm sweep --config configs/sweeps/fair_norms.yaml --output_dir runs/fair_norms
    python scripts/fair/report.py --sweeps runs/fair_norms --output_dir results/samples \
        --card model_cards/fair_tables.md

The sweeps are those of `TABLES` in scripts/fair/tables.py; model_cards/fair_tables.md says what some need first, and
a stopped one goes on with the same command. For each, a folder of --output_dir gets runs.csv (a row a run, made or not)
and table.md; in the card, the block with the sweep's name is written anew.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frankenlm.scripts.fair.blocks import with_block
from frankenlm.scripts.fair.tables import COLUMNS, GAVE_UP, TABLES, read_rows, report_text
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, check_output_dir, path_value, run_command
from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.sweeps.run_folder import GAVE_UP as LAST_WORDS
from frankenlm.trainer_ext.sweeps.run_folder import RECORD, read_json
from frankenlm.trainer_ext.sweeps.table import GROUP, STAGE


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row for each run of a sweep's folder, keyed by `COLUMNS`.

    Raises:
        UserError: it is no folder of a sweep with a choice.
    """
    try:
        runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
        return [_row(folder, run) for run in runs]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"--sweeps {folder}: no folder of a fair sweep ({type(error).__name__}: {error}).") from error


def _row(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    facts, record = (read_json(folder / run["name"] / name) for name in ("metrics.json", RECORD))
    gave_up = run["status"] == "failed" and run["message"].startswith(LAST_WORDS)
    return {
        "run": run[GROUP],
        **{name: run[name] for name in ("learning_rate", "seed", STAGE, "eval_loss", "message")},
        "status": GAVE_UP if gave_up else run["status"],
        "parameters": facts.get("parameters"),
        "tokens": facts.get("tokens_seen"),
        "seconds": record.get("process_seconds"),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--sweeps", nargs="+", type=path_value, required=True, help="output folders of the sweeps, named as they are")
    add("--output_dir", type=path_value, required=True, help="folder in which each table gets one of its own")
    add("--card", type=path_value, help="Markdown file whose blocks are written anew")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    for folder in args.sweeps:
        if folder.name not in TABLES:
            raise UserError(f"--sweeps {folder}: its name says which table it is, one of {', '.join(TABLES)}.")
    made = {folder.name: rows_of(folder) for folder in args.sweeps}
    card = args.card and args.card.read_text(encoding="utf-8")
    for name in made if args.card else ():  # a card without a block is told before a file is written
        with_block(args.card, card, f"{name}: table.md", "")
    for name, rows in made.items():
        target = args.output_dir / name
        target.mkdir(parents=True, exist_ok=True)
        write_csv(target / "runs.csv", rows, COLUMNS)
        text = report_text(name, read_rows(target / "runs.csv"))  # from what is kept, so that it can be made again
        write_text(target / "table.md", text)
        if args.card:
            card = with_block(args.card, card, f"{name}: table.md", text)
        print(f"## {TABLES[name].title}\n\n{text}")
    if args.card:
        write_text(args.card, card)


if __name__ == "__main__":
    sys.exit(run_command(main))
