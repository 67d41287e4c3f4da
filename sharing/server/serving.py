"""`frankenlm serve` behind its flags: the models are opened, the address is taken, and requests are answered.

The address is taken first, so that a port that is in use is told before any weights are read.
"""

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from frankenlm.sharing.live.models import open_model
from frankenlm.trainer_ext.common.checkpoints import check_device, default_device
from frankenlm.trainer_ext.common.cli import UserError, check_model_name, check_numbers, check_threads, one_line
from frankenlm.trainer_ext.common.logs import RunLog
from frankenlm.trainer_ext.common.redaction import public_name
from frankenlm.trainer_ext.common.signals import CaughtSignals

from .application import make_application
from .engine import Engine, EngineLimits

logger = logging.getLogger("frankenlm.serving")

KEY_VARIABLE = "FRANKENLM_API_KEY"
SHORTEST_KEY = 8
GRACE = 8.0  # seconds for answers to end after a signal; containers are killed 10 s after it
LONGEST_ID = 128


def serve(args: argparse.Namespace) -> None:
    """Answer requests until a signal comes.

    Raises:
        UserError: a mistake in the flags, the key, the address or the models, before a request is answered.
    """
    check_numbers(args, least={"port": 0, "max_tokens": 1, "max_queue": 0, "batch_size": 1, "max_context": 2})
    if args.port > 65535:
        raise UserError(f"--port {args.port}: must lie between 0 and 65535.")
    check_threads(args.threads)
    args.device = args.device or default_device()
    check_device(args.device)
    key = read_key(os.environ)
    places = named_models(args.models)
    for place in places.values():
        check_model_name("MODEL", place, adapters=True)
    with RunLog(args.log_level), take_address(args.host, args.port) as listening:
        if key is None and not is_local(args.host):
            logger.warning("anybody who reaches %s may ask: set %s to a key of your own", args.host, KEY_VARIABLE)
        if args.threads is not None:
            set_threads(args.threads)
        limits = EngineLimits(args.batch_size, args.max_queue, args.max_context, args.max_tokens)
        engines = {name: open_engine(name, place, args, limits) for name, place in places.items()}
        run(engines, listening, key)


def read_key(environment: Mapping[str, str]) -> str | None:
    """Return the key that clients must show; None where there is none.

    Raises:
        UserError: one that is too short to keep anybody out.
    """
    key = environment.get(KEY_VARIABLE)
    if key is None:
        return None
    if len(key.strip()) < SHORTEST_KEY or key != key.strip() or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{KEY_VARIABLE}: must be at least {SHORTEST_KEY} printable ASCII characters without spaces around them; "
            "unset it to serve without a key."
        )
    return key


def named_models(words: Sequence[str]) -> dict[str, str]:
    """Return name -> folder or hub name of words such as `runs/mine` or `mine=runs/mine`.

    Raises:
        UserError: two of one name, or a name that no client could write.
    """
    places: dict[str, str] = {}
    for word in words:
        given, equals, place = word.partition("=")
        # a folder whose own name holds the sign
        name, place = (given, place) if equals and not Path(word).is_dir() else (public_name(word.rstrip("/")), word)
        if not name or len(name) > LONGEST_ID or not name.isprintable():
            raise UserError(f"MODEL {word!r}: give it a name of printable characters, as in mine={place}.")
        if name in places:
            raise UserError(f"MODEL {word}: another model is called {name} already; name this one, as in mine={place}.")
        places[name] = place
    return places


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def take_address(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; port 0 is any free one.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a name of more than 63 characters between its dots
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise UserError(f"--host {host}: no such address here ({reason}).") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise UserError(
            f"--host {host} --port {port}: cannot be taken ({error.strerror}): choose another; port 0 is any free one."
        ) from error
    return listening


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def open_engine(name: str, place: str, args: argparse.Namespace, limits: EngineLimits) -> Engine:
    """Load a model and start its engine."""
    loaded = open_model(name, place, device=args.device, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    engine = Engine(loaded, limits)
    together = f"up to {engine.slots} answers together" if engine.slots > 1 else "one answer at a time"
    logger.info("%s: %s, %d tokens of prompt and answer", name, together, engine.context)
    return engine


class PoliteServer(uvicorn.Server):
    """Says where it is reached; at a signal lets answers end, and cancels those that take longer than GRACE."""

    def __init__(self, config: uvicorn.Config, engines: Mapping[str, Engine]):
        super().__init__(config)
        self.engines = engines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {', '.join(self.engines)} at http://{shown}:{port}/v1", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        busy = sum(engine.busy for engine in self.engines.values())
        logger.info("shutting down; %d answers have %g s to end", busy, GRACE)
        loop = asyncio.get_running_loop()
        ending = loop.call_later(GRACE, self._cancel_answers)
        await super().shutdown(sockets)
        ending.cancel()

    def _cancel_answers(self) -> None:
        for engine in self.engines.values():
            engine.close(timeout=0)


def configure(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs the application: it writes no lines of its own, which would hold what stands in addresses."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(GRACE) + 2,
    )


def run(engines: Mapping[str, Engine], listening: socket.socket, key: str | None) -> None:
    """Answer requests until SIGINT or SIGTERM; then end in an orderly way."""
    server = PoliteServer(configure(make_application(engines, key)), engines)
    # uvicorn listens to both while it runs, and raises them again once it has ended
    with CaughtSignals((signal.SIGINT, signal.SIGTERM), lambda signum, frame: None):
        server.run(sockets=[listening])
    logger.info("ended")
