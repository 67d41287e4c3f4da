"""Serve causal language models over HTTP, in the shapes of the OpenAI API.

    frankenlm serve runs/mine
    frankenlm serve runs/mine gpt2 small=runs/sweep/best --port 8080
    FRANKENLM_API_KEY=... frankenlm serve runs/mine --host 0.0.0.0
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
         -d '{"model": "mine", "prompt": "Once upon a time", "max_tokens": 40, "seed": 1}'

/v1/completions, /v1/chat/completions (for tokenizers with a chat template), /v1/models and /health; streaming, stop
strings, log-probabilities, n, seeds, penalties. Answers are decoded together where the model allows it; the same model,
prompt, settings and seed give the same text whatever else is asked. Where the environment holds FRANKENLM_API_KEY,
clients must show it. Prompts, answers and keys are never logged. SIGTERM and Ctrl-C end it: answers under way have 8
seconds, the exit code is 0. docs/serve.md tells more.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command
from frankenlm.trainer_ext.common.flags import add_model_flags

# not debug, at which errors of other libraries come with what they were reading
LEVELS = ("info", "warning", "error")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folder or hub name; NAME=MODEL says what clients call it")
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="(default: 8000; 0: any free one)")
    add("--max_tokens", type=int, default=1024, help="tokens of an answer at most (default: 1024)")
    add("--max_context", type=int, default=2048, help="tokens of prompt and answer at most (default: 2048)")
    add("--max_queue", type=int, default=64, help="answers that may wait; more are told to come again (default: 64)")
    add("--batch_size", type=int, default=8, help="answers that are decoded together (default: 8; 1: none)")
    add("--threads", type=int, help="CPU threads for a model's arithmetic (default: torch's own choice)")
    add_model_flags(parser, checkpoint="MODEL")
    add("--log_level", choices=LEVELS, default="info", help="(default: info)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.sharing.server.serving import serve

    serve(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
