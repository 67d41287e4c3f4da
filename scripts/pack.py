"""Pack a checkpoint with ternary layers: two bits a weight on disk and in memory.

    python scripts/pack.py --model runs/legacy --output runs/legacy-packed
    python scripts/pack.py --model runs/base --output runs/base-packed --int8_embeddings --int8_head
    python scripts/pack.py --model bitnet-checkpoint --output packed
    python scripts/pack.py --model packed --output bitnet-again --to bitnet

The output loads like any checkpoint, with AutoModelForCausalLM.from_pretrained. It carries tokenizer, code, a card and
packing.json with the sizes. Takes models of frankenlm, and transformers' BitNet checkpoints (quant_method bitnet);
`--to bitnet` makes such a checkpoint again of what this command made of one.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command
from frankenlm.trainer_ext.common.flags import PACKED_FORMATS, add_log_flag


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
        choices=PACKED_FORMATS,
        default=PACKED_FORMATS[0],
        help="bitnet: give a packed BitNet model back to transformers (default: frankenlm)",
    )
    add_log_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.trainer_ext.commands.pack import pack

    pack(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
