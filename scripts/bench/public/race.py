"""Race packed models of public shapes against llama.cpp and ik_llama.cpp: generate() at batch 1, tokens per second.

    python -m frankenlm.scripts.bench.public.race --shape bitnet-2b --engines_python venv/bin/python
    python -m frankenlm.scripts.bench.public.race --shape qwen3-1.7b --record model_cards/benchmarks.md

ENGINES_PYTHON has llama-cpp-python, ik-llama-cpp-python, gguf and numpy. All take turns, round by round; medians. Ours
is transformers' class with packed layers in bfloat16, through `generate()`; decoding is timed as the difference between
a long and a short generation. The engines run their decode loop alone, without sampling. `--peers` chooses among
llama.cpp:TQ2_0, ik_llama.cpp:IQ2_BN and ik_llama.cpp:IQ2_BN_R4. The path of ours is the processor's fastest; choose
another with FRANKENLM_TERNARY_PATH, as when an engine's build has only AVX2. Needs 4 GB of memory.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from frankenlm.modeling.native_ops import native_path
from frankenlm.scripts.bench.packed_generation import CallRecorder, generation, resident_bytes, seconds_of
from frankenlm.scripts.bench.public.packed import load
from frankenlm.scripts.bench.public.peer_process import PeerProcess
from frankenlm.scripts.bench.public.shapes import SHAPES
from frankenlm.scripts.bench.ternary_generate import race
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, check_output_dir, run_command, user_mistakes
from frankenlm.trainer_ext.common.timing import write_report

OURS = "frankenlm packed"
PEERS = {
    "llama.cpp:TQ2_0": ("llama_cpp", "TQ2_0"),
    "ik_llama.cpp:IQ2_BN": ("ik_llama_cpp", "IQ2_BN"),
    "ik_llama.cpp:IQ2_BN_R4": ("ik_llama_cpp", "IQ2_BN_R4"),
}
FEW = 1  # tokens of the short generation
STEPS = 8  # single decoding steps a round


def engine_of(python: Path, peer: str, shape: str, folder: Path) -> PeerProcess:
    """Start engine_peer.py with a model of this shape."""
    return PeerProcess(python, Path(__file__).with_name("engine_peer.py"), *PEERS[peer], shape, folder)


def is_ours(operator: str) -> bool:
    return operator.startswith("frankenlm::")


class PackedContestant:
    """A packed model under generate(), and the operators of one of its decoding steps alone."""

    def __init__(self, model, prompt: int, new_tokens: int):
        self._few, self._many = generation(model, prompt, FEW), generation(model, prompt, FEW + new_tokens)
        self._calls = self._record(model, prompt)

    @torch.no_grad()
    def _record(self, model, prompt: int) -> list[tuple]:
        before = model(torch.ones(1, prompt, dtype=torch.int64), use_cache=True, logits_to_keep=1)
        with CallRecorder(is_ours) as recorder:
            model(torch.ones(1, 1, dtype=torch.int64), cache=before.cache, use_cache=True, logits_to_keep=1)
        if not recorder.calls:
            raise RuntimeError("the model calls no operator of ours: are the native operators built?")
        return recorder.calls

    @torch.no_grad()
    def _operators(self) -> None:
        for operator, arguments, keywords in self._calls:
            operator(*arguments, **keywords)

    def time(self) -> dict[str, float]:
        prefill = seconds_of(self._few)
        decode = seconds_of(self._many) - prefill
        operators = statistics.median(seconds_of(self._operators) for _ in range(STEPS))
        return {"prefill": prefill, "decode": decode, "operators": operators, "resident_mb": resident_bytes() / 1e6}


def rows_of(median: dict[str, dict[str, float]], threads: int, prompt: int, new_tokens: int) -> list[dict]:
    ours = median[OURS]
    rows = []
    for name, of in median.items():
        outside = 1 - ours["operators"] * new_tokens / ours["decode"] if name == OURS else None
        rows.append(
            {
                "engine": name,
                "threads": threads,
                "prefill, tokens/s": prompt / of["prefill"],
                "decode, tokens/s": new_tokens / of["decode"],
                "ours / this, prefill": of["prefill"] / ours["prefill"],
                "ours / this, decode": of["decode"] / ours["decode"],
                "of a token outside our operators": outside,
                "resident, MB": of["resident_mb"],
            }
        )
    return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--engines_python", type=Path, help="interpreter that has the engines; none: ours alone")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="(default: all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the first (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=48, help="decoded (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/bench/public"), help="for the models")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/public.json"), help="JSON to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the table to")
    arguments = parser.parse_strictly(argv)
    if arguments.engines_python and not arguments.engines_python.is_file():
        raise UserError(f"--engines_python {arguments.engines_python}: no such interpreter.")
    if min(*arguments.threads, arguments.prompt, arguments.new_tokens, arguments.rounds) < 1:
        raise UserError("threads, tokens and rounds must be at least 1.")
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    shape, folder = SHAPES[arguments.shape], arguments.work_dir / arguments.shape
    shutil.rmtree(folder, ignore_errors=True)
    writer = [sys.executable, "-m", "frankenlm.scripts.bench.public.packed", arguments.shape, str(folder)]
    subprocess.run(writer, check=True)
    engines = {}
    if arguments.engines_python:
        engines = {
            peer: engine_of(arguments.engines_python, peer, arguments.shape, arguments.work_dir)
            for peer in arguments.peers
        }
    before = resident_bytes()
    ours = PackedContestant(load(folder), arguments.prompt, arguments.new_tokens)
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        request = {"threads": threads, "prompt": arguments.prompt, "new_tokens": arguments.new_tokens}
        contestants = {OURS: ours.time} | {
            peer: lambda engine=engine, request=request: engine.time(**request) for peer, engine in engines.items()
        }
        rows += rows_of(race(contestants, threads, arguments.rounds), threads, arguments.prompt, arguments.new_tokens)
    for engine in engines.values():
        engine.close()
    for row in rows:
        row["of it before the model, MB"] = before / 1e6 if row["engine"] == OURS else None
    size = f"{shape.ternary_weights() / 1e9:.2f} G ternary weights, path {native_path()}, prompt {arguments.prompt}"
    return {f"{arguments.shape}, batch 1, {size}": rows}


def main(argv: Sequence[str] | None = None) -> None:
    with user_mistakes():
        arguments = parse(sys.argv[1:] if argv is None else argv)
        check_output_dir(arguments.output.parent)
        check_output_dir(arguments.work_dir)
    native_path()  # builds the operators, if need be, before anything is timed
    torch.manual_seed(0)
    print(write_report("public ternary models", measure(arguments), arguments.output, arguments.record))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
