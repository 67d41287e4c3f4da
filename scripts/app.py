"""Open the page: write with models, fill masks, look inside, shrink and break them. It starts with tiny models.

    frankenlm app                        then open the address it prints
    frankenlm app --model runs/demo      a model of yours first; the folder runs/ is on the page anyway

Models on the page: the tiny ones that come with the package, those below --runs, and those that --models lists.
GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are honoured. docs/app.md tells more.
"""

import argparse
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_model_name,
    one_line,
    path_value,
    run_command,
)


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="a folder or hub name that comes first on the page")
    parser.add_argument(
        "--runs", type=path_value, default=Path("runs"), help="folder whose models are on the page (default: runs)"
    )
    parser.add_argument("--models", type=path_value, help="YAML list of more, in place of the one that comes with it")
    return parser


def check_address() -> None:
    """Raises UserError for a GRADIO_SERVER_PORT or _NAME that is none; gradio reads the port while it is imported."""
    port, name = os.environ.get("GRADIO_SERVER_PORT", "7860"), os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    if not (port.isascii() and port.isdigit() and int(port[:9]) < 2**16):
        raise UserError(f"GRADIO_SERVER_PORT={port[:40]!r}: must be a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(f"GRADIO_SERVER_NAME={name[:40]!r}: no address of this machine ({one_line(error)}).") from error


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import without the garbage collector, whose rounds over all that is new take a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    check_address()
    if arguments.model is not None:
        check_model_name("--model", arguments.model)
    with uncollected():
        from frankenlm.sharing.space.allowed import SHIPPED, read_allowed
        from frankenlm.sharing.space.page import build_page, launch_options
        from frankenlm.sharing.space.shelf import Shelf
    models = Shelf(arguments.runs, first=arguments.model, allowed=read_allowed(arguments.models or SHIPPED))
    if arguments.model is not None:
        models.find(arguments.model)
    page = build_page(models)
    try:
        page.launch(**launch_options())
    except (OSError, ValueError) as error:  # a port that is taken, an odd GRADIO_SERVER_PORT or _NAME
        raise UserError(f"the page cannot be served: {one_line(error)}") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
