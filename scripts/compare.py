"""Compare causal language models on the same prompts and data: a table, a figure, and their texts side by side.

    frankenlm compare --models runs/infinito runs/mini_causal --dataset builtin --output_dir comparison
    frankenlm compare --models runs/a runs/b --prompts pairs.jsonl --metrics bleu,repetition --output_dir O
    frankenlm compare --models runs/a gpt2 --dataset test.jsonl --max_length 256 --output_dir O

Writes compare.json (everything), compare.md (table and texts), compare.csv (a row a model) and compare.png. All models
get the same prompts, settings and seeds, and are scored with the same context length. What is counted in tokens
compares models of one tokenizer only; across tokenizers, look at bits per byte and BLEU.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command
from frankenlm.trainer_ext.common.flags import add_log_flag, add_model_flags
from frankenlm.trainer_ext.evaluation.flags import COMPARED, add_text_flags
from frankenlm.trainer_ext.generation.sampling import DEFAULT_TEMPERATURE


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--models", nargs="+", required=True, help="folders or hub names of saved causal language models")
    add("--output_dir", required=True, help="folder for the report")
    add(
        "--prompts",
        help='file: a prompt a line (.txt), or rows with "prompt" and, for BLEU, "reference" (.jsonl). '
        "Default: built-in prompts",
    )
    add("--dataset", help="text to score, as for `frankenlm train`: builtin, a hub name, a file, folder or glob")
    add("--metrics", default="all", help=f"all, or some of {', '.join(COMPARED)}, with commas (default: all)")
    how = parser.add_argument_group("how to generate")
    how.add_argument("--max_new_tokens", type=int, default=60, help="(default: 60)")
    how.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        help=f"0: the likeliest token each time (default: {DEFAULT_TEMPERATURE})",
    )
    how.add_argument("--top_k", type=int, help="sample among the k likeliest tokens (default: off)")
    how.add_argument("--top_p", type=float, help="sample among the likeliest tokens of this mass (default: off)")
    how.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less (default: 1, off)")
    how.add_argument("--num_return_sequences", type=int, default=1, help="texts a prompt (default: 1)")
    how.add_argument("--seed", type=int, default=42, help="(default: 42)")
    data = parser.add_argument_group("how to score")
    add_text_flags(
        data,
        max_length="tokens a model sees at once (default: the smallest max_position_embeddings)",
        stride="tokens a window moves on (default: half of max_length)",
    )
    add_model_flags(parser, checkpoint="the checkpoints")
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.compare import compare

    compare(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
