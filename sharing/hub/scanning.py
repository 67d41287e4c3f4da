"""What must not leave this machine: secrets and local paths, looked for in every file before it is pushed.

Files are searched as text, whatever they are: JSON also as it reads without its escapes, the texts inside a PNG, and
UTF-16. Of weights the header is searched, whose texts others wrote, and not the numbers.
"""

import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenlm.trainer_ext.common.redaction import secrets_in_environment

WEIGHTS_END = ".safetensors"
SECRET, LOCAL_PATH = "secret", "local path"
HOME_WORD = "HOME"  # what stands for a home folder itself, whose last part is somebody's name
RANDOM = 16  # characters from which on a value with letters and digits is taken for a key

# A key's own form.
SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})",
    "a token of GitLab": r"\bglpat-[\w-]{16,}",
    "a key of OpenAI's kind": r"\bsk-(?=[\w-]*\d)(?:[a-z]+-)?[A-Za-z0-9_-]{20,}",
    "a key of Stripe": r"\b[sr]k_live_[A-Za-z0-9]{16,}",
    "a key of Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a token of a package index": r"\b(?:npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a signed web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a bearer's token": r"(?i)\bbearer\s+(?=[\w.~+/-]*\d)[\w.~+/-]{16,}",
    "a password in an address": r"\b[A-Za-z][\w+.-]*://[^/\s:@\"']+:[^/\s@\"']+@",
}
# A value that stands behind a name: "api_key": "...", WANDB_API_KEY=..., password: ...
_PAIR = re.compile(
    r"""(?i)(?P<name>\b[\w.-]*(?:token|secret|passw(?:or)?d|api_?key|access_?key|secret_?key|private_?key))s?["']?"""
    r"""\s*[:=]\s*(?P<quote>["']?)(?P<value>[A-Za-z0-9+/_=.!@#$%^&*~-]{6,})"""
)
PAIR_KIND = "a password or key"

# Folders of users and of machines; a path goes on behind them.
_TOPS = "home|Users|root|tmp|mnt|media|nfs|data|work|scratch|workspace|private|Volumes|gpfs|lustre|var/tmp|var/folders"
_ROOTS = rf"(?:/(?:{_TOPS})/|(?<!/)/[A-Za-z][\w.-]*/(?:home|users)/|~/|[A-Za-z]:[\\/]+(?:Users|home)[\\/]+)"
_LOCAL_PATH = re.compile(
    # in quotes up to their end, blanks included; elsewhere up to a blank
    rf"""(?i)(?<=["'`]){_ROOTS}[^"'`\r\n]+|(?<!\w){_ROOTS}[^\s"'`,;:)\]}}<>|]+"""
)
_HOME = re.compile(r"(?i)(?:(?:/[\w.-]+)?/(?:home|users)/|[a-z]:[\\/]+(?:users|home)[\\/]+)[^/\\]+[/\\]*")
_SECRETS = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}


@dataclass(frozen=True)
class Suspect:
    """Something in a file that must not be pushed. `shown` never holds a secret."""

    file: str
    line: int
    kind: str
    shown: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.shown}"


def scan(name: str, content: bytes, folder: Path) -> list[Suspect]:
    """Return the secrets and the local paths in a file that is to be pushed, each once.

    Args:
        name: of the file, in the repository.
        content: what is pushed of it; of weights see `readable_part`.
        folder: where the model lies here; its own path is a local one, wherever that is.
    """
    found = {}
    for text, whole in _texts(content):
        for start, kind, shown in [*_secrets(text), *_paths(text, folder)]:
            line = text.count("\n", 0, start) + 1 if whole else 1
            found.setdefault((kind, shown, line if whole else 0), Suspect(name, line, kind, shown))
    told = {(each.kind, each.shown) for key, each in found.items() if key[2]}
    return [each for key, each in found.items() if key[2] or (each.kind, each.shown) not in told]


def _texts(content: bytes) -> Iterator[tuple[str, bool]]:
    """Yield the texts of a file and whether each is the file itself, whose lines can be counted."""
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16" if marked else "utf-8", "replace")
    yield text, True
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        yield "\n".join(_png_texts(content)), False
    elif text.lstrip()[:1] in ("{", "[") and "\\" in text:
        try:
            yield "\n".join(_strings(json.loads(text))), False
        except (ValueError, RecursionError):
            return  # no JSON: the text itself was searched


def _strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value, names with what they name."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield f'"{name}": "{item}"' if isinstance(item, str) else name
            if not isinstance(item, str):
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield f'"{value}"'


def _png_texts(content: bytes) -> Iterator[str]:
    """The texts of a PNG's chunks tEXt, zTXt and iTXt (W3C PNG, 11.3.3)."""
    place = 8
    while place + 8 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        data = content[place + 8 : place + 8 + length]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            yield data.decode("utf-8", "replace")
            yield from _inflated(data)
        place += length + 12


def _inflated(data: bytes) -> Iterator[str]:
    """What is compressed in a text chunk: it begins behind one of the zero bytes that end its fields."""
    for start in [place + 1 for place, byte in enumerate(data[:200]) if byte in (0, 1)]:
        try:
            yield zlib.decompressobj().decompress(data[start:], 10_000_000).decode("utf-8", "replace")
        except zlib.error:
            continue


def _secrets(text: str) -> Iterator[tuple[int, str, str]]:
    for kind, pattern in _SECRETS.items():
        for match in pattern.finditer(text):
            yield match.start(), SECRET, kind
    for match in _PAIR.finditer(text):
        if _is_secret(match["name"].lower(), match["value"], bool(match["quote"])):
            yield match.start(), SECRET, PAIR_KIND
    for value in secrets_in_environment():
        for start in _places(text, value):
            yield start, SECRET, "a secret of this machine's environment"


def _is_secret(name: str, value: str, quoted: bool) -> bool:
    """Whether the value behind a telling name is one: a long mixture, or anything that is called a password."""
    mixed = any(sign.isdigit() for sign in value) and any(sign.isalpha() for sign in value)
    if "passw" in name:
        return (quoted and set(value) != {"*"}) or mixed
    if quoted and "token" not in name:
        return len(value) >= 8 and set(value) != {"*"}
    return mixed and len(value) >= RANDOM


def _paths(text: str, folder: Path) -> Iterator[tuple[int, str, str]]:
    found = {match.start(): match[0] for match in _LOCAL_PATH.finditer(text)}
    for own in _own_paths(folder):
        for start in _places(text, own):
            found.setdefault(start, own)
    for start, path in sorted(found.items()):
        yield start, LOCAL_PATH, path


def without_local_paths(content: bytes, folder: Path) -> bytes:
    """Return a text with the last part of each local path in its place: /home/me/texts/a.txt -> a.txt.

    Raises:
        UnicodeDecodeError: it is no text in UTF-8.
    """
    text = _LOCAL_PATH.sub(lambda match: _public_part(match[0]), content.decode("utf-8"))
    for own in _own_paths(folder):
        text = text.replace(own, _public_part(own))
    return text.encode("utf-8")


def readable_part(path: Path) -> bytes:
    """Return a file's bytes; of weights the header alone: names, shapes and whatever else somebody put there."""
    if path.suffix != WEIGHTS_END:
        return path.read_bytes()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, path.stat().st_size))


def _public_part(path: str) -> str:
    if _HOME.fullmatch(path) or path == str(Path.home()):
        return HOME_WORD
    return [part for part in re.split(r"[/\\]+", path) if part][-1]


def _own_paths(folder: Path) -> list[str]:
    """Places of this machine, the longest first; one that is short, such as /data, is in too many other words."""
    places = {folder.resolve(), folder.absolute(), Path.home(), Path.cwd(), Path(tempfile.gettempdir())}
    paths = sorted(map(str, places), key=len, reverse=True)
    return [path for path in paths if path.count("/") > 1 or "\\" in path]


def _places(text: str, part: str) -> Iterator[int]:
    start = text.find(part)
    while start >= 0:
        yield start
        start = text.find(part, start + len(part))
