"""Benchmark the ternary product y = x W^T: every code path, next to torch, transformers and ggml, and to the limit.

    python scripts/bench/ternary.py                           # 6 minutes; writes runs/bench/ternary.json, .csv, .png
    python scripts/bench/ternary.py --full                    # every path and peer in every cell, about an hour
    python scripts/bench/ternary.py --ggml_lib venv/lib/python3.11/site-packages/llama_cpp/lib
    python scripts/bench/ternary.py --shapes 768x768 --tokens 1 8 --paths avx2 scalar --peers none
    python scripts/bench/ternary.py --record model_cards/benchmarks.md

All contestants of a cell take turns, round by round. Our paths are timed in a C loop and ggml's products in a graph,
torch's and transformers' layers as they are called from Python; activations are float32 (bfloat16 for the bfloat16
ones), and quantising them is inside the time. The limit is measured in the same rounds by loops that only read the
packed weights or only multiply; what an operator's call costs above the raw kernel is a table of its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from frankenlm.modeling.checks import check_choice
from frankenlm.scripts.bench.ggml import find_ggml
from frankenlm.scripts.bench.library import BenchLibrary
from frankenlm.scripts.bench.overhead import overhead_rows
from frankenlm.scripts.bench.suite import MEMORY, PEERS, SHAPES, THREADS, TOKENS, Selection, Suite
from frankenlm.scripts.bench.suite import paths_of_this_processor as available_paths
from frankenlm.scripts.bench.tables import plot_shares_of_limit, tables_of
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, check_output_dir, run_command, user_mistakes
from frankenlm.trainer_ext.common.files import write_csv
from frankenlm.trainer_ext.common.timing import write_report

SECONDS, SECONDS_FULL = 0.2, 1.0
NONE = "none"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [f"{inputs}x{outputs}" for inputs, outputs in SHAPES]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="inputs x outputs (default: the five)")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="M (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS), help="(default: %(default)s)")
    parser.add_argument("--memory", nargs="+", default=list(MEMORY), help="where the weights lie: cache, dram")
    parser.add_argument("--paths", nargs="+", help="our code paths (default: all that this processor has)")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), help=f"of {', '.join(PEERS)}; none for none")
    parser.add_argument("--ggml_lib", type=Path, help="folder of libggml-cpu.so (default: llama_cpp's, if installed)")
    parser.add_argument("--ik_lib", type=Path, help="folder of ik_llama.cpp's libggml.so (default: ik_llama_cpp's)")
    parser.add_argument("--groups", action="store_true", help="our paths also with a scale for each 128 inputs")
    parser.add_argument("--full", action="store_true", help="every path and peer in every cell")
    parser.add_argument("--seconds", type=float, help="for each contestant in a cell (default: 0.2; 1 with --full)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/ternary.json"), help="JSON file to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    return parser.parse_strictly(argv)


def parse_shape(text: str) -> tuple[int, int]:
    """Return (inputs, outputs) of "768x3072"."""
    inputs, _, outputs = text.partition("x")
    if not (inputs.isdecimal() and outputs.isdecimal() and int(inputs) and int(outputs)):
        raise UserError(f"--shapes {text}: write inputs x outputs, such as 768x3072.")
    return int(inputs), int(outputs)


def select(arguments: argparse.Namespace) -> Selection:
    """Check every argument and return what to measure."""
    paths = available_paths(BenchLibrary())
    for option, given, known in (
        ("--paths", arguments.paths or [], paths),
        ("--peers", arguments.peers, (*PEERS, NONE)),
        ("--memory", arguments.memory, MEMORY),
    ):
        for name in given:
            check_choice(option, name, known)
    for option, values in (("--tokens", arguments.tokens), ("--threads", arguments.threads)):
        if min(values) < 1:
            raise UserError(f"{option} {min(values)}: at least 1.")
    seconds = arguments.seconds or (SECONDS_FULL if arguments.full else SECONDS)
    if not 0 < seconds <= 2:
        raise UserError(f"--seconds {seconds}: between 0 and 2.")
    if arguments.ggml_lib and not any(arguments.ggml_lib.glob("libggml-cpu.so*")):
        raise UserError(f"--ggml_lib {arguments.ggml_lib}: the folder holds no libggml-cpu.so.")
    if arguments.ik_lib and not any(arguments.ik_lib.glob("libggml.so*")):
        raise UserError(f"--ik_lib {arguments.ik_lib}: the folder holds no libggml.so.")
    return Selection(
        shapes=[parse_shape(text) for text in arguments.shapes],
        tokens=arguments.tokens,
        threads=arguments.threads,
        memory=arguments.memory,
        paths=[path for path in paths if path in (arguments.paths or paths)],
        peers=[peer for peer in arguments.peers if peer != NONE],
        ggml=arguments.ggml_lib or find_ggml(),
        ik=arguments.ik_lib or find_ggml("ik_llama_cpp"),
        groups=arguments.groups,
        full=arguments.full,
        seconds=seconds,
    )


def main(argv: Sequence[str] | None = None) -> None:
    with user_mistakes():
        arguments = parse(sys.argv[1:] if argv is None else argv)
        selection = select(arguments)
        check_output_dir(arguments.output.parent)
    torch.manual_seed(0)
    with tqdm(total=len(list(selection.cells())), desc="cells") as bar:
        results = Suite(selection, lambda cell: bar.update()).run()
    overhead = overhead_rows(seconds=selection.seconds)
    tables = {"Call of the operator, M=1, 1 thread": overhead}
    tables |= tables_of(results.products, results.roofline, results.left_out)
    data = {"products": results.products, "roofline": results.roofline, "left_out": results.left_out}
    print(write_report("ternary products", tables, arguments.output, arguments.record, data))
    write_csv(arguments.output.with_suffix(".csv"), results.products)
    plot_shares_of_limit(results.products, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
