"""Errors that name the field, the value and the way out."""

import difflib
from collections.abc import Iterable, Mapping


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or "" when none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
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


def check_ranges(fields: Mapping, positive: Iterable[str], not_negative: Iterable[str]) -> None:
    """Check a configuration's sizes, its dropouts and its pad token.

    Raises:
        ValueError: a field of `positive` is not, one of `not_negative` is negative, a dropout lies outside [0, 1), or
            pad_token_id outside the vocabulary.
    """
    for field in positive:
        if fields[field] <= 0:
            raise ValueError(f"{field}={fields[field]} must be positive.")
    for field in not_negative:
        if fields[field] < 0:
            raise ValueError(f"{field}={fields[field]} must not be negative.")
    for field in ("dropout", "attention_dropout"):
        if not 0 <= fields[field] < 1:
            raise ValueError(f"{field}={fields[field]} must lie in [0, 1).")
    pad, size = fields["pad_token_id"], fields["vocab_size"]
    if pad is not None and not 0 <= pad < size:
        raise ValueError(f"pad_token_id={pad} must lie in 0..vocab_size-1 = {size - 1}.")
