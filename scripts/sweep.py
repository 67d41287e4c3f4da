"""Train every combination of a YAML grid, run by run, and say which was best.

    frankenlm sweep --config configs/sweeps/optimizers.yaml --output_dir runs/optimizers --dry_run
    frankenlm sweep --config configs/sweeps/optimizers.yaml --output_dir runs/optimizers
    frankenlm sweep --config grid.yaml --output_dir runs/rates --set max_steps=20 --only "*seed=0"

The file holds `base` (settings of every run, as in a run.yaml of `train`), `grid` (setting: list of values), `runs`
(name: settings, with a `grid` of its own), `seeds`, `metric` and `name`; trainer_ext/sweeps/grid.py has an example.
With `choice` and `report` a seed of its own chooses a value before others are reported: trainer_ext/sweeps/choice.py.
Every run is checked before the first begins, and is a training of its own in its own folder. A sweep that was stopped
goes on when the same command is given again: finished runs stand, an interrupted one goes on from its checkpoint, a
failed one is tried again. Writes sweep.csv (a row a run), sweep.json, sweep.md (means over seeds, the best) and
sweep.png, after every run. Exit codes: 0 done, 1 a run failed (the others were made) or has nothing to choose by,
2 a mistake found before anything was run, 6 storage full or read-only, 130 / 143 stopped by a signal.
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
    add("--config", required=True, type=path_value, help="YAML file of the sweep")
    add("--output_dir", required=True, type=path_value, help="folder for the runs and the reports")
    add("--dry_run", action="store_true", help="check every run and say what would be done")
    add("--only", nargs="+", default=[], metavar="NAME", help="make these runs alone; * stands for anything")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings in place of those in base")
    add("--jobs", type=int, default=1, help="runs at a time; give them cpu_threads to share a CPU (default: 1)")
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.sweep import sweep

    sweep(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
