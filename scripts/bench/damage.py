"""Benchmark damage and restoration: elements per second through `apply_damage`, lesion statistics included.

    python scripts/bench/damage.py                            # half a minute; writes runs/bench/damage.json
    python scripts/bench/damage.py --threads 1 --rounds 20
    python scripts/bench/damage.py --record model_cards/benchmarks.md

The weights are the value projections of a Llama made from its configuration: eight square matrices.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from frankenlm.degradation.damage.noise import WORDS, fill_words, gaussian_tables, look_up
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, run_command
from frankenlm.trainer_ext.common.timing import interleaved_seconds, write_report

LEVELS = {"ablation": 0.3, "mult_gauss": 0.3, "add_gauss": 0.3, "uni_quant": 64}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYERS = 8


def build_model(width: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a Llama of eight layers whose value projections are [width, width], small everywhere else."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def damage_rates(width: int, rounds: int) -> list[dict]:
    """Million elements per second of every method, of restoring and of checking, one row a type."""
    rows = []
    for name, dtype in tqdm(DTYPES.items(), desc="damage"):
        with Baseline(build_model(width, dtype), "attn_only") as baseline:
            calls = {method: _damage(baseline, method, level) for method, level in LEVELS.items()}
            calls["restore"] = _restore(baseline)
            calls["verify"] = baseline.verify
            seconds = interleaved_seconds(calls, rounds=rounds)
        rates = {call: baseline.numel / statistics.median(times) / 1e6 for call, times in seconds.items()}
        rows.append({"weights": name, **rates})
    return rows


def _damage(baseline: Baseline, method: str, level: float):
    return lambda: apply_damage(baseline, method, level, 42, 0)


def _restore(baseline: Baseline):
    def restore():
        for saved in baseline.saved:
            saved.restore()

    return restore


def noise_rates(rounds: int) -> list[dict]:
    """Million words and Gaussians per second of one thread."""
    drawn, out, tables = np.empty(WORDS, dtype=np.uint32), np.empty(WORDS, dtype=np.float32), gaussian_tables()
    calls = {"words": lambda: fill_words((1, 2), 0, drawn), "look-up": lambda: look_up(drawn, *tables, out)}
    seconds = interleaved_seconds(calls, rounds=20 * rounds)
    return [{"step": name, "M/s": WORDS / statistics.median(times) / 1e6} for name, times in seconds.items()]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="rows and columns of a weight (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/damage.json"), help="JSON file to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_strictly(argv if argv is not None else sys.argv[1:])
    for name in ("threads", "rounds", "width"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1.")
    if arguments.width % 16:
        raise UserError(f"--width {arguments.width}: must be a multiple of 16, for eight heads of even width.")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = f"{LAYERS} weights of {arguments.width} x {arguments.width}"
    tables = {
        f"Damage of {shape} with lesion record, restore, verify: million elements/s": damage_rates(
            arguments.width, arguments.rounds
        ),
        "Noise on one thread": noise_rates(arguments.rounds),
    }
    print(write_report("damage", tables, arguments.output, arguments.record))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
