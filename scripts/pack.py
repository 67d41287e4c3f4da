"""Pack a checkpoint with ternary layers: two bits a weight on disk and in memory.

    frankenlm pack --model runs/legacy --output runs/legacy-packed
    frankenlm pack --model runs/base --output runs/base-packed --int8_embeddings --int8_head
    frankenlm pack --model bitnet-checkpoint --output packed
    frankenlm pack --model Ternary-Bonsai-1.7B-Q2_0.gguf --output packed
    frankenlm pack --model checkpoint --inspect
    frankenlm pack --model packed --output bitnet-again --to bitnet

The output loads like any checkpoint, with AutoModelForCausalLM.from_pretrained. It carries tokenizer, code, a card and
packing.json with the sizes. Takes models of frankenlm; transformers' BitNet checkpoints (quant_method bitnet), of
which `--to bitnet` makes such a checkpoint again; dense checkpoints of transformers whose weights are ternary, a scale
for each tensor, row or group of 128, 64 or 32 inputs, which is found by looking; and GGUF files (TQ1_0, TQ2_0, Q2_0,
I2_S and what else dequantises to ternary values). docs/pack.md tells more.
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
    add("--model", required=True, help="folder, hub name or GGUF file (on the hub USER/MODEL/FILE.gguf)")
    add("--output", help="new folder for the packed checkpoint")
    add("--inspect", action="store_true", help="print what a checkpoint is and what packing would do; write nothing")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="with --inspect: every layer as JSON, printed or written into a file",
    )
    add("--int8_embeddings", action="store_true", help="token table in one byte a weight, a scale a row")
    add(
        "--int8_head", action="store_true", help="output layer in one byte a weight; its inputs are rounded to int8 too"
    )
    add(
        "--modules_to_not_convert",
        nargs="+",
        default=[],
        metavar="NAME",
        help="layers, or parts of the model, that stay as they are",
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
