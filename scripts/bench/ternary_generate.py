"""Benchmark a packed decoder end to end: generate() at batch 1, next to the same model in torch, and to llama.cpp.

    python scripts/bench/ternary_generate.py                  # 6 minutes; writes runs/bench/ternary_generate.json
    python scripts/bench/ternary_generate.py --llama_python venv/bin/python
    python scripts/bench/ternary_generate.py --record model_cards/benchmarks.md

The decoder has random weights: hidden 2048, 16 layers, 32 heads, feed-forward 8448 (822 M ternary weights), vocabulary
32,000 with int8 embeddings and head. Its torch twins have nn.Linear in float32 and bfloat16. llama.cpp's model has as
many weights (a gated feed-forward of 5632) as TQ2_0, embeddings and head as Q8_0; VENV/bin/python must have
llama-cpp-python and gguf. All take turns, round by round. Needs 8 GB of memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from frankenlm.modeling import Legacy1BitForCausalLM
from frankenlm.modeling.native_ops import native_path
from frankenlm.scripts.bench.packed_generation import (
    DecodingStep,
    decoder_config,
    generation,
    load_packed,
    measure_residence,
    seconds_of,
    write_packed_checkpoint,
)
from frankenlm.scripts.bench.public.peer_process import PeerProcess
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, check_output_dir, run_command, user_mistakes
from frankenlm.trainer_ext.common.timing import write_report

SIZES = {"hidden": 2048, "layers": 16, "heads": 32, "feedforward": 8448, "vocabulary": 32000}
POSITIONS = 2048
OURS, LLAMA = "frankenlm packed", "llama.cpp TQ2_0"
TWINS = {"torch fp32": torch.float32, "torch bf16": torch.bfloat16}
GGML_BLOCK = 256
STEPS = 8  # single decoding steps a round
TWIN_TOKENS = 6  # a twin takes a tenth of a second for each


def gated_width(feedforward: int) -> int:
    """Return the width at which gate, up and down have together as many weights as our two matrices."""
    width, rest = divmod(2 * feedforward, 3)
    if rest or width % GGML_BLOCK:
        raise UserError(f"--feedforward {feedforward}: two thirds of it must be a multiple of {GGML_BLOCK} for ggml.")
    return width


def llama_of(python: Path, folder: Path, sizes: dict[str, int]) -> PeerProcess:
    """Start scripts/bench/llamacpp_peer.py, which makes a model of these sizes in a folder."""
    sizes = {name: size for name, size in sizes.items() if name != "feedforward"} | {
        "ffn": gated_width(sizes["feedforward"])
    }
    file = folder / ("_".join(map(str, sizes.values())) + ".gguf")
    words = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    return PeerProcess(python, Path(__file__).with_name("llamacpp_peer.py"), file, *words)


class Torch:
    """A model under generate(): a prompt and its first token, and what further tokens add to that."""

    def __init__(self, model, prompt: int, new_tokens: int):
        self._first, self._all = generation(model, prompt, 1), generation(model, prompt, 1 + new_tokens)

    def time(self) -> dict[str, float]:
        prefill = seconds_of(self._first)
        return {"prefill": prefill, "decode": seconds_of(self._all) - prefill}


class Ours(Torch):
    """The packed model; also one decoding step without generate()'s own work, and our operators of it alone."""

    def __init__(self, model, prompt: int, new_tokens: int):
        super().__init__(model, prompt, new_tokens)
        self._step = DecodingStep(model, prompt)

    def time(self) -> dict[str, float]:
        parts = {"step": self._step.whole, "operators": self._step.operators}
        return super().time() | {
            name: statistics.median(seconds_of(call) for _ in range(STEPS)) for name, call in parts.items()
        }


def twins(config) -> dict[str, Legacy1BitForCausalLM]:
    """The full-precision model in each of torch's formats."""
    wide = Legacy1BitForCausalLM(config).eval()
    narrow = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return dict(zip(TWINS, (wide, narrow), strict=True))


def race(contestants: dict[str, Callable[[], dict]], threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of every part of every contestant, after one round to warm up."""
    seconds = {name: defaultdict(list) for name in contestants}
    for number in tqdm(range(rounds + 1), desc=f"generate, {threads} thread(s)"):
        for name, contestant in contestants.items():
            for part, value in contestant().items():
                if number:
                    seconds[name][part].append(value)
    return {name: {part: statistics.median(values) for part, values in of.items()} for name, of in seconds.items()}


def speed_rows(median: dict, threads: int, prompt: int, new_tokens: dict[str, int]) -> list[dict]:
    speed = {
        name: {"prefill": prompt / of["prefill"], "decode": new_tokens[name] / of["decode"]}
        for name, of in median.items()
    }
    return [
        {
            "model": name,
            "threads": threads,
            "prefill, tokens/s": of["prefill"],
            "decode, tokens/s": of["decode"],
            "ours / this, prefill": speed[OURS]["prefill"] / of["prefill"],
            "ours / this, decode": speed[OURS]["decode"] / of["decode"],
        }
        for name, of in speed.items()
    ]


def token_row(ours: dict[str, float], threads: int, new_tokens: int) -> dict:
    """What a decoded token costs under generate(), in one call of the model, and in our operators alone."""
    token = ours["decode"] / new_tokens
    return {
        "threads": threads,
        "token of generate(), ms": token * 1e3,
        "call of the model, ms": ours["step"] * 1e3,
        "our operators, ms": ours["operators"] * 1e3,
        "share outside them": 1 - ours["operators"] / token,
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default: 1 2)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the first (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=48, help="decoded (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--no_twins", action="store_true", help="leave the torch twins out, which need 6 GB")
    parser.add_argument("--llama_python", type=Path, help="interpreter that has llama-cpp-python and gguf")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/bench/ternary_generate"), help="for the models")
    parser.add_argument("--residence", type=Path, help="only load this checkpoint and print what memory that takes")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/ternary_generate.json"), help="JSON to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_strictly(argv)
    if arguments.llama_python and not arguments.llama_python.is_file():
        raise UserError(f"--llama_python {arguments.llama_python}: no such interpreter.")
    if arguments.llama_python:
        gated_width(arguments.feedforward)
    numbers = [*(getattr(arguments, name) for name in SIZES), *arguments.threads]
    if min(*numbers, arguments.prompt, arguments.new_tokens, arguments.rounds) < 1:
        raise UserError("sizes, threads, tokens and rounds must be at least 1.")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    sizes = {name: getattr(arguments, name) for name in SIZES}
    folder = arguments.work_dir / "packed"
    weights = write_packed_checkpoint(decoder_config(**sizes, positions=POSITIONS, ternary=True), folder)
    command = [sys.executable, __file__, "--residence", str(folder)]
    residence = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    packed = load_packed(folder)
    contestants = {OURS: Ours(packed, arguments.prompt, arguments.new_tokens).time}
    new_tokens = {OURS: arguments.new_tokens, LLAMA: arguments.new_tokens, **dict.fromkeys(TWINS, TWIN_TOKENS)}
    if not arguments.no_twins:
        models = twins(decoder_config(**sizes, positions=POSITIONS, ternary=False))
        contestants |= {name: Torch(model, arguments.prompt, TWIN_TOKENS).time for name, model in models.items()}
    llama = llama_of(arguments.llama_python, arguments.work_dir, sizes) if arguments.llama_python else None
    rows, steps = [], []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if llama:
            request = {"threads": threads, "prompt": arguments.prompt, "new_tokens": arguments.new_tokens}
            contestants[LLAMA] = lambda request=request: llama.time(**request)
        median = race(contestants, threads, arguments.rounds)
        rows += speed_rows(median, threads, arguments.prompt, new_tokens)
        steps.append(token_row(median[OURS], threads, arguments.new_tokens))
    if llama:
        llama.close()
    size = f"{weights / 1e6:.0f} M ternary weights, path {native_path()}, prompt {arguments.prompt}"
    return {
        f"generate(), batch 1, {size}": rows,
        "Where a decoded token's time goes": steps,
        "Memory of the packed model": [residence],
    }


def main(argv: Sequence[str] | None = None) -> None:
    with user_mistakes():
        arguments = parse(sys.argv[1:] if argv is None else argv)
        check_output_dir(arguments.output.parent)
        check_output_dir(arguments.work_dir)
    native_path()  # builds the operators, if need be, before anything is timed
    if arguments.residence:
        print(json.dumps(measure_residence(arguments.residence)))
        return
    torch.manual_seed(0)
    print(write_report("a packed decoder, end to end", measure(arguments), arguments.output, arguments.record))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
