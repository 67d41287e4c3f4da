"""What was found, as a table to read and as JSON."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from frankenlm import __version__

from .judging import BROKEN, HOLDS, REFUSES, UNKNOWN, Finding

HEADER = ("promise", "difference", "a fault shows", "verdict")


def text_table(findings: Sequence[Finding]) -> str:
    """Return a line for each promise: the largest relative difference, what a fault would show, and the verdict."""
    cells = [cells_of(each) for each in findings]
    wide = [max(map(len, column)) for column in zip(HEADER, *cells, strict=True)]
    notes = ["", *(each.note for each in findings)]
    return "\n".join(
        f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}  {d:<{wide[3]}}  {note}".rstrip()
        for (a, b, c, d), note in zip([HEADER, *cells], notes, strict=True)
    )


def cells_of(finding: Finding) -> tuple[str, str, str, str]:
    """Return what the columns of HEADER say of one promise."""
    return finding.promise, _number(finding.difference), _number(finding.control), finding.verdict


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def verdict_line(name: str, findings: Sequence[Finding]) -> str:
    """Return the last line: what is broken, or how many hold."""
    broken = [each.promise for each in findings if each.verdict == BROKEN]
    if broken:
        return f"{name} breaks {len(broken)} of {len(findings)} promises: {'; '.join(broken)}."
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in (HOLDS, REFUSES, UNKNOWN)}
    said = [f"{counts[HOLDS]} hold"]
    said += [f"{counts[REFUSES]} it refuses"] if counts[REFUSES] else []
    said += [f"{counts[UNKNOWN]} cannot be told"] if counts[UNKNOWN] else []
    return f"{name} breaks no promise: of {len(findings)}, {', '.join(said)}."


def facts(findings: Sequence[Finding], **about: Any) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {
        **about,
        "versions": {
            "frankenlm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "findings": [vars(each) for each in findings],
        "broken": [each.promise for each in findings if each.verdict == BROKEN],
    }
