"""Export a model for other programs: torch.export, ONNX or GGUF, each read back and compared.

    frankenlm export runs/mini --format onnx --output runs/mini-onnx
    frankenlm export runs/legacy --format torch --output runs/legacy-pt2
    frankenlm export runs/llama-like --format gguf --output runs/llama-like-gguf

torch and onnx: an encoder is one program over a text (encoder.onnx); a causal language model is two, prefill.onnx,
which reads a text and returns logits and state, and step.onnx, which goes on by one token. Batch and length are free.
gguf: the models that llama.cpp can run; others are refused with the reason. What was written is run (torch,
onnxruntime) or read back (gguf) and compared with the model before the folder is kept; export.json holds the figures.
docs/export.md tells more.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or hub name of a saved model")
    add("--format", required=True, metavar="{torch,onnx,gguf}", help="what to write")
    add("--output", required=True, help="new folder")
    add("--trust_remote_code", action="store_true", help="run model code that comes with MODEL")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.sharing.export.exporting import export

    export(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
