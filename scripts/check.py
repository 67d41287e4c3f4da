"""Try what a model promises: causality, padding, batch, cache, packed documents, gradients, saving.

    frankenlm check gpt2
    frankenlm check --model_type mamba2 --json leaks.json
    frankenlm check LlamaForCausalLM --dtype bfloat16
    frankenlm check --preset mini
    frankenlm check --model_type mamba2 --collator DataCollatorWithFlattening
    frankenlm check --model_type mamba2 --reproduce
    frankenlm check runs/mine --device cuda

Takes any decoder or encoder of text that transformers can open, ours or not: a folder or a hub name with its weights,
or a tiny model with random weights of a class, a family (--model_type), one of our presets or, with --tiny, like a
saved one. A data collator (--collator) is asked whether the documents of its batches can be told apart, by itself or
with a model. Prints a table: each promise, the largest relative difference, what a fault would show, and whether it
holds, is broken, is refused by the model, or cannot be told. Exit code 1 where a promise is broken, 0 where all that
could be tried hold or are refused; --families, a survey, ends with 0. docs/check.md tells more.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, path_value, run_command

DTYPES = ("float32", "float64", "bfloat16", "float16")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder, hub name, class (LlamaForCausalLM), or MODULE:CLASS",
    )
    add("--model_type", metavar="TYPE", help="a tiny model of a family of transformers, such as mamba2")
    add("--preset", metavar="NAME", help="a tiny version of one of our presets")
    add("--tiny", action="store_true", help="of a saved model take the configuration, shrunk, and random weights")
    add(
        "--set",
        dest="fields",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the tiny configuration",
    )
    add("--collator", metavar="C", help="a data collator of transformers by its name, or MODULE:NAME")
    add("--collator_args", metavar="JSON", help='what its class is made with, such as {"return_seq_idx": true}')
    add(
        "--reproduce", action="store_true", help="print the smallest Python that shows a broken promise of a tiny model"
    )
    add("--families", action="store_true", help="all families of text models of transformers, one after the other")
    add("--page", metavar="FILE", type=path_value, help="Markdown page to write the table of --families into")
    add("--json", metavar="FILE", type=path_value, help="write the table here too")
    add("--dtype", choices=DTYPES, default="float32", help="number format to run in (default: float32)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--seed", type=int, default=0, help="of random weights and rows (default: 0)")
    add("--trust_remote_code", action="store_true", help="run model code that comes with MODEL")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.check import check

    check(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
