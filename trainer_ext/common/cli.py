"""What every command shares: a user's mistakes as one line, and exit codes.

Exit codes: 0 done, 1 failed, 2 a user's mistake found before any work was done, 6 storage full or read-only,
130 / 143 ended by SIGINT / SIGTERM, 141 nobody reads the output any more (as of a Unix tool).
"""

import argparse
import contextlib
import errno
import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .checks import suggest
from .output_streams import OutputClosed, SturdyStream, say, sturdy_output
from .redaction import redact

LARGEST_NUMBER = 2**31 - 1  # of documents, tokens, rows
MOST_THREADS = 1024

EXIT_FAILED = 1
EXIT_USER_MISTAKE = 2
EXIT_STORAGE = 6
EXIT_SIGNAL_BASE = 128
EXIT_OUTPUT_CLOSED = EXIT_SIGNAL_BASE + 13  # SIGPIPE, which Windows does not have

# EFBIG: the limit on a file's size
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
STORAGE_ERRNOS = FULL_ERRNOS | {errno.EROFS, errno.EIO, errno.EFBIG}
# safetensors and torch.save report a full disk as errors of their own, without an errno.
STORAGE_TEXTS = ("No space left on device", "Read-only file system", "Disk quota exceeded")
# torch says so in a RuntimeError on the CPU, in one of its own on a GPU; of a small /dev/shm in a third way.
MEMORY_TEXTS = ("can't allocate memory", "out of memory", "out of shared memory")


class UserError(ValueError):
    """Something the user can put right; its message is one line and says how."""


class Failed(Exception):
    """The work cannot go on, for a reason that lies in what it was given; the message is one line."""

    exit_code = EXIT_FAILED


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
    What is printed cannot end the run: see output_streams.py.
    """
    with sturdy_output() as out:
        code = _run(main, argv)
        out.flush()
        return code or _check_output(out)


def _run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    try:
        main(argv)
    except UserError as error:
        # every process of a distributed run finds the same mistake; one of them says so
        if is_main_process():
            say(f"error: {one_line(error)}")
        return EXIT_USER_MISTAKE
    except Interrupted as error:
        say(f"interrupted: {one_line(error)}")
        return EXIT_SIGNAL_BASE + error.signum
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_SIGNAL_BASE + 2
    except OutputClosed:
        return EXIT_OUTPUT_CLOSED
    except Exception as error:
        if hasattr(error, "exit_code"):
            # an orderly end with a code of its own, as the degradation lab has them
            if is_main_process():
                say(f"stopped: {one_line(error)}")
            return error.exit_code
        if is_storage_error(error):
            say(f"storage: {one_line(error)}")
            return EXIT_STORAGE
        if is_memory_error(error):
            say(f"failed: the memory does not suffice: {one_line(error)}")
            return EXIT_FAILED
        raise
    return 0


def _check_output(out: SturdyStream) -> int:
    """The exit code of finished work: a reader who left early has what he wanted, a full disk has lost something."""
    if out.failure is None or out.closed_by_reader:
        return 0
    print(f"storage: standard output cannot be written: {out.failure.strerror}", file=sys.stderr)
    return EXIT_STORAGE


def is_storage_error(error: BaseException) -> bool:
    """Whether the error means that the storage is full, over quota or read-only."""
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        return True
    return any(text in str(error) for text in STORAGE_TEXTS)


def is_memory_error(error: BaseException) -> bool:
    """Whether the error means that the memory, of this machine or of a GPU, was not enough."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_TEXTS)


ADAPTER_CONFIG = "adapter_config.json"


def check_model_name(option: str, name: str, *, adapters: bool = False) -> None:
    """Make sure that a model's name is a folder with a config.json, or could be a name on the hub.

    Args:
        adapters: take the folder of an adapter (PEFT) too.
    Raises:
        UserError: it looks like a path, and nothing lies there; it is a file, or the folder of an adapter.
    """
    check_text(option, name)
    if not name.strip():
        raise UserError(f"{option} is empty: give a folder or a hub name.")
    try:
        folder = Path(name).expanduser()
        is_folder, is_there = folder.is_dir(), _is_there(folder)
        has_config = is_folder and (folder / "config.json").is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long; a home folder of nobody
        raise UserError(f"{option} {name[:80]}: no such folder ({_reason(error)}).") from error
    if has_config or (adapters and is_folder and (folder / ADAPTER_CONFIG).is_file()):
        return
    if is_folder:
        _check_no_adapter(option, name, folder)
        raise UserError(f"{option} {name}: the folder holds no config.json, so no model.")
    if is_there:
        raise UserError(f"{option} {name}: is no folder; give the folder that holds config.json.")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{option} {name}: no such folder.")


def _check_no_adapter(option: str, name: str, folder: Path) -> None:
    """Raises UserError for a folder that PEFT wrote: it holds changes to a model, not a model."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = base_of(folder) or "its base model"
    raise UserError(
        f"{option} {name}: holds an adapter (LoRA and the like) for {base}, not a model: merge it with PEFT's "
        "merge_and_unload(), save the result, and give that folder."
    )


def base_of(adapter: Path) -> str | None:
    """Return the name of the model that an adapter's folder is for; None where it does not say."""
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return base if isinstance(base, str) and base.strip() else None


def _reason(error: BaseException) -> str:
    """Why the system refused, without the path, which the message names already."""
    return (error.strerror if isinstance(error, OSError) else None) or one_line(error)


def check_text(option: str, text: str) -> None:
    """Raises UserError for a value that is no text: bytes that were no UTF-8, which Python hands on as surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        if sys.getfilesystemencoding() != "utf-8" and _is_utf8(text):
            raise UserError(
                f"{option} {ascii(text)}: this process reads names as {sys.getfilesystemencoding()}: set PYTHONUTF8=1, "
                "or a UTF-8 locale such as LC_ALL=C.UTF-8."
            )
        raise UserError(
            f"{option} {ascii(text)}: is not valid UTF-8: convert it first, or rename the file that is meant."
        )
    if "\0" in text:
        raise UserError(f"{option} {text!r}: holds a NUL character, which no name and no text has.")


def _is_utf8(text: str) -> bool:
    """Whether a word of the command line, as Python hands it on, was valid UTF-8."""
    try:
        os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, without secrets."""
    # str(KeyError) is the repr of its message
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return redact(" ".join(text.split())) or type(error).__name__


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
    if not str(folder).strip():
        raise UserError(f"cannot write to {str(folder)!r}: that is no name. Choose another folder.")
    folder = Path(folder).absolute()
    try:
        nearest = next(path for path in (folder, *folder.parents) if _is_there(path))
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"x")
    except OSError as error:
        if is_storage_error(error):
            raise
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}. Choose another folder.") from error


def check_new_file(option: str, path: Path, suffix: str | None = None) -> None:
    """Make sure, before the work, that a file can be written at `path`; see `check_output_dir`.

    Raises:
        UserError: another ending than `suffix`; a folder or a device stands there, the name is too long, or the place
            cannot be written.
        OSError: the storage is full or read-only.
    """
    if suffix is not None and path.suffix.lower() != suffix:
        raise UserError(f"{option} {path}: name a file that ends in {suffix}.")
    if not path.name.strip():
        raise UserError(f"{option} {str(path)!r}: names no file.")
    try:
        there = path.stat() if _is_there(path) else None
    except FileNotFoundError:  # a link to nothing; it is replaced
        there = None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{option} {str(path)[:80]}: cannot be written: {_reason(error)}.") from error
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise UserError(f"{option} {path}: is a folder; name a file in it.")
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise UserError(f"{option} {path}: is no regular file; name a file, which is written beside and renamed.")
    check_output_dir(path.absolute().parent)


def _is_there(path: Path) -> bool:
    """Whether anything lies at `path`, be it a link to nothing; unlike Path.exists, other errors are raised."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_numbers(
    args: argparse.Namespace,
    *,
    least: Mapping[str, int],
    between: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> None:
    """Refuse numbers that nothing can be done with.

    Args:
        least: option -> its smallest value. between: options whose values lie strictly between 0 and 1. seeds: options
            that seed random numbers.

    Raises:
        UserError: naming the first option that is out of range; one that was not given is None and passes.
    """
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name} {value}: must be at least {smallest}.")
        if value is not None and value > LARGEST_NUMBER:
            raise UserError(f"--{name} {value}: must be at most {LARGEST_NUMBER}.")
    for name in between:
        if not 0 < getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must lie between 0 and 1.")
    for name in seeds:
        check_seed(f"--{name}", getattr(args, name))


def check_seed(option: str, seed: int) -> None:
    """Raises UserError for a number that does not seed random numbers."""
    if not 0 <= seed < 2**63:
        raise UserError(f"{option} {seed}: must lie between 0 and 2^63 - 1.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises UserError for --seeds that do not seed random numbers, or for one given twice."""
    for seed in seeds:
        check_seed("--seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: must be different numbers.")


def check_threads(threads: int | None) -> None:
    """Raises UserError for --threads that no machine has; more than it has cores is slow, thousands end the process."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(f"--threads {threads}: must lie between 1 and {MOST_THREADS}.")


def check_value(option: str, value: object, *, required: bool = False) -> None:
    """Raises UserError for a value that no option can mean: an empty text, one that is no text, inf or nan.

    required: the option cannot be left out.
    """
    if isinstance(value, str):
        check_text(option, value)
    if value in ("", []):
        raise UserError(f"{option} is empty: give a value{'' if required else f', or leave {option} out'}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{option} {value}: must be a finite number.")


def path_value(text: str) -> Path:
    """An option's path; the empty text, of which Path makes the folder one stands in, is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give a path, or leave it out")
    return Path(text)


class OneLineParserMixin:
    """An argparse parser whose errors are a `UserError` and whose unknown options come with a suggestion.

    may_be_empty: names of options whose empty text means something.
    """

    may_be_empty: tuple[str, ...] = ()

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; an option that does not exist is a `UserError` with a did-you-mean."""
        namespace, unknown = self.parse_known_args(list(argv))
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown argument {name!r}.{suggest(name, known)} (see --help)")
        self._check_values(namespace)
        return namespace

    def _check_values(self, namespace: argparse.Namespace) -> None:
        """Refuse what is a mistake for any option: the empty text, text that is none, numbers that are not finite."""
        for action in self._actions:
            given = getattr(namespace, action.dest, None)
            if given is None or given == action.default:
                continue
            option = action.option_strings[0] if action.option_strings else action.dest
            # [] itself is argparse's answer to `--option=--`
            for value in given if given and isinstance(given, (list, tuple)) else [given]:
                if value != "" or action.dest not in self.may_be_empty:
                    check_value(option, value, required=action.required)


class OneLineParser(OneLineParserMixin, argparse.ArgumentParser):
    """The plain parser for scripts that need no dataclasses."""
