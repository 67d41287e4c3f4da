"""scripts/pack.py behind its flags: the checks, the packing, and one line of what was packed; or the inspection."""

import argparse
import json
from pathlib import Path

from ..common.cli import UserError, check_new_file, user_mistakes
from ..common.files import write_json
from ..common.logs import RunLog
from ..packed_checkpoints import check_new_folder, open_source, pack_checkpoint
from ..packing.foreign import PackingOptions
from ..packing.inspecting import text
from .pack_inspection import inspect_checkpoint

PRINTED = "-"  # --json without a file


def pack(args: argparse.Namespace) -> None:
    """Pack a checkpoint, or tell what it is, as scripts/pack.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before anything is written.
    """
    options = PackingOptions(args.int8_embeddings, args.int8_head, tuple(args.modules_to_not_convert), args.to)
    if args.inspect:
        _inspect(args, options)
        return
    if args.json is not None:
        raise UserError("--json goes with --inspect; packing writes its facts into packing.json of the output.")
    if args.output is None:
        raise UserError("--output is missing: name a new folder for the packed checkpoint, or look with --inspect.")
    check_new_folder(args.output)
    with RunLog(args.log_level):
        with user_mistakes():
            source = open_source(args.model, options)
        with user_mistakes():
            facts = pack_checkpoint(source, Path(args.output), options)
    print(summary(facts))
    print(f"packed: {args.output}")


def _inspect(args: argparse.Namespace, options: PackingOptions) -> None:
    if args.output is not None:
        raise UserError("--inspect writes nothing: leave --output out.")
    if args.json not in (None, PRINTED):
        check_new_file("--json", Path(args.json), ".json")
    with RunLog(args.log_level), user_mistakes():
        facts = inspect_checkpoint(args.model, options)
    if args.json == PRINTED:
        print(json.dumps(facts, indent=2))
        return
    print(text(facts))
    if args.json is not None:
        write_json(Path(args.json), facts)


def summary(facts: dict) -> str:
    """One line of what was packed."""
    if "ternary_weights" not in facts:
        return f"{facts['ternary_layers']} ternary layers, {facts['file_bytes']:,} bytes in {facts['format']}'s format"
    return (
        f"{facts['ternary_weights']:,} ternary weights at {facts['bits_per_ternary_weight']:.3f} bits each; "
        f"{facts['file_bytes']:,} bytes instead of {facts['unpacked_file_bytes']:,}"
    )
