"""What models go on from: prompts of the command line, of files, and our own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.cli import UserError
from ..common.text_files import BadRowError, check_characters, kind_of, parse_json, read_text, text_lines


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
    """Read prompts: a line each of a text file, or rows {"prompt": ..., "reference": ...} of a .jsonl file (a row a
    line) or a .json file (a list of rows, or a row a line).

    What a line is and how texts are decoded: text_files.py. `reference` is a text or a list of texts, and may be
    missing. Empty lines are skipped.

    Raises:
        UserError: no such file, no prompt in it, or a row that is not as above; the message names the line.
    """
    try:
        prompts = _read(path)
    except OSError as error:
        raise UserError(f"--prompts {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"--prompts {error}") from error
    if not prompts:
        raise UserError(f"--prompts {path}: the file holds no prompt.")
    return prompts


def _read(path: Path) -> list[Prompt]:
    if kind_of(path) == ".json" and (text := read_text(path)).lstrip().startswith("["):
        rows = parse_json(text, str(path))
        return [_prompt(row, f"{path}, record {number}") for number, row in enumerate(rows, 1)]
    numbered = [(f"{path}, line {number}", line) for number, line in text_lines(path) if line.strip()]
    if kind_of(path) in (".jsonl", ".json"):
        return [_prompt(parse_json(line, place), place) for place, line in numbered]
    return [Prompt(line) for _, line in numbered]


def _prompt(row: Any, place: str) -> Prompt:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise BadRowError(f'{place}: needs a field "prompt" with text.')
    references = row.get("reference", [])
    references = [references] if isinstance(references, str) else references
    if not isinstance(references, list) or not all(isinstance(text, str) and text for text in references):
        raise BadRowError(f'{place}: "reference" must be a text or a list of texts.')
    for text in (row["prompt"], *references):
        check_characters(text, place)
    return Prompt(row["prompt"], tuple(references))
