"""Train small models on the recall task: key-value pairs, filler beyond the attention window, then the keys again.

    python scripts/evidence/recall.py --output_dir runs/recall      # about 30 CPU minutes

Every trained model is a row of runs.csv and is not trained again; table.md has the means. What the models are is in
scripts/evidence/recall_table.py, the task in scripts/evidence/recall_task.py.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from frankenlm.modeling.checks import suggest
from frankenlm.scripts.evidence.recall_table import MODELS, read_rows, recall_table, run_row, write_rows
from frankenlm.scripts.evidence.recall_task import RecallTask
from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_numbers,
    check_output_dir,
    check_seeds,
    check_threads,
    path_value,
    run_command,
)
from frankenlm.trainer_ext.common.files import write_text


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output_dir", type=path_value, required=True, help="folder of runs.csv and table.md")
    add("--models", nargs="+", default=list(MODELS), help=f"some of {'; '.join(MODELS)} (default: all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of weights and sequences (default: 0 1 2)")
    add("--steps", type=int, default=290, help="steps of a training (default: %(default)s)")
    add("--batch", type=int, default=32, help="sequences a step (default: %(default)s)")
    add("--learning_rate", type=float, default=3e-3, help="peak learning rate (default: %(default)s)")
    add("--threads", type=int, help="torch threads (default: torch's own)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    check(args)
    check_output_dir(args.output_dir)
    if args.threads:
        torch.set_num_threads(args.threads)
    path, task = args.output_dir / "runs.csv", RecallTask()
    rows = read_rows(path)
    settings = {"steps": args.steps, "batch": args.batch, "learning_rate": args.learning_rate}
    for row in rows:
        if settings != {name: row[name] for name in settings}:
            raise UserError(f"{path} was made with other settings; use another --output_dir.")
    done = {(row["model"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for model in args.models:
            if (model, seed) not in done:
                rows.append(run_row(model, seed, task, **settings))
                write_rows(path, rows)
                print(f"{model}, seed {seed}: {rows[-1]['accuracy']:.3f} (chance {task.chance:g})", flush=True)
    write_text(args.output_dir / "table.md", recall_table(rows))
    print(recall_table(rows))


def check(args: argparse.Namespace) -> None:
    """Refuse names that do not exist and numbers that nothing can be trained with."""
    for name in args.models:
        if name not in MODELS:
            raise UserError(f"--models: unknown name {name!r}.{suggest(name, MODELS)} Known: {'; '.join(MODELS)}.")
    check_numbers(args, least={"steps": 1, "batch": 1}, between=("learning_rate",))
    check_threads(args.threads)
    check_seeds(args.seeds)


if __name__ == "__main__":
    sys.exit(run_command(main))
