"""The command dry-run: what an experiment will take, by estimate and, where asked for, by one timed batch."""

import argparse
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from frankenlm.trainer_ext.common.cli import UserError, check_new_file, user_mistakes
from frankenlm.trainer_ext.common.files import write_json

from .flags import add_experiment_flags, add_model_flags, experiments_of, options_of, planned
from .records.row_keys import load_json

if TYPE_CHECKING:
    from .lab import Lab
    from .run.estimate import Estimate
    from .run.plan import Experiment

ESTIMATES = "estimates"  # the key of the report
MOST_GB = 1_000_000


def dry_run_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument("--report", help="JSON file to write the estimate to")
    parser.add_argument(
        "--probe", action="store_true", help="also load the model, time one batch and say how long all takes"
    )
    parser.add_argument("--device_gb", type=gigabytes, help="memory of a device that is elsewhere, in GB (10^9 bytes)")
    parser.add_argument(
        "--device_gb_s", type=gigabytes, help="its memory's bandwidth in GB/s: say how long reading the weights takes"
    )
    add_experiment_flags(parser)


def gigabytes(text: str) -> float:
    """Read a size of memory; of nothing, or of more than there is anywhere, nothing can be estimated."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size <= MOST_GB:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in GB above 0 and up to {MOST_GB:,}")
    return size


def dry_run_command(args: argparse.Namespace) -> None:
    from .lab import Lab
    from .run.estimate import dry_run

    configs = experiments_of(args)
    if args.report:
        check_new_file("--report", Path(args.report))
        refuse_foreign("--report", Path(args.report), ESTIMATES)
    with user_mistakes():
        lab = Lab(args.model, options_of(args))
        experiments = planned(lab, configs, windows=args.windows is not None)
        estimates = [
            dry_run(
                args.model,
                experiment.config,
                experiment.model_config,
                experiment.prompts,
                device=args.device,
                trust_remote_code=args.trust_remote_code,
                device_total=int(args.device_gb * 1e9) if args.device_gb else None,
            )
            for experiment in experiments
        ]
    records = []
    for experiment, estimate in zip(experiments, estimates, strict=True):
        print(estimate.table())
        records.append(estimate.as_json())
        if args.device_gb_s:
            records[-1] |= {"least_s": _tell_least(experiment, estimate, args.device_gb_s)}
        if args.probe:
            shortest, longest = probe(lab, experiment, estimate)
            text = f"{hours(shortest)} if answers stay as long as undamaged, {hours(longest)} if all are cut off"
            print(f"{hours(shortest)} for all rows" if experiment.fills_masks else text)
            records[-1] |= {"shortest_s": shortest, "longest_s": longest}
    if args.report:
        Path(args.report).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.report), {ESTIMATES: records})


def _tell_least(experiment: "Experiment", estimate: "Estimate", bandwidth: float) -> float:
    """Print how long an experiment takes at least, if all answers are cut off at their limit; return the seconds."""
    tokens = 1 if experiment.fills_masks else experiment.config.max_new_tokens
    seconds = estimate.least_seconds(bandwidth * 1e9, tokens)
    print(f"at least {hours(seconds)}: reading the weights at {bandwidth:g} GB/s for {tokens} tokens of every batch")
    return seconds


def probe(lab: "Lab", experiment: "Experiment", estimate: "Estimate") -> tuple[float, float]:
    """Load the model, time one batch of undamaged answers, and return the range of seconds for all rows."""
    from tqdm import tqdm

    from .lab import Lab
    from .run.plan import CellPlan

    with tempfile.TemporaryDirectory() as folder:
        options = dataclasses.replace(lab.options, output_dir=folder, progress=False)
        trial = Lab(lab.name, options)
        few = {"max_prompts": min(estimate.batch_size, len(experiment.prompts)), "perplexity": False}
        planned = trial.plan(experiment.config | few)
        (baseline, *_) = (cell for cell in planned.cells if cell.is_baseline)
        with trial.session(planned) as run, run.subject() as subject:
            record = run.cell(CellPlan(baseline, tuple(range(len(planned.prompts)))), subject, tqdm(disable=True))
            tokens = sum(row["tokens_generated"] for row in run.store.rows())
    longest = tokens / record["rows"] if experiment.fills_masks else experiment.config.max_new_tokens
    return estimate.time_range(record["generate_s"], record["rows"], max(1, tokens), longest)


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def refuse_foreign(option: str, path: Path, key: str) -> None:
    """Raise UserError where a file is in the way that this program did not write: a JSON object with that key."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        ours = key in load_json(path.read_bytes())
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{option} {path}: is there already, and no report of this command: choose another name.")
