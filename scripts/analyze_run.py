"""Tell where the time of a training run went: data, forward, backward, guard, optimizer, evaluation, saving.

    frankenlm analyze runs/mini
    frankenlm analyze runs/mini --output_dir reports/mini

Reads timing.csv, which every training leaves (rank 0's share, by the clock of the host); for a run of an older
version what training.csv tells. Prints a table, and writes analysis.csv, analysis.json and analysis.png.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, path_value, run_command


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="DIR", type=path_value, help="the --output_dir of a training run")
    parser.add_argument("--output_dir", type=path_value, help="folder for the files (default: DIR)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for matplotlib
    from frankenlm.trainer_ext.commands.analyze import analyze

    analyze(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
