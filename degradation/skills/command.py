"""The command skills: its flags, the order of the checks, and what is printed."""

import argparse
from pathlib import Path

from frankenlm.trainer_ext.common.cli import UserError, check_output_dir, user_mistakes

from ..configs import METHODS, get_config
from ..flags import add_log_flag, add_model_flags, options_of, read_levels, words_of

DEFAULTS = get_config("iq_it")
FIELDS = ("method", "levels", "n_rep", "seed_base", "dtype")


def skills_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--output_dir", default="results", help="folder of results (default: results)")
    parser.add_argument("--method", choices=METHODS, help=f"how weights are damaged (default: {DEFAULTS.method})")
    parser.add_argument("--group", nargs="+", metavar="NAME", help=f"which weights (default: {DEFAULTS.group})")
    parser.add_argument("--levels", type=read_levels, help="levels, mild to severe (default: those of the thesis)")
    parser.add_argument("--n_rep", type=int, help=f"repeats of every level (default: {DEFAULTS.n_rep})")
    parser.add_argument("--seed_base", type=int, help=f"seed of the first repeat (default: {DEFAULTS.seed_base})")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help=f"(default: {DEFAULTS.dtype})")
    add_log_flag(parser)


def skills_command(args: argparse.Namespace) -> None:
    """Measure what is missing, and write and print which skills broke first."""
    from frankenlm.trainer_ext.common.logs import RunLog

    from ..lab import Lab
    from .measuring import measure_skills, plan_skills
    from .table import write_tables

    changes = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    with user_mistakes():
        base = DEFAULTS | changes
        configs = [base | {"group": group} if group else base for group in words_of("group", args.group)]
        check_output_dir(args.output_dir)
        lab = Lab(args.model, options_of(args))
        if lab.processes > 1:
            raise UserError(f"skills: {lab.processes} processes were started; start one.")
        experiments = plan_skills(lab, configs)
    with RunLog(args.log_level), user_mistakes():
        folder = measure_skills(lab, experiments, Path(args.output_dir))
        print(write_tables(folder))
