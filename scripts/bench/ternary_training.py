"""Benchmark a training step of legacy-1bit-base with ternary layers next to its twin with nn.Linear.

    python scripts/bench/ternary_training.py                 # 3 minutes, 5 GB; writes runs/bench/ternary_training.json
    python scripts/bench/ternary_training.py --bf16 --threads 1
    python scripts/bench/ternary_training.py --schemes all   # every weight quantiser
    python scripts/bench/ternary_training.py --record model_cards/benchmarks.md

A step is forward, backward, clipping and AdamW on the same batch; models take turns in one process. "plain torch" is
the ternary model without the native operators. The second table has the activations' quantiser by itself, forward and
backward, at the widths of this model.
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
from frankenlm.modeling.fake_quantize import fake_quantize_activations
from frankenlm.modeling.native_ops import native_path
from frankenlm.modeling.norms import RMS_EPS
from frankenlm.modeling.ternary import SCHEMES
from frankenlm.trainer_ext.common.timing import interleaved_seconds, median_ratio, write_report

PRESET = "legacy-1bit-base"
DEFAULT_SCHEME = "ternary_absmean"
LINEAR, PLAIN = "nn.Linear", "plain torch"


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Compute without the native operators."""
    with mock.patch("frankenlm.modeling.fake_quantize.native_code_runs", return_value=False):
        yield


def training_step(scheme: str | None, batch: int, length: int, bf16: bool) -> Callable[[], None]:
    """Return a function that does one optimiser step of the preset; scheme None is the full-precision twin."""
    torch.manual_seed(0)
    options = {"use_bitnet": False} if scheme is None else {"w_scheme": scheme}
    model = Legacy1BitForCausalLM(Legacy1BitConfig.from_preset(PRESET, **options)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 256, (batch, length))

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def without_native(call: Callable[[], None]) -> Callable[[], None]:
    def wrapped():
        with plain_torch():
            call()

    return wrapped


def step_rows(arguments) -> list[dict]:
    settings = (arguments.batch, arguments.length, arguments.bf16)
    calls = {scheme: training_step(scheme, *settings) for scheme in arguments.schemes}
    calls[PLAIN] = without_native(training_step(DEFAULT_SCHEME, *settings))
    calls[LINEAR] = training_step(None, *settings)
    seconds = interleaved_seconds(calls, rounds=arguments.rounds, warmup=1)
    return [
        {
            "layers": name if name == LINEAR else f"BitLinear, {name}",
            "tokens/s": arguments.batch * arguments.length / statistics.median(taken),
            "step time / nn.Linear's": median_ratio(taken, seconds[LINEAR]),
        }
        for name, taken in seconds.items()
    ]


def quantizer_call(width: int, tokens: int, bf16: bool) -> Callable[[], None]:
    """Return a function that quantises (tokens, width) activations and takes the gradient."""
    x = torch.randn(tokens, width, requires_grad=True)
    dtype = torch.bfloat16 if bf16 else torch.float32
    gradient = torch.randn(tokens, width, dtype=dtype)

    def call():
        torch.autograd.grad(fake_quantize_activations(x, 8, RMS_EPS, dtype), x, gradient)

    return call


def quantizer_rows(arguments) -> list[dict]:
    config, tokens, rows = Legacy1BitConfig.from_preset(PRESET), arguments.batch * arguments.length, []
    for width in (config.hidden_size, config.intermediate_size):
        native = quantizer_call(width, tokens, arguments.bf16)
        seconds = interleaved_seconds({"native": native, PLAIN: without_native(native)}, rounds=20)
        per_token = {name: statistics.median(taken) / tokens * 1e9 for name, taken in seconds.items()}
        ratio = median_ratio(seconds[PLAIN], seconds["native"])
        rows.append({"width": width, **{f"{name}, ns/token": ns for name, ns in per_token.items()}, "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default: 1 2)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--schemes", nargs="+", default=[DEFAULT_SCHEME], choices=[*SCHEMES, "all"], help="weight quantisers"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench/ternary_training.json"), help="JSON file to write"
    )
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_args()
    if "all" in arguments.schemes:
        arguments.schemes = list(SCHEMES)
    kind = "bfloat16 autocast" if arguments.bf16 else "float32"
    tables = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        setting = f"{kind}, {arguments.batch} x {arguments.length} tokens, {threads} thread(s), path {native_path()}"
        tables[f"A training step of {PRESET}: {setting}"] = step_rows(arguments)
        tables[f"The activations' quantiser, forward and backward: {setting}"] = quantizer_rows(arguments)
    print(write_report("ternary training", tables, arguments.output, arguments.record))


if __name__ == "__main__":
    main()
