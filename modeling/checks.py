"""Errors that name the field, the value and the way out."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], least: float = 0.6) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or "" when none is near.

    least: how alike the two are at least, from 0 to 1; a letter mistyped in five is 0.8 (`SequenceMatcher.ratio`).
    """
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=least)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(field: str, value: object, known: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    known = list(known)
    if value not in known:
        raise ValueError(
            f"{field}={value!r} is not known.{suggest(str(value), known)} Known: {', '.join(sorted(known))}."
        )


def check_keys(section: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError naming the first of the `given` keys that is not among the `known` ones."""
    known = set(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{section}: unknown key {key!r}.{suggest(key, known)}")
