"""Takes rows of the original program's JSON files into an experiment, so that it can be carried on here.

The original knows a row by five things: group, level to two decimals, repeat, method and the prompt without spaces
around it. A row whose key is that of a planned row is adopted under the planned row's key, with `sampler` "legacy";
fields the original does not have are null. Levels closer than two decimals go to the nearest one.
"""

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..records.row_checks import check_legacy_row
from ..records.row_keys import LEGACY_SAMPLER, ROW_FIELDS, SCHEMA_VERSION, check_row, load_json
from ..records.store import Store

BATCH = 1000  # rows written at once
REPLY_MARK = "model"  # what is left of Gemma's template between prompt and answer


class LegacyCount(NamedTuple):
    """What became of the rows of a file."""

    adopted: int
    known: int  # finished rows of theirs were there already
    unmatched: int  # no planned row has their key


def legacy_key(row: Mapping[str, Any]) -> tuple:
    """Return the original's key of a row, theirs or ours."""
    level = row.get("std_dev", row.get("level_value"))
    rounded = None if level is None else round(float(level), 2)
    prompt = str(row.get("prompt_text", "")).strip()
    return (row.get("param_group_name"), rounded, row.get("repeat_index"), row.get("degradation_method"), prompt)


def adopt_legacy(
    old_rows: Sequence[Mapping[str, Any]],
    file: str | os.PathLike,
    store: Store,
    planned: Mapping[str, Mapping[str, Any]],
) -> LegacyCount:
    """Adopt rows that `read_legacy` has read from a file of the original program into an open experiment.

    Args:
        planned: row_key -> what is known of that row before it is generated: names of `ROW_FIELDS`, among them
            experiment_id, config_name, model_name, prompt_id, prompt_text, level_value, level_index, repeat_index,
            param_group_name, degradation_method.

    Raises:
        ValueError: its rows are of another model, or one lacks its output or holds what no row may hold; nothing was
            written.
        OSError: the storage is full.
    """
    adopted, known, unmatched = match_legacy(old_rows, file, planned, store.finished)
    rows = list(adopted.values())
    for start in range(0, len(rows), BATCH):
        store.append(rows[start : start + BATCH])
    return LegacyCount(len(rows), known, unmatched)


def match_legacy(
    old_rows: Sequence[Mapping[str, Any]],
    file: str | os.PathLike,
    planned: Mapping[str, Mapping[str, Any]],
    finished: Container[str] = (),
) -> tuple[dict[str, dict[str, Any]], int, int]:
    """Return the rows to adopt by their row_key, how many are finished already, and how many are of no planned row.

    Raises:
        ValueError: a row that matches is of another model, lacks its output or breaks the contract.
    """
    by_key: dict[tuple, list[str]] = {}
    for key, plan in planned.items():
        by_key.setdefault(legacy_key(plan), []).append(key)
    adopted, known, unmatched = {}, 0, 0
    for number, old in enumerate(old_rows):
        keys = by_key.get(legacy_key(old))
        if not keys:
            unmatched += 1
            continue
        key = _nearest(keys, planned, old)
        if key in finished or key in adopted:
            known += 1
            continue
        adopted[key] = _adopt(old, {**planned[key], "row_key": key}, f"{file}, row {number}")
    return adopted, known, unmatched


def read_legacy(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a file of the original program, each checked to be one.

    Raises:
        ValueError: the file is no JSON list of rows, or a row holds what no row may hold.
    """
    try:
        rows = load_json(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold a list of rows, one object each.")
    for number, row in enumerate(rows):
        check_legacy_row(row, f"{file}: row {number}")
    return rows


def _nearest(keys: list[str], planned: Mapping[str, Mapping[str, Any]], old: Mapping[str, Any]) -> str:
    """Return the first of the planned rows whose level is nearest; equal prompts share a key, too."""
    level = old.get("std_dev", old.get("level_value"))
    return keys[0] if level is None else min(keys, key=lambda key: abs(planned[key]["level_value"] - float(level)))


def _adopt(old: Mapping[str, Any], plan: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a row of ours from one of theirs; the plan wins where both have a field."""
    if old.get("model_name", plan["model_name"]) != plan["model_name"]:
        raise ValueError(f"{where} is of the model {old['model_name']!r}, the experiment of {plan['model_name']!r}.")
    if not isinstance(old.get("output"), str):
        raise ValueError(f"{where} has no text in 'output': is {where.partition(',')[0]} a file of the original?")
    settings, level = old.get("gen_params") or {}, plan["level_value"]
    derived = {
        "temperature": settings.get("temperature"),
        "do_sample": settings.get("do_sample"),
        "usar_4bit": old.get("load_4bit"),
        "load_4bit": old.get("usar_4bit"),
        "completion": completion_of(old["output"], plan["prompt_text"]),
        "is_baseline": level is None or (level == 0),
        "std_dev": level,
        "degrad_level": level,
        "status": "ok",
        "sampler": LEGACY_SAMPLER,
    }
    theirs = {name: value for name, value in old.items() if name in ROW_FIELDS and value is not None}
    fixed = {
        name: derived[name] for name in ("completion", "is_baseline", "std_dev", "degrad_level", "status", "sampler")
    }
    row = {**dict.fromkeys(ROW_FIELDS), **derived, **theirs, **fixed, **plan}
    try:
        check_row({**row, "schema_version": SCHEMA_VERSION, "rank": 0, "attempt": 1})  # the store puts its own there
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return row


def completion_of(output: str, prompt: str) -> str:
    """Return what follows the prompt in a decoded whole sequence, without the template's word before the answer."""
    before, found, after = output.partition(prompt.strip())
    if not found:
        return output
    answer = after.lstrip()
    mark, newline, rest = answer.partition("\n")
    return rest if newline and mark.strip() == REPLY_MARK else answer
