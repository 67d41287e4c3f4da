"""Benchmark mixers by themselves: long rows, rows of many documents, and the peers that they can be held against.

    python scripts/bench/mixers.py                            # minutes; writes runs/bench/mixers.json
    python scripts/bench/mixers.py --threads 1 --rounds 30 --tables cost peer
    python scripts/bench/mixers.py --record model_cards/benchmarks.md

cost: does a token of a long row cost what a token of a short one does? hope: hyperbolic against standard attention.
borders: a row of 64 documents against one document of its length. chunks: the delta memory's scan by chunk.
peer: Mamba-2 next to transformers' own Mamba2 (its PyTorch path). All that is compared is timed in turn.
"""

import argparse
import functools
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.mixers import build_mixer
from frankenlm.modeling.scan_delta import delta_scan_chunked
from frankenlm.trainer_ext.common.timing import interleaved_seconds, median_ratio, write_report

HIDDEN, HEADS, CHUNK = 384, 6, 64  # the sizes of the preset mini
SHORT, LONG = 1024, 8192
OPTIONS = {"retnet": {"num_heads": HEADS, "chunk_size": CHUNK}, "mamba": {"chunk_size": CHUNK}}
ATTENTION = {"num_heads": HEADS, "position_type": "rope"}
EVERY_MIXER = OPTIONS | {
    "standard_attn": ATTENTION,
    "sigmoid_attn": ATTENTION,
    "titan_attn": {"num_heads": HEADS},
    "titan_attn with memory": {"num_heads": HEADS, "use_memory": True},
}
DIRECTIONS = {True: "causal", False: "both"}


def training_step(layer, length: int, batch: int = 1):
    """Return a function that runs forward and backward once on a fixed random input."""
    x = torch.randn(batch, length, HIDDEN, requires_grad=True)

    def step():
        layer(x).sum().backward()

    return step


def forward_pass(layer, length: int, batch: int = 1):
    """Return a function that runs forward once, without gradients, on a fixed random input."""
    x = torch.randn(batch, length, HIDDEN)

    def step():
        with torch.no_grad():
            layer(x)

    return step


PASSES = {"forward": forward_pass, "forward + backward": training_step}


def layer_of(mixer, is_causal: bool, logical_layer: int = 0, document: int | None = None):
    """Return a function of (B, L, D) that finds the context, with documents of so many tokens, and runs the mixer."""

    def layer(x):
        length = x.shape[1]
        borders = None if document is None else {"seq_idx": torch.arange(length)[None] // document}
        context = SequenceContext.build(
            batch_size=len(x), length=length, device=x.device, is_causal=is_causal, borders=borders
        )
        return mixer(x, context, logical_layer)[0]

    return layer


def our_layer(name: str, is_causal: bool):
    return layer_of(build_mixer(name, hidden_size=HIDDEN, **OPTIONS[name]), is_causal)


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
                    "direction": DIRECTIONS[is_causal],
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


def hope_cost(rounds: int) -> list[dict]:
    """Milliseconds of causal hyperbolic attention, in the first and the 24th layer, against standard attention."""
    hope = build_mixer("titan_attn", hidden_size=HIDDEN, num_heads=HEADS)
    layers = {"standard": layer_of(build_mixer("standard_attn", hidden_size=HIDDEN, **ATTENTION), True)}
    layers |= {f"HoPE, layer {index}": layer_of(hope, True, index) for index in (0, 23)}
    rows = []
    for length in tqdm((1024, 4096), desc="hope"):
        for kind, make in PASSES.items():
            seconds = interleaved_seconds({name: make(each, length) for name, each in layers.items()}, rounds=rounds)
            for name, times in seconds.items():
                ratio = median_ratio(times, seconds["standard"])
                rows.append(
                    {
                        "tokens": length,
                        "pass": kind,
                        "attention": name,
                        "ms": statistics.median(times) * 1e3,
                        "/ standard": ratio,
                    }
                )
    return rows


def borders_cost(rounds: int) -> list[dict]:
    """The time of a row of 64 documents over that of one document of its length, for every mixer."""
    rows, length = [], 64 * 32
    for name in tqdm(EVERY_MIXER, desc="borders"):
        mixer = build_mixer(name.partition(" ")[0], hidden_size=HIDDEN, **EVERY_MIXER[name])
        for is_causal, direction in DIRECTIONS.items():
            row = {"mixer": name, "direction": direction}
            for kind, make in PASSES.items():
                layers = {size: layer_of(mixer, is_causal, document=size) for size in (None, 32)}
                seconds = interleaved_seconds({s: make(each, length) for s, each in layers.items()}, rounds=rounds)
                row[f"{kind}, 64 / 1"] = median_ratio(seconds[32], seconds[None])
            rows.append(row)
    return rows


def chunk_cost(rounds: int) -> list[dict]:
    """The time of the delta scan by chunk, over that of chunks of 32 tokens."""
    rows = []
    for batch, length in tqdm([(8, 512), (1, 2048), (1, 8192)], desc="chunks"):
        q, k = (F.normalize(torch.randn(batch, HEADS, length, HIDDEN // HEADS), dim=-1) for _ in range(2))
        log_alpha, eta = -0.02 * torch.rand(batch, HEADS, length), 0.3 * torch.rand(batch, HEADS, length)
        inputs = [x.requires_grad_() for x in (q, k, torch.randn_like(q), log_alpha, eta)]

        def scan(chunk, is_training, inputs=inputs):
            with torch.set_grad_enabled(is_training):
                output = delta_scan_chunked(*inputs, chunk)[0]
            if is_training:
                output.sum().backward()

        for is_training, kind in enumerate(PASSES):
            calls = {chunk: functools.partial(scan, chunk, bool(is_training)) for chunk in (16, 32, 64, 128)}
            seconds = interleaved_seconds(calls, rounds=rounds)
            ratios = {f"{chunk} / 32": median_ratio(times, seconds[32]) for chunk, times in seconds.items()}
            rows.append({"batch x tokens": f"{batch} x {length}", "pass": kind} | ratios)
    return rows


TABLES = {
    "cost": (f"Time per token, forward + backward, float32, batch 1, hidden {HIDDEN}, chunk {CHUNK}", linear_cost),
    "hope": (f"Causal attention, float32, batch 1, hidden {HIDDEN}, {HEADS} heads", hope_cost),
    "borders": (f"64 documents of 32 tokens against one of 2,048, float32, hidden {HIDDEN}", borders_cost),
    "chunks": (f"Delta scan by chunk, float32, {HEADS} heads of {HIDDEN // HEADS}", chunk_cost),
    "peer": (f"Mamba-2, forward + backward, float32, batch 1 x {SHORT}, hidden {HIDDEN}", against_transformers),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per table (default: %(default)s)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which tables to measure")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/mixers.json"), help="JSON file to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tables = {title: measure(arguments.rounds) for title, measure in (TABLES[name] for name in arguments.tables)}
    print(write_report("mixers", tables, arguments.output, arguments.record))


if __name__ == "__main__":
    main()
