"""The table of tasks, at the sizes that a CPU trains them at in seconds; the papers' sizes stand in docs/suite.md."""

import dataclasses
from collections.abc import Mapping, Sequence

from frankenlm.modeling.checks import check_choice

from ..common.cli import UserError, user_mistakes
from .compression import Compression
from .copying import SelectiveCopying
from .fuzzy import FuzzyRecall
from .memorization import Memorization
from .mqar import MultiQueryRecall
from .recall import InContextRecall
from .task import SyntheticTask

MQAR = "mqar"
TASKS: dict[str, SyntheticTask] = {
    MQAR: MultiQueryRecall(length=32, pairs=4, keys=32, values=32),
    "recall": InContextRecall(length=32),
    "noisy_recall": InContextRecall(length=32, noise=0.2, noise_kinds=16),
    "fuzzy_recall": FuzzyRecall(length=32, keys=4, values=4, longest=2),
    "selective_copying": SelectiveCopying(length=32, copied=4),
    "compression": Compression(length=8),
    "memorization": Memorization(length=16, facts=63),
}


def chosen_tasks(names: Sequence[str], changes: Sequence[str]) -> dict[str, SyntheticTask]:
    """The tasks of these names, with fields changed as `TASK.FIELD=VALUE` says.

    Raises:
        UserError: an unknown task or field, with a did-you-mean; a value of another kind, or that cannot be.
    """
    with user_mistakes():
        for name in names:
            check_choice("--tasks", name, TASKS)
        changed: dict[str, dict] = {}
        for change in changes:
            name, field, value = _change(change)
            if name not in names:
                raise UserError(f"--set {change}: {name} is not among --tasks {' '.join(names)}.")
            changed.setdefault(name, {})[field] = value
        return {name: _with(name, changed.get(name, {})) for name in names}


def changes_of(tasks: Mapping[str, SyntheticTask]) -> list[str]:
    """`TASK.FIELD=VALUE` for every field that differs from the table's: what `chosen_tasks` makes these tasks of."""
    changes = []
    for name, task in tasks.items():
        usual = dataclasses.asdict(TASKS[name])
        for field, value in dataclasses.asdict(task).items():
            if value != usual[field]:
                changes.append(f"{name}.{field}={str(value).lower() if isinstance(value, bool) else value}")
    return changes


def _change(change: str) -> tuple[str, str, int | float | bool]:
    place, equals, value = change.partition("=")
    name, dot, field = place.partition(".")
    if not (equals and dot):
        raise UserError(f"--set {change}: expected TASK.FIELD=VALUE, as in mqar.pairs=8.")
    check_choice(f"--set {change}: task", name, TASKS)
    fields = {field.name: field.type for field in dataclasses.fields(TASKS[name])}
    check_choice(f"--set {change}: field", field, fields)
    return name, field, _value(change, value, fields[field])


def _value(change: str, value: str, kind: type) -> int | float | bool:
    if kind is bool:
        if value not in ("true", "false"):
            raise UserError(f"--set {change}: must be true or false.")
        return value == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"--set {change}: must be a {'whole ' if kind is int else ''}number.") from error


def _with(name: str, fields: dict) -> SyntheticTask:
    try:
        return dataclasses.replace(TASKS[name], **fields)
    except ValueError as error:
        raise UserError(f"task {name}: {error}") from error
