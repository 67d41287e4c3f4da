"""Benchmark a training step of the preset mini next to BertForMaskedLM models of equal parameter count.

    python scripts/bench/training.py                       # 4 minutes, 20 GB; writes runs/bench/training.json
    python scripts/bench/training.py --batch 16 --bf16 # 32 GB of memory
    python scripts/bench/training.py --record model_cards/benchmarks.md

Each model lives in a process of its own, so that peak memory is its own; the parent calls them in turn, one step each
a round, all with the same batch. A step is forward, backward, clipping and AdamW; BERT computes its head at all
positions, as transformers does, mini at the masked ones.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext.common.cli import (
    Failed,
    OneLineParser,
    UserError,
    check_new_file,
    check_numbers,
    check_threads,
    path_value,
    run_command,
)
from frankenlm.trainer_ext.common.timing import median_ratio, write_report

VOCABULARY = 50_259  # GPT-2's, with mask and pad
MASKED = 0.15
LONGEST = 512  # positions of every model here


def make_mini():
    return FrankensteinForMaskedLM(FrankensteinConfig.from_preset("mini", vocab_size=VOCABULARY))


def make_bert(hidden_size: int, layers: int, intermediate_size: int):
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // 64,
            intermediate_size=intermediate_size,
        )
    )


# Feed-forward widths are chosen so that the counts meet mini's within 0.1 %.
MODELS = {
    "mini": (make_mini, ()),
    "bert, 384 wide, 3 layers": (make_bert, (384, 3, 1525)),
    "bert, 256 wide, 15 layers": (make_bert, (256, 15, 1028)),
}


def worker(pipe, name: str, threads: int, batch: int, length: int, bf16: bool) -> None:
    """Build one model and run a step whenever asked; answers seconds, and at the end (parameters, peak bytes)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, arguments = MODELS[name]
    model = make(*arguments).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, VOCABULARY, (batch, length))
    labels = torch.where(torch.rand(batch, length) < MASKED, ids, -100)
    while pipe.recv() == "step":
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(time.perf_counter() - start)
    pipe.send((sum(p.numel() for p in model.parameters()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run(arguments) -> list[dict]:
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    for name in MODELS:
        pipes[name], theirs = spawn.Pipe()
        settings = (arguments.threads, arguments.batch, arguments.length, arguments.bf16)
        spawn.Process(target=worker, args=(theirs, name, *settings), daemon=True).start()
        theirs.close()  # or the end of the process would not be noticed
        seconds[name] = []
    for number in range(arguments.rounds + 1):
        for name, pipe in pipes.items():
            elapsed = ask(pipe, "step", name)
            if number > 0:  # the first round warms up
                seconds[name].append(elapsed)
    rows = []
    for name, pipe in pipes.items():
        parameters, peak = ask(pipe, "stop", name)
        rows.append(
            {
                "model": name,
                "parameters": parameters,
                "tokens/s": arguments.batch * arguments.length / statistics.median(seconds[name]),
                "step time / mini's": median_ratio(seconds[name], seconds["mini"]),
                "peak memory, GB": peak / 1e9,
            }
        )
    return rows


def ask(pipe, question: str, name: str):
    """The answer of a model's process.

    Raises:
        Failed: the process has ended, most likely for want of memory.
    """
    try:
        pipe.send(question)
        return pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise Failed(f"the process of {name!r} ended early; a smaller --batch takes less memory.") from error


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--batch", type=int, default=8, help="sequences a step (default: %(default)s)")
    add("--length", type=int, default=512, help="tokens a sequence (default: %(default)s)")
    add("--rounds", type=int, default=4, help="timed rounds (default: %(default)s)")
    add("--threads", type=int, default=2, help="torch threads (default: %(default)s)")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--output", type=path_value, default=Path("runs/bench/training.json"), help="JSON file to write")
    add("--record", type=path_value, help="Markdown file to append the table to")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    check_numbers(arguments, least={"batch": 1, "length": 2, "rounds": 1})
    check_threads(arguments.threads)
    if arguments.length > LONGEST:
        raise UserError(f"--length {arguments.length}: the models have {LONGEST} positions.")
    for option, path in (("--output", arguments.output), ("--record", arguments.record)):
        if path is not None:
            check_new_file(option, path)
    torch.set_num_threads(arguments.threads)
    kind = "bfloat16 autocast" if arguments.bf16 else "float32"
    title = f"A training step, {kind}, batch {arguments.batch} x {arguments.length}"
    print(write_report("training", {title: run(arguments)}, arguments.output, arguments.record))


if __name__ == "__main__":
    sys.exit(run_command(main))
