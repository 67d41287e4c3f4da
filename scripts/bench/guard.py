"""Benchmark the gradient guard: what looking at the gradients and the rolling copy add to a training step.

    python scripts/bench/guard.py                            # 4 minutes, 3 GB; writes runs/bench/guard.json
    python scripts/bench/guard.py --batch 2 --length 128 --rounds 20
    python scripts/bench/guard.py --record model_cards/benchmarks.md

The step is one of the preset mini at full size, with the safeguards' own calls timed in turn with it: the quotient of
each round is what they add to it.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, check_threads, path_value, run_command
from frankenlm.trainer_ext.common.timing import interleaved_seconds, median_ratio, write_report
from frankenlm.trainer_ext.optim.gradients import inspect_gradients
from frankenlm.trainer_ext.optim.rolling_copy import RollingCopy


def measure(batch: int, length: int, rounds: int) -> list[dict]:
    """Seconds of a step and of each safeguard, and their share of the step, one row a part."""
    torch.manual_seed(0)
    model = FrankensteinForMaskedLM(FrankensteinConfig.from_preset("mini"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (batch, length))
    copy = RollingCopy(model.parameters(), [optimizer])

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    calls = {"step": step, "guard": lambda: inspect_gradients(model.named_parameters()), "rolling copy": copy.take}
    seconds = interleaved_seconds(calls, rounds=rounds)
    return [
        {
            "part": name,
            "seconds": statistics.median(times),
            "percent of the step": 100 * median_ratio(times, seconds["step"]),
        }
        for name, times in seconds.items()
    ]


def main(argv=None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=int, default=8, help="rows of a step (default: 8)")
    add("--length", type=int, default=512, help="tokens of a row (default: 512)")
    add("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    add("--threads", type=int, help="threads of torch (default: torch's own)")
    add("--output", type=path_value, default=Path("runs/bench/guard.json"), help="JSON file to write")
    add("--record", type=path_value, help="Markdown file to add the tables to")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    for name in ("batch", "length", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1.")
    check_threads(args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    title = f"gradient guard, mini at full size, batch {args.batch} x {args.length}, fp32"
    print(write_report(title, {title: measure(args.batch, args.length, args.rounds)}, args.output, args.record))


if __name__ == "__main__":
    sys.exit(run_command(main))
