"""Console and file logging of one run.

The console shows --log_level and up, above the progress bar; each line begins with its level, as errors do ("warning:
..."). training.log keeps everything from info (or debug) up. The file is opened late, when the checks are through, and
then receives what was said before.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from .cli import Interrupted, UserError, is_main_process, is_storage_error, one_line
from .redaction import redact

LIBRARIES = ("frankenlm", "transformers")
BUFFERED_RECORDS = 100_000


class SecretFreeFormatter(logging.Formatter):
    """Writes records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class ConsoleFormatter(SecretFreeFormatter):
    """Begins with the level: "warning: ..."."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


CONSOLE_FORMAT = ConsoleFormatter("%(message)s")
LIBRARY_FORMAT = ConsoleFormatter("[transformers] %(message)s")
FILE_FORMAT = SecretFreeFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class TqdmHandler(logging.Handler):
    """Write records to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """training.log: what has no UTF-8 form is written as its escape, and a full disk costs the log, not the run."""

    def __init__(self, path: Path, append: bool):
        super().__init__(path, mode="a" if append else "w", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not is_storage_error(error):
            super().handleError(record)
            return
        self.handleError = lambda record: None  # said once
        print(f"warning: the log is not written any more: {one_line(error)}", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what was left in the buffer
            if not is_storage_error(error):
                raise


@contextlib.contextmanager
def waiting(what: str, seconds: float = 2.0) -> Iterator[None]:
    """Where a block takes longer than a moment, say on a terminal what is going on, and for how long it has been.

    For work of others that tells nothing of how far it is; what counts its steps has a bar of its own.
    """
    if sys.stderr is None or not sys.stderr.isatty() or not is_main_process():
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        if ended.wait(seconds):
            return
        with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:
            while not ended.wait(1.0):
                bar.refresh()

    teller = threading.Thread(target=tell, name="waiting", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class RunLog:
    """Context manager for the logging of one run; other processes than rank 0 only show warnings.

    Args:
        level: lowest level on the console, as in --log_level.
    """

    def __init__(self, level: str):
        self.level = logging.getLevelName(level.upper())
        self.console = TqdmHandler(self.level if is_main_process() else max(self.level, logging.WARNING))
        self.console.setFormatter(CONSOLE_FORMAT)
        # capacity and flush level are out of reach: the buffer waits for write_to()
        self.buffer = MemoryHandler(BUFFERED_RECORDS, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self.file: LogFile | None = None

    def __enter__(self) -> "RunLog":
        # Trainer's own bars stay. transformers draws one for every file it writes; those of datasets are for a watcher.
        self._bars_again: list[Callable[[], None]] = []
        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            self._bars_again.append(transformers_logging.enable_progress_bar)
        # who reads data has imported it; the others need not wait for it
        datasets = sys.modules.get("datasets")
        if datasets is not None and datasets.is_progress_bar_enabled() and not sys.stderr.isatty():
            datasets.disable_progress_bars()
            self._bars_again.append(datasets.enable_progress_bars)
        # what transformers says itself, beside our console, begins with its level too
        self._said_otherwise = [(each, each.formatter) for each in logging.getLogger("transformers").handlers]
        for handler, _ in self._said_otherwise:
            handler.setFormatter(LIBRARY_FORMAT)
        ours = logging.getLogger("frankenlm")
        self._old_level = ours.level
        ours.setLevel(min(self.level, logging.INFO))
        ours.addHandler(self.console)
        for name in LIBRARIES:
            logging.getLogger(name).addHandler(self.buffer)
        return self

    def write_to(self, path: Path, append: bool) -> None:
        """Open the log file (rank 0 only), write what was logged so far, and keep writing."""
        if not is_main_process() or self.file is not None:
            return
        self.file = LogFile(path, append)
        self.file.setFormatter(FILE_FORMAT)
        self.buffer.setTarget(self.file)
        self.buffer.flush()
        for name in LIBRARIES:
            logging.getLogger(name).removeHandler(self.buffer)
            logging.getLogger(name).addHandler(self.file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.file is not None and error is not None:
            self._record_failure(kind, error, traceback)
        for enable in self._bars_again:
            enable()
        for handler, formatter in self._said_otherwise:
            handler.setFormatter(formatter)
        ours = logging.getLogger("frankenlm")
        ours.removeHandler(self.console)
        ours.setLevel(self._old_level)
        for handler in (self.buffer, self.file):
            if handler is None:
                continue
            for name in LIBRARIES:
                logging.getLogger(name).removeHandler(handler)
            handler.close()

    def _record_failure(self, kind, error, traceback):
        """The console gets the failure from Python or as one line; the file must not end in silence."""
        expected = isinstance(error, (UserError, Interrupted, KeyboardInterrupt))
        record = logging.LogRecord(
            "frankenlm",
            logging.WARNING if expected else logging.ERROR,
            __file__,
            0,
            "stopped: %s",
            (str(error) or kind.__name__,),
            None if expected else (kind, error, traceback),
        )
        self.file.emit(record)
