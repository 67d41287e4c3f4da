"""Fenced blocks of a page, and the rule by which the site knows them.

A block that shows a file stands below the file's name: a line of `` `small.yaml`: ``. In the line of the fence only a
language may stand; what follows it is an option to the site's renderer, which takes no block with one that it does not
know, and GitHub does not show it.
"""

import re
from pathlib import Path

FENCE = re.compile(r"```\w*")
BLOCK = re.compile(r"^(?:`([\w.-]+)`:\n\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_blocks(page: Path, *kinds: str) -> list[tuple[str, str, str]]:
    """Return (language, name or "", text) of a page's blocks, in order: all, or those of some languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, name, text) for name, kind, text in found if not kinds or kind in kinds]


def bad_fences(text: str) -> list[str]:
    """Return the lines of fences that open no block or close none: `1: ```yaml small.yaml`."""
    bad, inside = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(("```", "~~~")):
            inside = not inside
            if not (FENCE.fullmatch(line) if inside else line == "```"):
                bad.append(f"{number}: {line}")
    return [*bad, "the last block has no end"] if inside else bad
