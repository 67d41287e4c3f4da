"""What every command shares: a user's mistakes as one line, and exit codes.

Exit codes: 0 done, 1 failed, 2 a user's mistake found before any work was done, 6 storage full or read-only,
130 / 143 ended by SIGINT / SIGTERM.
"""

import argparse
import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from frankenlm.modeling.checks import suggest

EXIT_FAILED = 1
EXIT_USER_MISTAKE = 2
EXIT_STORAGE = 6
EXIT_SIGNAL_BASE = 128

# EFBIG: the limit on a file's size
STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG})
# safetensors and torch.save report a full disk as errors of their own, without an errno.
STORAGE_TEXTS = ("No space left on device", "Read-only file system", "Disk quota exceeded")


class UserError(ValueError):
    """Something the user can put right; its message is one line and says how."""


class Interrupted(Exception):
    """A signal ended the work in an orderly way. `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn the errors that reading a user's input raises into `UserError`: the phase before any work is done."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if is_storage_error(error):
            raise
        raise UserError(one_line(error)) from error
    except ValueError as error:
        raise UserError(one_line(error)) from error


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return the exit code; mistakes, storage errors and signals become one line on stderr.

    An exception with an attribute `exit_code` is an orderly end too: its message is the line, its code is returned.
    """
    try:
        main(argv)
    except UserError as error:
        # every process of a distributed run finds the same mistake; one of them says so
        if is_main_process():
            print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_MISTAKE
    except Interrupted as error:
        print(f"interrupted: {one_line(error)}", file=sys.stderr)
        return EXIT_SIGNAL_BASE + error.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGNAL_BASE + 2
    except Exception as error:
        if hasattr(error, "exit_code"):
            # an orderly end with a code of its own, as the degradation lab has them
            if is_main_process():
                print(f"stopped: {one_line(error)}", file=sys.stderr)
            return error.exit_code
        if not is_storage_error(error):
            raise
        print(f"storage: {one_line(error)}", file=sys.stderr)
        return EXIT_STORAGE
    return 0


def is_storage_error(error: BaseException) -> bool:
    """Whether the error means that the storage is full, over quota or read-only."""
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        return True
    return any(text in str(error) for text in STORAGE_TEXTS)


def check_model_name(option: str, name: str) -> None:
    """Make sure that a model's name is a folder with a config.json, or could be a name on the hub.

    Raises:
        UserError: it looks like a path, and nothing lies there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{option} {name}: the folder holds no config.json, so no model.")
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{option} {name}: no such folder.")


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    # str(KeyError) is the repr of its message
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def is_main_process() -> bool:
    """Whether this is rank 0 of the launcher's processes (the launcher says so before torch knows)."""
    return int(os.environ.get("RANK", "0")) == 0


def check_output_dir(folder: str | os.PathLike) -> None:
    """Make sure that a file can be written into `folder` or, where it is missing, into the parent it would be made in.

    Nothing is made, not even for a moment: another process may be looking at the same folders.

    Raises:
        UserError: the folder cannot be made or written.
        OSError: the storage is full or read-only.
    """
    folder = Path(folder).absolute()
    try:
        nearest = next(path for path in (folder, *folder.parents) if _is_there(path))
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"x")
    except OSError as error:
        if is_storage_error(error):
            raise
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}. Choose another folder.") from error


def _is_there(path: Path) -> bool:
    """Whether anything lies at `path`, be it a link to nothing; unlike Path.exists, other errors are raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class OneLineParserMixin:
    """An argparse parser whose errors are a `UserError` and whose unknown options come with a suggestion."""

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; an option that does not exist is a `UserError` with a did-you-mean."""
        namespace, unknown = self.parse_known_args(list(argv))
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown argument {name!r}.{suggest(name, known)} (see --help)")
        return namespace


class OneLineParser(OneLineParserMixin, argparse.ArgumentParser):
    """The plain parser for scripts that need no dataclasses."""
