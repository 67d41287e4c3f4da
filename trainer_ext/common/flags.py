"""Flags that several commands share. Nothing here needs torch: a help page is there at once."""

import argparse

DTYPES = ("auto", "float32", "bfloat16", "float16")
PACKED_FORMATS = FRANKENLM, BITNET = ("frankenlm", "bitnet")
LOG_LEVELS = ("debug", "info", "warning", "error")


def add_model_flags(parser: argparse.ArgumentParser, *, dtype: bool = True, checkpoint: str = "the checkpoint") -> None:
    """Add how a saved model is run: --device, --dtype where there is a choice, --trust_remote_code."""
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    if dtype:
        parser.add_argument(
            "--dtype", choices=DTYPES, default="auto", help="number format of the weights (default: as saved)"
        )
    parser.add_argument("--trust_remote_code", action="store_true", help=f"run model code that comes with {checkpoint}")


def add_log_flag(parser: argparse.ArgumentParser) -> None:
    """Add --log_level."""
    parser.add_argument("--log_level", choices=LOG_LEVELS, default="info", help="(default: info)")
