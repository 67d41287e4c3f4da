"""Pack a checkpoint with ternary layers: two bits a weight on disk and in memory.

    python scripts/pack.py --model runs/legacy --output runs/legacy-packed
    python scripts/pack.py --model runs/legacy --output runs/legacy-packed --int8_embeddings --int8_head
    python scripts/pack.py --model bitnet-checkpoint --output packed
    python scripts/pack.py --model packed --output bitnet-again --to bitnet

The output loads like any checkpoint, with AutoModelForCausalLM.from_pretrained. It carries tokenizer, code, a card and
packing.json with the sizes. Takes models of frankenlm, and transformers' BitNet checkpoints (quant_method bitnet);
`--to bitnet` makes such a checkpoint again of what this command made of one.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command, user_mistakes
from frankenlm.trainer_ext.common.logs import RunLog
from frankenlm.trainer_ext.packed_checkpoints import (
    FORMATS,
    FRANKENLM,
    PackingOptions,
    check_new_folder,
    open_source,
    pack_checkpoint,
)

logger = logging.getLogger("frankenlm.pack")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of the checkpoint")
    add("--output", required=True, help="new folder for the packed checkpoint")
    add("--int8_embeddings", action="store_true", help="token table in one byte a weight, a scale a row")
    add(
        "--int8_head", action="store_true", help="output layer in one byte a weight; its inputs are rounded to int8 too"
    )
    add(
        "--modules_to_not_convert",
        nargs="+",
        default=[],
        metavar="NAME",
        help="ternary layers, or parts of the model, that stay unpacked",
    )
    add(
        "--to",
        choices=FORMATS,
        default=FRANKENLM,
        help="bitnet: give a packed BitNet model back to transformers (default: frankenlm)",
    )
    add("--log_level", choices=["debug", "info", "warning", "error"], default="info", help="(default: info)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    options = PackingOptions(args.int8_embeddings, args.int8_head, tuple(args.modules_to_not_convert), args.to)
    check_new_folder(args.output)
    with RunLog(args.log_level):
        with user_mistakes():
            source = open_source(args.model, options)
        with user_mistakes():
            facts = pack_checkpoint(source, Path(args.output), options)
    print(summary(facts))
    print(f"packed: {args.output}")


def summary(facts: dict) -> str:
    """One line of what was packed."""
    if "ternary_weights" not in facts:
        return f"{facts['ternary_layers']} ternary layers, {facts['file_bytes']:,} bytes in {facts['format']}'s format"
    return (
        f"{facts['ternary_weights']:,} ternary weights at {facts['bits_per_ternary_weight']:.3f} bits each; "
        f"{facts['file_bytes']:,} bytes instead of {facts['unpacked_file_bytes']:,}"
    )


if __name__ == "__main__":
    transformers_logging.set_verbosity_warning()
    sys.exit(run_command(main))
