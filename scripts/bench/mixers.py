"""Benchmark the linear-cost mixers: does a token of a long sequence cost what a token of a short one does?

    python scripts/bench/mixers.py                            # 2 minutes; writes runs/bench/mixers.json
    python scripts/bench/mixers.py --threads 1 --rounds 30
    python scripts/bench/mixers.py --record model_cards/benchmarks.md

Also times Mamba-2 next to transformers' own Mamba2 (its PyTorch path), forward and backward, in the same run.
"""

import argparse
import statistics
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixers import build_mixer
from frankenlm.trainer_ext.common.timing import interleaved_seconds, median_ratio, write_report

HIDDEN, HEADS, CHUNK = 384, 6, 64  # the sizes of the preset mini
SHORT, LONG = 1024, 8192
OPTIONS = {"retnet": {"num_heads": HEADS}, "mamba": {}}


def training_step(layer, length: int, batch: int = 1):
    """Return a function that runs forward and backward once on a fixed random input."""
    x = torch.randn(batch, length, HIDDEN, requires_grad=True)

    def step():
        layer(x).sum().backward()

    return step


def our_layer(name: str, is_causal: bool):
    mixer = build_mixer(name, hidden_size=HIDDEN, chunk_size=CHUNK, **OPTIONS[name])

    def layer(x):
        context = SequenceContext.build(batch_size=x.shape[0], length=x.shape[1], device=x.device, is_causal=is_causal)
        return mixer(x, context, 0)[0]

    return layer


def linear_cost(rounds: int) -> list[dict]:
    """Microseconds per token, forward and backward, at both lengths; the ratio is taken round by round."""
    rows = []
    for name in tqdm(OPTIONS, desc="linear cost"):
        for is_causal in (True, False):
            layer = our_layer(name, is_causal)
            calls = {length: training_step(layer, length) for length in (SHORT, LONG)}
            seconds = interleaved_seconds(calls, rounds=rounds)
            per_token = {length: [s / length for s in seconds[length]] for length in calls}
            rows.append(
                {
                    "mixer": name,
                    "direction": "causal" if is_causal else "both",
                    f"us/token at {SHORT}": statistics.median(per_token[SHORT]) * 1e6,
                    f"us/token at {LONG}": statistics.median(per_token[LONG]) * 1e6,
                    "long / short": median_ratio(per_token[LONG], per_token[SHORT]),
                }
            )
    return rows


def against_transformers(rounds: int) -> list[dict]:
    """Milliseconds for forward and backward over 1,024 tokens, ours against transformers' Mamba2 at two chunk sizes."""
    calls = {"frankenlm mamba": training_step(our_layer("mamba", True), SHORT)}
    for chunk in (CHUNK, 256):
        config = Mamba2Config(
            hidden_size=HIDDEN, num_heads=2 * HIDDEN // 64, head_dim=64, state_size=64, n_groups=1, chunk_size=chunk
        )
        calls[f"transformers Mamba2, chunk {chunk}"] = training_step(Mamba2Mixer(config, layer_idx=0), SHORT)
    seconds = interleaved_seconds(calls, rounds=rounds)
    ours = seconds["frankenlm mamba"]
    return [
        {"layer": name, "ms": statistics.median(times) * 1e3, "time / ours": median_ratio(times, ours)}
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per table (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/mixers.json"), help="JSON file to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tables = {
        f"Time per token, forward + backward, float32, batch 1, hidden {HIDDEN}, chunk {CHUNK}": linear_cost(
            arguments.rounds
        ),
        f"Mamba-2, forward + backward, float32, batch 1 x {SHORT}, hidden {HIDDEN}": against_transformers(
            arguments.rounds
        ),
    }
    print(write_report("mixers", tables, arguments.output, arguments.record))


if __name__ == "__main__":
    main()
