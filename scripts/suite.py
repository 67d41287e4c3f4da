"""Train small decoders of every mixer on the standard synthetic tasks, and say who solves what.

    frankenlm suite --output_dir runs/suite --quick                    # a minute: does it run?
    frankenlm suite --output_dir runs/suite                            # about an hour of one core
    frankenlm suite --output_dir runs/recall --tasks mqar --set mqar.pairs=8 --hidden_sizes 16 32 64 128

Tasks: multi-query associative recall (arXiv:2312.04927) and MAD's six (arXiv:2403.17844), at sizes that a CPU trains in
seconds. Each mixer's learning rate is chosen with a seed of its own, and what is told are runs with other seeds.
Every finished run is a row of suite.csv; the same command, given again, goes on with the rest. Writes suite.csv,
suite.json, suite.md and suite.png. Exit codes: 0 done, 1 failed, 2 a mistake found before anything was run, 6 storage
full or read-only, 130 / 143 stopped by a signal.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, path_value, run_command
from frankenlm.trainer_ext.common.flags import add_log_flag


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output_dir", required=True, type=path_value, help="folder of suite.csv and the reports")
    add("--tasks", nargs="+", metavar="TASK", help="some of the tasks (default: all; --dry_run lists them)")
    add("--mixers", nargs="+", metavar="MIXER", help="some of the mixers (default: all; --dry_run lists them)")
    add("--set", nargs="+", default=[], metavar="TASK.FIELD=VALUE", help="other sizes of a task, as in mqar.pairs=8")
    add("--hidden_sizes", nargs="+", type=int, help="the first for every task, the others for mqar (default: 32 16 64)")
    add("--mamba_states", nargs="+", type=int, help="mamba's state: the first, and others for mqar (default: 32 8)")
    add("--learning_rates", nargs="+", type=float, help="those tried for each mixer (default: 0.003 0.01 0.03)")
    add("--seeds", nargs="+", type=int, help="seeds of the runs that are told (default: 0 1 2)")
    add("--selection_seed", type=int, default=1000, help="seed of those that choose a rate (default: %(default)s)")
    add(
        "--steps",
        nargs="+",
        type=int,
        help="the first for every task, others for mqar's retnet and mamba (default: 400 1200)",
    )
    add("--batch_size", type=int, default=32, help="rows a step (default: %(default)s)")
    add("--test_rows", type=int, help="rows that each model is asked (default: 256)")
    add("--quick", action="store_true", help="a smoke run: two tasks, one size, one rate, one seed, 20 steps")
    add("--dry_run", action="store_true", help="check everything and say what would be run")
    add("--report_only", action="store_true", help="run nothing: write the reports of the runs that are finished")
    add("--card", type=path_value, help="write the page to this file as well")
    add("--threads", type=int, help="torch threads (default: torch's own)")
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.suite import suite

    suite(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
