"""Text files, read in one way everywhere: documents, prompts, references, run files; and JSON that came from outside.

- Lines end with \\n, \\r\\n or \\r, and with nothing else. `str.splitlines` also cuts at U+2028, U+0085, form feeds and
  the like, which stand inside texts and inside JSON strings.
- UTF-8; a byte-order mark at the start is not part of the text. What is not UTF-8 is a ValueError that names the file
  and the line; UTF-16 and UTF-32 are recognised and named.
- .gz, .bz2, .xz and .zst are unpacked on the way, at constant memory.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

# How UTF-32 begins is how UTF-16 begins too: the longer marks come first.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHER_CONTENT = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\0": ".xz",
    b"PK\x03\x04": ".zip",
    b"PAR1\x15": ".parquet",
}
_HEAD = 4096
_ESCAPED = 0xDC00  # "surrogateescape" turns a byte that is not UTF-8 into this character plus the byte


class BadRowError(ValueError):
    """A row, or a line, that is no text; the message names the file and the place. The rows after it can be read."""

    def __init__(self, message: str):
        # A worker of a DataLoader sends an error home as the text of its traceback; the message is its last line.
        if message.startswith("Caught ") and "Traceback" in message:
            message = message.rstrip().rpartition("\n")[2].partition(": ")[2]
        super().__init__(message)


def _open_zst(path: str | Path) -> Any:
    if not pa.Codec.is_available("zstd"):
        raise ValueError(f"{path}: this build of pyarrow cannot unpack .zst; unpack it first: zstd -d {path}")
    return pa.input_stream(str(path), compression="zstd")


COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


def kind_of(path: str | Path) -> str:
    """Return what a file's name says about its content, in lower case: ".jsonl" for a.jsonl and for a.JSONL.gz."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


@contextlib.contextmanager
def open_bytes(path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, unpacked.

    Raises:
        ValueError: a packed file is damaged or was cut off; also while the file is being read.
        OSError: it cannot be opened.
    """
    unpack = COMPRESSIONS.get(Path(path).suffix.lower(), open)
    try:
        with unpack(path, "rb") if unpack is not _open_zst else _open_zst(path) as file:
            yield file if unpack is open else io.BufferedReader(file)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # an error of the disk has a number, one of the packed content has none
        if unpack is open or error.errno is not None:
            raise
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: damaged or cut off; it cannot be unpacked ({error}).")


@contextlib.contextmanager
def open_text(path: str | Path, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """Open a text; bytes that are not UTF-8 come as lone surrogates, for `undecoded` to find."""
    with open_bytes(path) as file:
        _check_encoding(path, file.peek(_HEAD)[:_HEAD])
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _check_encoding(path: str | Path, head: bytes) -> None:
    for mark, name in _OTHER_MARKS.items():
        if head.startswith(mark):
            raise _other_encoding(path, name)
    for mark, name in _OTHER_CONTENT.items():
        if head.startswith(mark):
            raise ValueError(f"{path}: holds no text but {name} data; give it the name it should have, or unpack it.")
    zeros = head[0::2].count(0), head[1::2].count(0)
    # Latin letters in UTF-16 have a zero byte each; in UTF-8 a zero byte is a rarity.
    if len(head) >= 4 and max(zeros) > len(head) / 3 and min(zeros) < len(head) / 50:
        raise _other_encoding(path, "utf-16be" if zeros[0] > zeros[1] else "utf-16le")


def _other_encoding(path: str | Path, name: str) -> ValueError:
    return ValueError(
        f"{path}: {name.upper()}, not UTF-8. Convert the file first, for example with: iconv -f {name} -t utf-8"
    )


def undecoded(text: str, place: str) -> BadRowError | None:
    """Return the error of a text, read by `open_text`, that holds a byte which was not UTF-8; None if there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - _ESCAPED
        return BadRowError(
            f"{place}: not UTF-8 (byte 0x{byte:02x}). Convert the file first, "
            "for example with: iconv -f latin1 -t utf-8"
        )
    return None


def checked_lines(path: str | Path) -> Iterator[tuple[int, str | BadRowError]]:
    """Yield (line number from 1, line without its end), or the error in a line's place, at constant memory.

    Raises ValueError for a file in another encoding or a damaged one, OSError for one that cannot be read.
    """
    with open_text(path, newline=None) as file:
        for number, line in enumerate(file, start=1):
            yield number, undecoded(line, f"{path}, line {number}") or line.removesuffix("\n")


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file.

    Raises ValueError naming the file and the line that is not UTF-8, OSError for a file that cannot be read.
    """
    for number, line in checked_lines(path):
        if isinstance(line, BadRowError):
            raise line
        yield number, line


def read_text(path: str | Path) -> str:
    """Return a whole text file as it is, line ends included, without a byte-order mark. Errors as of `text_lines`."""
    with open_text(path, newline="") as file:
        text = file.read()
    if not text.isascii() and (error := undecoded(text, str(path))):
        for _ in text_lines(path):  # says which line
            pass
        raise error
    return text


def parse_json(text: str, place: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        BadRowError: not JSON, a number of thousands of digits, or nested too deep; the message begins with `place`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise BadRowError(f"{place}: not JSON ({error.msg}, {line}column {error.colno}).") from error
    except RecursionError as error:
        raise BadRowError(f"{place}: JSON nested too deep to be read.") from error
    except ValueError as error:  # an integer too long for Python
        raise BadRowError(f"{place}: not usable JSON ({error}).") from error


def check_characters(text: str, place: str) -> None:
    """Raises BadRowError for half a surrogate pair: JSON can spell it, and nothing can write it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{place}: the text holds half a surrogate pair, which is no character.") from error
