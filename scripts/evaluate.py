"""Measure how well a saved language model predicts text (loss in nats, perplexity, bits per byte, accuracy), and, for a
causal one, what it writes when it goes on with held-out documents (BLEU, repetition, diversity, vocabulary use).

    frankenlm evaluate --model runs/mini --dataset builtin --report report.json
    frankenlm evaluate --model runs/mini --dataset builtin --split train,validation --output_dir evaluation
    frankenlm evaluate --model runs/mini --dataset test.jsonl --method pseudo --max_documents 20
    frankenlm evaluate --model gpt2 --dataset test.jsonl --metrics perplexity,bits_per_byte --stride 256
    frankenlm evaluate --model gpt2 --dataset wiki.test.raw.txt --one_text --metrics perplexity,word_perplexity
    frankenlm evaluate --model runs/joint --dataset builtin --minimal_pairs
    frankenlm evaluate --model runs/infinito --dataset builtin --metrics bleu,repetition --temperature 0

Compare models with different tokenizers by bits per byte, or by perplexity per word. `--one_text` reads all of the text
as one stream; its default windows are those of lm-evaluation-harness (rolling log-likelihood). Masked models have no
perplexity in the strict sense: `mlm` is their training loss on held-out text, `pseudo` the pseudo-perplexity of Salazar
et al. (2020). Of several splits the gap to the first is told. Intervals are drawn over documents (bootstrap).
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command
from frankenlm.trainer_ext.common.flags import add_log_flag, add_model_flags
from frankenlm.trainer_ext.evaluation.flags import METHODS, METRICS, NEW_TOKENS, PROMPT_TOKENS, add_text_flags
from frankenlm.trainer_ext.evaluation.minimal_pairs import PAIRS, PHENOMENA
from frankenlm.trainer_ext.generation.sampling import DEFAULT_TEMPERATURE
from frankenlm.trainer_ext.metrics.bootstrap import DRAWS


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of a saved language model")
    add("--dataset", required=True, help="text, as for `frankenlm train`: builtin, a hub name, a file, folder or glob")
    add("--metrics", default="all", help=f"all, or some of {', '.join(METRICS)}, with commas (default: all)")
    add("--method", choices=list(METHODS), help="how to score (default: causal or mlm, by the model's class)")
    add("--report", help="JSON file to write")
    add("--output_dir", help="folder for the report as JSON, Markdown, CSV and figure")
    add_text_flags(
        parser,
        max_length="tokens the model sees at once (default: its max_position_embeddings)",
        stride="tokens a causal window scores, behind those it only reads (default: half of max_length; all of it with "
        "--one_text)",
        several_splits=True,
    )
    add(
        "--one_text",
        action="store_true",
        help="score all the text as one, documents joined as they stand in the file (causal models)",
    )
    add("--mlm_probability", type=float, default=0.15, help="share of tokens scored under mlm (default: 0.15)")
    add(
        "--seed",
        type=int,
        default=42,
        help="which tokens mlm scores (`train`'s default gives its positions), and how texts are sampled",
    )
    add(
        "--bootstrap_iters",
        type=int,
        default=DRAWS,
        help=f"drawings of documents behind the intervals; 0: none (default: {DRAWS})",
    )
    add(
        "--reference_tokenizer",
        metavar="NAME",
        help="also tell the perplexity per token of this tokenizer, such as gpt2: the same nats over its tokens",
    )
    add(
        "--dynamic_evaluation",
        type=float,
        metavar="RATE",
        help="also score the text while the model learns from it, a window behind, by gradient descent at this rate; "
        "told apart from the other figures, and the weights are left as they were (causal models)",
    )
    add(
        "--minimal_pairs",
        type=int,
        nargs="?",
        const=PAIRS,
        metavar="COUNT",
        help="also ask which of two English sentences is the grammatical one, so many pairs for each of "
        f"{len(PHENOMENA)} phenomena (without a number: {PAIRS}); left to right, by pseudo-log-likelihood, or both",
    )
    written = parser.add_argument_group("texts that a causal model writes")
    written.add_argument(
        "--continuations",
        type=int,
        default=20,
        help="go on with the first so many documents that are long enough (default: 20)",
    )
    written.add_argument(
        "--prompt_tokens", type=int, help=f"tokens of a document to go on from (default: {PROMPT_TOKENS}, or what fits)"
    )
    written.add_argument(
        "--max_new_tokens",
        type=int,
        help=f"tokens to write, and of the reference (default: {NEW_TOKENS}, or what fits)",
    )
    written.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        help=f"0: the likeliest token each time (default: {DEFAULT_TEMPERATURE})",
    )
    add_model_flags(parser, dtype=False)
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.evaluate import evaluate

    evaluate(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
