"""Rows of suite.csv -> a cell for each task, mixer and size, and what they say by rule: records, never a model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.seeds import interval, summary
from .models import MODELS, RECURRENT
from .plan import REPORT, SELECTION, CommonSize, best_rate
from .tasks import MQAR

SOLVED = 0.95
SIZES = ("task", "mixer", "hidden_size", "mamba_state", "steps")
STARTS = 0.2  # runs of one setting that lie further apart tell of their starts
NOTHING = 0.05  # an accuracy no further above chance than this tells nothing
BASELINE = "softmax"


def cells_of(rows: Sequence[Mapping[str, Any]], common: CommonSize) -> list[dict[str, Any]]:
    """One cell for all rows of a task, a mixer and a size, in the order of the rows.

    common: the plan's; the rows of a suite that is not finished, or of several calls, do not tell it.

    A cell has the mean accuracy over the reported seeds (None before the first), sd, n and 95 % t interval; what each
    rate came to with the selection seed, the rate chosen, and whether that lies at an end of those tried.
    """
    grouped: dict[tuple, list[Mapping]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[name] for name in SIZES), []).append(row)
    cells = [_cell(dict(zip(SIZES, key, strict=True)), members) for key, members in grouped.items()]
    sizes = dataclasses.asdict(common)
    return [
        {
            **cell,
            "has_other_steps": cell["steps"] != common.steps,
            "is_common": all(cell[name] == size for name, size in sizes.items()),
        }
        for cell in cells
    ]


def _cell(about: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    trials = [row for row in rows if row["role"] == SELECTION]
    reported = [row for row in rows if row["role"] == REPORT]
    spread = summary([row["accuracy"] for row in reported])
    error = spread["sd"] / math.sqrt(spread["n"]) if spread["n"] > 1 else None
    bounds = interval(spread["mean"], error, spread["n"] - 1)
    tried = {row["learning_rate"]: row["accuracy"] for row in trials}
    chosen = reported[0]["learning_rate"] if reported else best_rate(trials)
    at_edge = len(tried) > 1 and chosen in (min(tried), max(tried))
    facts = {name: rows[0][name] for name in ("chance", "parameters", "state_size")}
    return {
        **about,
        **facts,
        **spread,
        "low": bounds["low"],
        "high": bounds["high"],
        "learning_rate": chosen,
        "tried": tried,
        # one that solves the task at an end has nothing better beyond it
        "at_edge": at_edge and tried[chosen] < SOLVED,
        "accuracies": {row["seed"]: row["accuracy"] for row in reported},
    }


def main_cells(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(task, mixer) -> its cell at the size that all tasks have; none where that one was not run."""
    return {(cell["task"], cell["mixer"]): cell for cell in cells if cell["is_common"]}


def findings(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What the cells say, a sentence each; a task none of whose cells has a reported run says nothing."""
    measured = [cell for cell in cells if cell["mean"] is not None]
    recall = [cell for cell in measured if cell["task"] == MQAR]
    lines = [*_recall_findings([cell for cell in recall if not cell["has_other_steps"]]), *_longer_findings(recall)]
    main = main_cells(measured)
    for task in dict.fromkeys(task for task, _ in main):
        lines.append(_task_finding(task, [cell for (name, _), cell in main.items() if name == task]))
    lines += filter(None, map(_start_finding, measured))
    edges = [f"{cell['task']}, {told_size(cell)}, at {cell['learning_rate']:g}" for cell in measured if cell["at_edge"]]
    if edges:
        lines.append(
            f"The best rate lies at an end of those tried, and did not solve the task, in {len(edges)} of "
            f"{len(measured)} cells, where a better one may lie beyond it: {'; '.join(edges)}."
        )
    return lines


def _recall_findings(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The published order: attention solves MQAR at every size, a fixed state by how large it is."""
    lines = []
    ours = sorted((cell for cell in cells if cell["mixer"] == BASELINE), key=lambda cell: cell["hidden_size"])
    if ours:
        solved = [cell for cell in ours if cell["mean"] > SOLVED]
        verdict = "as published" if len(solved) == len(ours) else "not as published"
        told = ", ".join(f"{cell['mean']:.3f} at width {cell['hidden_size']}" for cell in ours)
        lines.append(
            f"mqar: {BASELINE} attention solves it (more than {SOLVED}) at {len(solved)} of {len(ours)} widths, "
            f"{verdict} (attention at every width): {told}."
        )
    for mixer in RECURRENT:
        by_state = sorted((cell for cell in cells if cell["mixer"] == mixer), key=lambda cell: cell["state_size"])
        if len(by_state) > 1:
            lines.append(_state_finding(mixer, by_state))
    return lines


def _state_finding(mixer: str, by_state: Sequence[dict[str, Any]]) -> str:
    means = [cell["mean"] for cell in by_state]
    told = ", ".join(f"{cell['mean']:.3f} with {cell['state_size']:,} ({told_size(cell)})" for cell in by_state)
    if max(means) <= by_state[0]["chance"] + NOTHING:
        verdict = f"never {NOTHING} above chance, so that nothing is said of its state"
    elif means == sorted(means) and means[-1] > means[0]:
        verdict = "more with every larger state, as published" + _doubt(by_state[0], by_state[-1])
    elif means[-1] > means[0]:
        verdict = "more with the largest state than with the smallest, but not step by step"
    else:
        verdict = "no more with the largest state than with the smallest, not as published"
    return f"mqar: {mixer} by the numbers that its state holds: {told}: {verdict}."


def _doubt(smallest: Mapping[str, Any], largest: Mapping[str, Any]) -> str:
    """What to add to an order of means that the intervals over seeds do not bear out."""
    if None not in (smallest["high"], largest["low"]) and largest["low"] > smallest["high"]:
        return ""
    return ", by the means; their intervals over seeds overlap or are missing, so that no order is shown"


def _longer_findings(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What the recurrent mixers come to with more steps, whichever of the two is the usual number."""
    lines, main = [], main_cells(cells)
    for cell in (cell for cell in cells if cell["has_other_steps"] and (MQAR, cell["mixer"]) in main):
        usual = main[MQAR, cell["mixer"]]
        shorter, longer = sorted((usual, cell), key=lambda cell: cell["steps"])
        lines.append(
            f"mqar: {told_size(usual)}: {shorter['mean']:.3f} after {shorter['steps']:,} steps, {longer['mean']:.3f} "
            f"after {longer['steps']:,}: {_longer_verdict(shorter, longer)}."
        )
    return lines


def _longer_verdict(shorter: Mapping[str, Any], longer: Mapping[str, Any]) -> str:
    gain = longer["mean"] - shorter["mean"]
    if _is_scattered(shorter) or _is_scattered(longer):
        return f"the seed alone makes a difference of more than {STARTS}, so that nothing is said of longer training"
    if abs(gain) <= STARTS:
        return "longer training changes little"
    if gain < 0:
        return "less with longer training" + _doubt(longer, shorter)
    return "longer training is what it lacks there" + _doubt(shorter, longer)


def _start_finding(cell: Mapping[str, Any]) -> str:
    """A line where runs with the same settings and other seeds lie far apart; "" where not."""
    if not _is_scattered(cell):
        return ""
    runs = _runs_of_all_seeds(cell)
    return (
        f"{cell['task']}: {told_size(cell)}: {min(runs):.3f} to {max(runs):.3f} by the seed alone, that of the "
        "selection included: its mean says little."
    )


def _runs_of_all_seeds(cell: Mapping[str, Any]) -> list[float]:
    """The accuracies at the chosen rate, that of the selection seed included."""
    runs = list(cell["accuracies"].values())
    if cell["learning_rate"] in cell["tried"]:
        runs.append(cell["tried"][cell["learning_rate"]])
    return runs


def _is_scattered(cell: Mapping[str, Any]) -> bool:
    runs = _runs_of_all_seeds(cell)
    return max(runs) - min(runs) > STARTS


def _task_finding(task: str, cells: Sequence[dict[str, Any]]) -> str:
    """Who solves a task at the common size, and who is not told from chance."""
    ranked = sorted(cells, key=lambda cell: -cell["mean"])
    solved = [cell["mixer"] for cell in ranked if cell["mean"] > SOLVED]
    lost = [
        cell["mixer"] + (" (by a mean that says little)" if _is_scattered(cell) else "")
        for cell in ranked
        if cell["mean"] <= cell["chance"] + NOTHING
    ]
    line = f"{task}: solved by {', '.join(solved)}" if solved else f"{task}: solved by none"
    best = ranked[0]
    if not solved:
        line += f" (best {best['mixer']}, {best['mean']:.3f})"
    if lost:
        line += f"; not {NOTHING} above chance ({best['chance']:.3f}): {', '.join(lost)}"
    missing = [mixer for mixer in MODELS if mixer not in {cell["mixer"] for cell in cells}]
    return f"{line}; nothing reported at this size: {', '.join(missing)}." if missing else f"{line}."


def told_size(cell: Mapping[str, Any]) -> str:
    """A cell's mixer and size in words."""
    state = f", state {cell['mamba_state']}" if cell["mixer"] == "mamba" else ""
    longer = f", {cell['steps']:,} steps" if cell["has_other_steps"] else ""
    return f"{cell['mixer']}, width {cell['hidden_size']}{state}{longer}"
