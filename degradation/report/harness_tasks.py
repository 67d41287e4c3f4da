"""What lm-evaluation-harness measured in the cells, as measures of the report."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..measures.names import PER_TASK, Measure

IDENTITY = ("limit", "harness", "digest")  # figures are of one task while these agree
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em")  # metrics of the harness that lie between 0 and 1


def identity_of(figures: Mapping[str, Any]) -> tuple:
    """Return what tells a task's figures from those of another limit, version or task file; None for what is unknown.

    Figures of earlier versions know their limit only.
    """
    return tuple(figures.get(name) for name in IDENTITY)


def mixed_tasks(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the tasks of which some cells' records have figures of another identity than others."""
    found: dict[str, set[tuple]] = {}
    for record in records:
        for task, figures in (record.get("lm_eval") or {}).items():
            found.setdefault(task, set()).add(identity_of(figures))
    return sorted(task for task, identities in found.items() if len(identities) > 1)


def task_values(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Return measure -> value of a cell's record: `lm_eval/TASK/METRIC`."""
    return {name: value for name, _, value, _ in _figures(record)}


def task_measures(records: Iterable[Mapping[str, Any]]) -> dict[str, Measure]:
    """Return what is known of the measures that some records have, by name."""
    return {
        name: Measure(name, name.removeprefix(PER_TASK).replace("/", ": "), better, metric in SHARES)
        for record in records
        for name, metric, _, better in _figures(record)
    }


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None, int | None]]:
    """Yield measure, metric, value and which way is better."""
    for task, found in (record.get("lm_eval") or {}).items():
        for label, value in found["metrics"].items():
            yield f"{PER_TASK}{task}/{label}", label.partition(",")[0], value, found["better"].get(label)
