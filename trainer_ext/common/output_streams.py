"""Standard output and error that cannot end a run: any character, a closed pipe, a full disk, no stream at all.

A character that the console's encoding lacks (cp1252, ASCII) is written as its escape. When a stream breaks, the work
goes on: what it says next is dropped, its report is still written, and the exit code tells what happened.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

CLOSED_ERRNOS = frozenset({errno.EPIPE, errno.ESHUTDOWN, errno.EBADF})


class OutputClosed(Exception):
    """Nobody reads standard output any more, and the text on it was all there was to do."""


class SturdyStream:
    """A text stream whose `write` and `flush` never raise; `failure` is the first error of the one beneath.

    Args:
        beneath: the stream that is written to; None where the process was started without one.
    """

    def __init__(self, beneath: TextIO | None):
        self.beneath = beneath
        self.failure: OSError | None = None
        self.within_line = False

    def write(self, text: str) -> int:
        if text:
            self.within_line = not text.endswith(("\n", "\r"))  # a progress bar goes back to the start
        if self.beneath is not None and self.failure is None:
            try:
                self._write_any(text)
            except (OSError, ValueError) as error:
                self._break(error)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.beneath is not None and self.failure is None:
            try:
                self.beneath.flush()
            except (OSError, ValueError) as error:
                self._break(error)

    def isatty(self) -> bool:
        return self.beneath is not None and self.failure is None and self.beneath.isatty()

    @property
    def closed_by_reader(self) -> bool:
        """Whether what broke is a pipe whose other end has gone."""
        return self.failure is not None and self.failure.errno in CLOSED_ERRNOS

    def _write_any(self, text: str) -> None:
        try:
            self.beneath.write(text)
        except UnicodeEncodeError:
            encoding = self.beneath.encoding or "ascii"
            self.beneath.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _break(self, error: OSError | ValueError) -> None:
        # a stream that was closed under us raises ValueError
        self.failure = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
        # what waits in the buffer beneath must not fail once more when Python ends
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.beneath.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        # encoding, fileno, buffer and the like; a process without a stream has those of one into nowhere
        beneath = io.TextIOWrapper(io.BytesIO(), encoding="utf-8") if self.beneath is None else self.beneath
        return getattr(beneath, name)


def say(line: str) -> None:
    """Print a line on standard error, a new one where a progress bar has left the last one open."""
    if isinstance(sys.stderr, SturdyStream) and sys.stderr.within_line:
        print(file=sys.stderr)
    print(line, file=sys.stderr)


def stop_if_unread() -> None:
    """Raises OutputClosed where the reader of standard output has gone (`... | head`)."""
    if isinstance(sys.stdout, SturdyStream) and sys.stdout.closed_by_reader:
        raise OutputClosed


@contextlib.contextmanager
def sturdy_output() -> Iterator[SturdyStream]:
    """Make standard output and error sturdy within the block; yields standard output. Once is enough."""
    if isinstance(sys.stdout, SturdyStream):
        yield sys.stdout
        return
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SturdyStream(before[0]), SturdyStream(before[1])
    out = sys.stdout
    try:
        yield out
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
