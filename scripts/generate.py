"""Let a saved causal language model go on with a text, and show the text as it is written.

    frankenlm generate --model runs/infinito --prompt "Once upon a time"
    frankenlm generate --model runs/infinito --prompts prompts.txt --temperature 0.7 --top_p 0.9 --json out.json
    frankenlm generate --model gpt2 --prompt "To sum up," --temperature 0 --num_beams 4
    frankenlm generate --model runs/infinito --interactive
    frankenlm generate --model runs/infinito --demo
    frankenlm generate --model runs/infinito --prompt "The king" --memory_map reads.png

The same model, seed and settings give the same text on the same kind of device, whatever other prompts stand beside it.
Settings that are not given are off: the sampling defaults that come with a checkpoint are not used.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command
from frankenlm.trainer_ext.common.flags import add_log_flag, add_model_flags
from frankenlm.trainer_ext.generation.flags import CONVERSATION_HELP, DEMO_TOKENS
from frankenlm.trainer_ext.generation.sampling import DEFAULT_EXPLORATION, DEFAULT_TEMPERATURE


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or hub name of a saved causal language model")
    what = parser.add_argument_group("what to go on from")
    parser.may_be_empty = ("prompt",)
    what.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="the text to go on from; '' begins a document; may be given again",
    )
    what.add_argument("--prompts", help='file: a prompt a line (.txt), or rows with "prompt" (.jsonl)')
    what.add_argument("--chat_template", action="store_true", help="put prompts into the tokenizer's chat template")
    what.add_argument("--interactive", action="store_true", help=f"read lines and answer them. {CONVERSATION_HELP}")
    what.add_argument(
        "--demo",
        action="store_true",
        help="go on with built-in prompts (or yours) under four settings, and compare them in a table",
    )
    how = parser.add_argument_group("how to choose tokens")
    how.add_argument("--max_new_tokens", type=int, help=f"(default: 100; {DEMO_TOKENS} with --demo)")
    how.add_argument(
        "--temperature",
        type=float,
        help=f"0: the likeliest token each time (default: {DEFAULT_TEMPERATURE}; 0 with --num_beams)",
    )
    how.add_argument("--top_k", type=int, help="sample among the k likeliest tokens (default: off)")
    how.add_argument("--top_p", type=float, help="sample among the likeliest tokens of this mass (default: off)")
    how.add_argument("--repetition_penalty", type=float, help="above 1: repeat less (default: 1, off)")
    how.add_argument("--num_beams", type=int, help="search with so many beams (default: 1, no search)")
    how.add_argument("--num_return_sequences", type=int, help="texts a prompt (default: 1)")
    how.add_argument("--seed", type=int, default=42, help="(default: 42)")
    how.add_argument("--stop", action="append", default=[], help="end a text before this string; may be given again")
    how.add_argument(
        "--explore",
        type=float,
        nargs="?",
        const=DEFAULT_EXPLORATION,
        metavar="PROBABILITY",
        help="sample a token with this probability, else take the likeliest "
        f"(default: off; without a number {DEFAULT_EXPLORATION})",
    )
    how.add_argument("--no_memory", action="store_true", help="switch the slot memory off (infinito)")
    how.add_argument("--no_cache", action="store_true", help="read the whole text again for each token")
    out = parser.add_argument_group("what to keep")
    out.add_argument("--json", help="JSON file to write: prompts, texts, settings, seeds, speed")
    out.add_argument("--attention_map", metavar="FILE.png", help="heat maps of the attention weights, numbers beside")
    out.add_argument("--memory_map", metavar="FILE.png", help="heat map of the slot memory's reads (infinito)")
    add_model_flags(parser)
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.generate import generate

    generate(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
