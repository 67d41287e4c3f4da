"""What must not leave this machine: secrets and local paths, looked for in every file before it is pushed.

Files are searched as bytes, whatever they are; of weights the header, whose texts others wrote, and not the numbers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from frankenlm.trainer_ext.common.redaction import secrets_in_environment

WEIGHTS_END = ".safetensors"
SECRET, LOCAL_PATH = "secret", "local path"

SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})",
    "a key of OpenAI's kind": r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}",
    "a key of Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a signed web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a password in an address": r"\b[A-Za-z][\w+.-]*://[^/\s:@\"']+:[^/\s@\"']+@",
    "a password or key": (
        r"""(?i)["']?(?:hub_token|hf_token|auth_token|access_token|api_?key|access_?key|secret_?key|password|passwd)"""
        r"""["']?\s*[:=]\s*["'](?!\*+["'])[^"'\s]{6,}["']"""
    ),
}
LOCAL_PATHS = (
    r"(?<![\w.:/~-])(?:/home|/Users)/[\w.-]+(?:/[^\s\"'`,;:)\]}<>|]*)?",
    r"(?<![\w.:/~-])/(?:root|tmp|mnt|media|scratch|workspace|private|var/folders)/[^\s\"'`,;:)\]}<>|]+",
    r"\b[A-Za-z]:\\{1,2}Users\\{1,2}[^\s\"'`,;)\]}<>|]+",
)
_SECRETS = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
_LOCAL_PATH = re.compile("|".join(LOCAL_PATHS))


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
    """Return the secrets and the local paths in a file that is to be pushed.

    Args:
        name: of the file, in the repository.
        content: what is pushed of it; of weights see `readable_part`.
        folder: where the model lies here; its own path is a local one, wherever that is.
    """
    text = content.decode("utf-8", "replace")
    found = [
        Suspect(name, _line(text, match.start()), SECRET, kind)
        for kind, pattern in _SECRETS.items()
        for match in pattern.finditer(text)
    ]
    for value in secrets_in_environment():
        for start in _places(text, value):
            found.append(Suspect(name, _line(text, start), SECRET, "a secret of this machine's environment"))
    paths = {match.start(): match[0] for match in _LOCAL_PATH.finditer(text)}
    paths |= {start: own for own in _own_paths(folder) for start in _places(text, own)}
    found += [Suspect(name, _line(text, start), LOCAL_PATH, path) for start, path in sorted(paths.items())]
    return found


def without_local_paths(content: bytes, folder: Path) -> bytes:
    """Return a text with the last part of each local path in its place: /home/me/texts/a.txt -> a.txt."""
    text = content.decode("utf-8")
    for own in _own_paths(folder):
        text = text.replace(own, folder.resolve().name)
    return _LOCAL_PATH.sub(lambda match: _last_part(match[0]), text).encode("utf-8")


def readable_part(path: Path) -> bytes:
    """Return a file's bytes; of weights the header alone: names, shapes and whatever else somebody put there."""
    if path.suffix != WEIGHTS_END:
        return path.read_bytes()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, path.stat().st_size))


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]+", path) if part]
    return parts[-1]


def _own_paths(folder: Path) -> Sequence[str]:
    """The folder's own path; one that is short, such as /data, is in too many other words."""
    path = str(folder.resolve())
    return [path] if path.count("/") > 1 or "\\" in path else []


def _places(text: str, part: str) -> Iterator[int]:
    start = text.find(part)
    while start >= 0:
        yield start
        start = text.find(part, start + len(part))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
