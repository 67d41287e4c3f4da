"""What is made sure of in rows that a file gave, once, where they are read; what follows may then take it as given."""

import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .row_keys import STATUSES

DATA = frozenset({"ok", "nan_logits"})  # the other rows hold no answer
MOST = 2**53  # from here on JSON's numbers are not whole in every reader
LARGEST_LEVEL = 1e12  # far beyond what any method takes
LARGEST = 1e100  # sums of squares of what is measured stay finite


class Rule(NamedTuple):
    """What a field may hold, and the words for it in a message."""

    fits: Callable[[Any], bool]
    wanted: str


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    """Whether a value is a text that files, figures and pages can carry: no half of a surrogate pair in it."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_number(value: Any) -> bool:
    """Whether a value is a number that fits a float: no NaN, no infinity, no whole number of 400 digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_measured(value: Any) -> bool:
    return is_number(value) and abs(value) <= LARGEST


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def is_level(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= LARGEST_LEVEL)


def is_flat_object(value: Any) -> bool:
    return isinstance(value, dict) and depth(value) == 1


def is_flat_list(value: Any) -> bool:
    return isinstance(value, list) and depth(value) == 1


def depth(value: Any) -> int:
    """How many lists and objects lie in each other; without recursion, whose own limit is what deep ones meet."""
    found, inside = 0, [value]
    while inside := [item for item in inside if isinstance(item, (dict, list))]:
        inside = [inner for item in inside for inner in (item.values() if isinstance(item, dict) else item)]
        found += 1
    return found


def or_null(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.fits(value), f"{rule.wanted} or null")


TEXT = Rule(is_text, "a text")
NAME = Rule(is_name, "a text of whole characters")
NUMBER = Rule(is_measured, f"a number of at most {LARGEST:g}")
COUNT = Rule(is_count, f"a whole number from 0, below {MOST}")
LEVEL = Rule(is_level, f"a number from 0 to {LARGEST_LEVEL:g}, or null")
TRUTH = Rule(lambda value: isinstance(value, bool), "true or false")
POSITIVE = Rule(lambda value: is_number(value) and value > 0, "a number above 0")
STATUS = Rule(lambda value: is_text(value) and value in STATUSES, f"one of {', '.join(STATUSES)}")

# Without these there is no telling what a row is.
NEEDED: dict[str, Rule] = {
    "model_name": NAME,
    "experiment_id": NAME,
    "prompt_group": NAME,
    "prompt_id": COUNT,
    "prompt_text": TEXT,
    "completion": TEXT,
    "level_value": LEVEL,
    "repeat_index": COUNT,
    "param_group_name": NAME,
    "degradation_method": NAME,
    "status": STATUS,
}
# What else the analysis looks at; a field that is not there is one that is null.
USED: dict[str, Rule] = {
    "attempt": or_null(COUNT),
    "is_baseline": or_null(TRUTH),
    "finish_reason": or_null(TEXT),
    "row_key": or_null(NAME),
    "image_sha256": or_null(TEXT),
    "tokens_generated": or_null(NUMBER),
    "mean_logprob": or_null(NUMBER),
    "mean_entropy": or_null(NUMBER),
    "perplexity": or_null(POSITIVE),
    "damage_rel_l2": or_null(NUMBER),
}
# What the original program knows a row by, and what of it is looked into; the rest must fit the contract.
LEGACY: dict[str, Rule] = {
    **USED,
    "prompt_text": or_null(TEXT),
    "std_dev": or_null(NUMBER),
    "level_value": or_null(NUMBER),
    "repeat_index": or_null(COUNT),
    "param_group_name": or_null(NAME),
    "degradation_method": or_null(NAME),
    "model_name": or_null(TEXT),
    "gen_params": or_null(Rule(is_flat_object, "an object of plain values")),
    "batch_shape": or_null(Rule(is_flat_list, "a list of plain values")),
}
# Records of the journal's side files, and what export orders rows by.
_CELL = {"level_value": LEVEL, "level_index": COUNT, "repeat_index": COUNT, "attempt": or_null(COUNT)}
SIDE: dict[str, dict[str, Rule]] = {
    "lesions": {"group": NAME, "method": NAME, "rel_l2": or_null(NUMBER), **_CELL},
    "cells": {
        "param_group_name": NAME,
        "degradation_method": NAME,
        "perplexity": or_null(POSITIVE),
        "log_perplexity": or_null(NUMBER),
        "kl_to_baseline": or_null(NUMBER),
        **_CELL,
    },
}
JOURNAL: dict[str, Rule] = {
    "row_key": NAME,
    "attempt": COUNT,
    "status": STATUS,
    "level_value": LEVEL,
    "param_group_name": NAME,
    "level_index": COUNT,
    "repeat_index": COUNT,
    "prompt_id": COUNT,
}


def misfit(record: Mapping[str, Any], rules: Mapping[str, Rule]) -> str | None:
    """Return what is wrong with the first field that breaks its rule, None where all fit; what is not there is null."""
    for name, rule in rules.items():
        value = record.get(name)
        if not rule.fits(value):
            return f"{name}={reprlib.repr(value)}, which must be {rule.wanted}"
    return None


def check_result_row(row: Mapping[str, Any], where: str) -> None:
    """Make sure that a row of a result file holds what the analysis takes as given.

    Args:
        where: the file and the row's place in it, as the message begins.

    Raises:
        ValueError: a field is missing or holds what its rule does not allow; the message names it.
    """
    for name in NEEDED:
        if name not in row:
            raise ValueError(
                f"{where} has no field {name!r}. Files of the original program are read after import-legacy."
            )
    wrong = misfit(row, {"status": STATUS})
    if wrong is None and row["status"] in DATA:  # nothing is read of the others
        wrong = misfit(row, NEEDED) or misfit(row, USED)
    if wrong:
        raise ValueError(f"{where} has {wrong}.")


def check_legacy_row(row: Mapping[str, Any], where: str) -> None:
    """Make sure that a row of the original program can be compared with those that are planned.

    Raises:
        ValueError: a field holds what its rule does not allow; the message names it.
    """
    wrong = misfit(row, LEGACY)
    if wrong:
        raise ValueError(f"{where} has {wrong}.")
