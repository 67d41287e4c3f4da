"""scripts/pack.py behind its flags: the checks, the packing, and one line of what was packed."""

import argparse
from pathlib import Path

from ..common.cli import user_mistakes
from ..common.logs import RunLog
from ..packed_checkpoints import PackingOptions, check_new_folder, open_source, pack_checkpoint


def pack(args: argparse.Namespace) -> None:
    """Pack a checkpoint as scripts/pack.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before anything is written.
    """
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
