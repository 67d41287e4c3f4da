"""What models go on from: prompts of the command line, of files, and our own."""

import json
from dataclasses import dataclass
from pathlib import Path

from .cli import UserError


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, and the texts a continuation may be compared with."""

    text: str
    references: tuple[str, ...] = ()


# Ours, for a model of general English; each leaves something to go on with.
BUILTIN_PROMPTS = (
    Prompt("The old bridge over the river was closed because"),
    Prompt("A function that returns a list of numbers can be"),
    Prompt("In the first year of the war, the city"),
    Prompt("Water is made of two elements, and"),
)


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts: a line each of a text file, or rows {"prompt": ..., "reference": ...} of a .jsonl file.

    `reference` is a text or a list of texts, and may be missing. Empty lines are skipped.

    Raises:
        UserError: no such file, no prompt in it, or a row that is not as above; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"--prompts {path}: {reason}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix in (".jsonl", ".json"):
        prompts = [_read_row(f"--prompts {path}, line {number}", line) for number, line in numbered]
    else:
        prompts = [Prompt(line) for _, line in numbered]
    if not prompts:
        raise UserError(f"--prompts {path}: the file holds no prompt.")
    return prompts


def _read_row(place: str, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg}).") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f'{place}: needs a field "prompt" with text.')
    references = row.get("reference", [])
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list) or not all(isinstance(text, str) and text for text in references):
        raise UserError(f'{place}: "reference" must be a text or a list of texts.')
    return Prompt(row["prompt"], tuple(references))
