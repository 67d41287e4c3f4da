"""The reports of a suite: suite.json, suite.png, and the page, all of them of the rows there are so far."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.files import replaced_file, write_json, write_text
from ..common.timing import markdown_table
from ..metrics.seeds import plus_minus
from .cells import cells_of, findings, main_cells, told_size
from .figure import plot_suite
from .models import MODELS
from .plan import CommonSize, FinishedRuns, SuitePlan
from .tasks import MQAR, changes_of

PAGE, PICTURE, FACTS = "suite.md", "suite.png", "suite.json"


def write_reports(
    folder: Path, plan: SuitePlan, finished: FinishedRuns, versions: Mapping[str, str], card: Path | None = None
) -> None:
    """Write the three of them beside suite.csv, which is put in order, and the page once more where `card` says."""
    rows = finished.arrange(plan)
    cells = cells_of(rows, plan.common)
    planned, command = len(plan.cells) * plan.runs_of_a_cell, command_of(plan)
    facts = {"planned_runs": planned, "finished_runs": len(rows), "cells": cells, "findings": findings(cells)}
    facts |= {"common_size": dataclasses.asdict(plan.common), "versions": dict(versions), "command": command}
    write_json(folder / FACTS, facts)
    with replaced_file(folder / PICTURE) as scratch:
        plot_suite(cells, scratch)
    for path in filter(None, (folder / PAGE, card)):
        # the picture stays where it is
        picture = Path(os.path.relpath(folder / PICTURE, path.parent)).as_posix()
        write_text(path, page(rows, plan.common, planned, versions, command, picture))


def command_of(plan: SuitePlan) -> str:
    """The command that runs the plan, without the folder."""
    lists = {
        "tasks": plan.tasks,
        "mixers": plan.mixers,
        "hidden_sizes": plan.hidden_sizes,
        "mamba_states": plan.mamba_states,
        "learning_rates": plan.learning_rates,
        "seeds": plan.seeds,
        "steps": plan.steps,
    }
    words = [f"--{name} {' '.join(map(str, values))}" for name, values in lists.items()]
    words += [f"--{name} {plan.__dict__[name]}" for name in ("selection_seed", "batch_size", "test_rows")]
    changes = changes_of(plan.tasks)
    words += [f"--set {' '.join(changes)}"] if changes else []
    return "frankenlm suite --output_dir runs/suite " + " ".join(words)


def page(
    rows: Sequence[Mapping[str, Any]],
    common: CommonSize,
    planned: int,
    versions: Mapping[str, str],
    command: str,
    picture: str,
) -> str:
    """The card of a suite; every number in it is of the rows."""
    cells = cells_of(rows, common)
    parts = [
        "# Synthetic tasks",
        "Multi-query associative recall (Zoology, arXiv:2312.04927) and the six tasks of MAD (arXiv:2403.17844), put "
        "to small causal decoders that differ in their mixer alone. Written by `frankenlm suite` from suite.csv; no "
        "number and no sentence of a finding is typed by hand.",
    ]
    if len(rows) < planned:
        parts.append(
            f"**{len(rows)} of {planned} planned runs are finished**: the rest was not run, and nothing is said of it."
        )
    parts += ["## In short", "\n".join(f"- {line}" for line in findings(cells)) or "Nothing was finished."]
    parts += ["## Accuracy", accuracy_note(common), markdown_table(accuracy_table(cells)), f"![accuracy]({picture})"]
    parts += ["## MQAR by the size of the state", STATE_NOTE, markdown_table(state_table(cells))]
    parts += ["## Learning rates", RATE_NOTE, markdown_table(rate_table(cells))]
    parts += ["## How it was measured", how(rows, versions), f"```bash\n{command}\n```", LIMITS]
    return "\n\n".join(part for part in parts if part) + "\n"


STATE_NOTE = (
    "State: numbers that one row of the test leaves in the cache, of all layers, counted there. That of softmax, "
    "sigmoid, titan and ode grows with the row, that of retnet and mamba does not. The interval is a 95 % t interval "
    "over seeds: it speaks of other starts and other rows, and with three seeds it is wide and may leave 0 to 1."
)
RATE_NOTE = "Accuracy with the selection seed at each rate; the best was trained again with the other seeds."
LIMITS = (
    "Sizes are far below the papers' (docs/suite.md says which): models of two layers, hundreds of steps. An accuracy "
    "below 1 may mean that the mixer cannot, or that it has not learnt yet; nothing here tells the two apart, and "
    "nothing is said about language."
)


def accuracy_note(common: CommonSize) -> str:
    return (
        "Share of the asked tokens that a model puts first, over rows that are none of its training rows; mean ± sd "
        "over seeds, n of them in brackets where some are missing. Chance is the accuracy of answering with whatever "
        f"possible answer stood in the row most often so far. All at width {common.hidden_size} (mamba: state "
        f"{common.mamba_state}) after {common.steps:,} steps; an empty place has no reported run of that size."
    )


def accuracy_table(cells: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each task, a column for each mixer."""
    main = main_cells(cells)
    most = max((cell["n"] for cell in cells), default=0)
    lines = []
    for task in dict.fromkeys(task for task, _ in main):
        own = {mixer: main[task, mixer] for mixer in MODELS if (task, mixer) in main}
        chance = next(iter(own.values()))["chance"]
        shown = {mixer: _accuracy(own[mixer], most) if mixer in own else "" for mixer in MODELS}
        lines.append({"task": task, "chance": f"{chance:.3f}", **shown})
    return lines


def _accuracy(cell: Mapping[str, Any], most: int) -> str:
    if not cell["n"]:
        return ""
    return plus_minus(cell, 3) + (f" ({cell['n']})" if cell["n"] < most else "")


def state_table(cells: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    lines = []
    for cell in sorted(cells, key=lambda cell: (list(MODELS).index(cell["mixer"]), cell["state_size"])):
        if cell["task"] == MQAR and cell["n"]:
            bounds = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            lines.append(
                {
                    "mixer and size": told_size(cell),
                    "parameters": f"{cell['parameters']:,}",
                    "state": f"{cell['state_size']:,}",
                    "accuracy": plus_minus(cell, 3),
                    "interval": bounds,
                    "seeds": str(cell["n"]),
                }
            )
    return lines


def rate_table(cells: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    rates = sorted({rate for cell in cells for rate in cell["tried"]})
    lines = []
    for cell in cells:
        tried = {f"{rate:g}": f"{cell['tried'][rate]:.3f}" if rate in cell["tried"] else "" for rate in rates}
        chosen = f"{cell['learning_rate']:g}" if cell["n"] else ""
        lines.append({"task": cell["task"], "mixer and size": told_size(cell), **tried, "chosen": chosen})
    return lines


def how(rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Steps, sizes of the tasks and hours, as the rows have them; the versions are of what writes this page."""
    if not rows:
        return ""
    shapes = sorted({(row["steps"], row["batch_size"], row["test_rows"]) for row in rows})
    told = "; ".join(f"{steps} steps of {batch} rows, {test} rows asked" for steps, batch, test in shapes)
    sizes = {row["task"]: json.loads(row["task_fields"]) for row in rows}
    tasks = "\n".join(
        f"- {task}: {', '.join(f'{name} {value}' for name, value in fields.items())}" for task, fields in sizes.items()
    )
    minutes = sum(row["seconds"] for row in rows) / 60
    seeds = " ".join(map(str, sorted({row["seed"] for row in rows if row["role"] == "report"})))
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"{told}; AdamW without weight decay, warm-up over a tenth, then linearly to nothing, gradients clipped at 1, "
        f"float32, on a CPU. Seeds of what is told: {seeds or 'none yet'}. {len(rows)} runs, {minutes:.0f} CPU minutes "
        f"in all. This page was written with {libraries}; the rows do not say with which versions each run was made."
        f"\n\n{tasks}"
    )
