"""What a visitor's choices are worth: a chooser that takes typed text may send anything."""

import math
from collections.abc import Iterable
from typing import Any

from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError

LONGEST_SHOWN = 60  # characters of a value that an error repeats


def shown(value: Any) -> str:
    """Return a value as an error repeats it: on one line, not long, without half characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def one_of(what: str, value: Any, known: Iterable[str]) -> str:
    """Return a choice.

    Raises:
        UserError: it is none of the known ones; they are named, with the one that was probably meant.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        near = suggest(value[:LONGEST_SHOWN], known) if isinstance(value, str) else ""
        raise UserError(f"{what} {shown(value)} is unknown.{near} There are: {', '.join(known)}.")
    return value


def number(what: str, value: Any) -> float:
    """Return a number, however it was typed.

    Raises:
        UserError: it is none, or not finite.
    """
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{what} {shown(value)} is no number.")
    return found


def whole_number(what: str, value: Any, least: int, most: int) -> int:
    """Return a whole number between two others, however it was typed.

    Raises:
        UserError: it is none, or lies outside.
    """
    found = number(what, value)
    if found != int(found) or not least <= found <= most:
        raise UserError(f"{what} {shown(value)} must be a whole number from {least:,} to {most:,}.")
    return int(found)
