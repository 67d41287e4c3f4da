"""Where the time of a run went, from the files in its folder: seconds, shares, and milliseconds of a step."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.cli import UserError
from .timing_file import EVALUATION, FILE, PARTS, SAVING, read_timing

# What happens in every step; the others happen now and then.
OF_A_STEP = tuple(part for part in PARTS if part not in (EVALUATION, SAVING))
# All that an older run's training.csv tells apart.
STEPS, REST = "training steps", "evaluation, saving, other"
ASYNCHRONOUS = (
    "The clock is the host's: kernels of a GPU run behind it, and their time stands where the host next waits for them."
)


@dataclass(frozen=True)
class RunAnalysis:
    """rows: of timing.csv, none for an older run. parts: seconds of each. source: the file they are from."""

    rows: Sequence[Mapping[str, float]]
    parts: Mapping[str, float]
    steps: int
    source: str
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def table(self) -> list[dict[str, Any]]:
        """A row for each part: seconds, share of all, milliseconds a step where it is of every step."""
        return [
            {
                "part": part,
                "seconds": seconds,
                "share": seconds / self.seconds if self.seconds else 0.0,
                "milliseconds_per_step": 1000 * seconds / self.steps if self.steps else None,
            }
            for part, seconds in self.parts.items()
        ]


def analyse(folder: Path) -> RunAnalysis:
    """Read a run's folder.

    Raises:
        UserError: it is no folder of a run, or what it holds is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    try:
        if (folder / FILE).is_file():
            return _measured(folder)
        if (folder / "training.csv").is_file():
            return _estimated(folder / "training.csv")
    except (ValueError, KeyError, TypeError, ZeroDivisionError, csv.Error) as error:
        raise UserError(f"{folder}: {error}.") from error
    raise UserError(f"{folder} holds neither {FILE} nor training.csv: give the --output_dir of a training run.")


def _measured(folder: Path) -> RunAnalysis:
    rows = read_timing(folder / FILE)
    parts = {part: sum(row[part] for row in rows) for part in PARTS}
    if not any(parts.values()):
        raise UserError(f"{folder / FILE} has no times yet: the run has not reached its first log line.")
    notes = (ASYNCHRONOUS,) if _device(folder) not in (None, "cpu") else ()
    return RunAnalysis(rows, parts, int(rows[-1]["step"] - rows[0]["step"]), FILE, notes)


def _device(folder: Path) -> str | None:
    """What a finished run trained on."""
    try:
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return facts.get("device") if isinstance(facts, dict) else None


def _estimated(path: Path) -> RunAnalysis:
    """An older run: its tokens and their speed give the time of the steps, its seconds that of everything."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = tokens = seconds = 0.0
    for row in rows:
        if row.get("tokens_per_second"):
            seconds += (float(row["tokens_seen"]) - tokens) / float(row["tokens_per_second"])
            tokens = float(row["tokens_seen"])
        steps = float(row["step"])
    total = max((float(row["seconds"]) for row in rows if row.get("seconds")), default=0.0)
    if not seconds:
        raise UserError(f"{path} has no speeds, and there is no {FILE}: nothing tells where the time went.")
    parts = {STEPS: seconds, REST: max(total - seconds, 0.0)}
    note = f"There is no {FILE}: an older version trained this run, and training.csv tells no more than this."
    return RunAnalysis((), parts, int(steps), path.name, (note,))


def text_table(analysis: RunAnalysis) -> str:
    """The table for a console."""
    lines = [f"{'part':<26}{'seconds':>10}{'share':>8}{'ms/step':>10}"]
    for row in analysis.table():
        per_step = row["milliseconds_per_step"]
        shown = f"{per_step:>10.1f}" if per_step is not None and row["part"] in (*OF_A_STEP, STEPS) else f"{'':>10}"
        lines.append(f"{row['part']:<26}{row['seconds']:>10.2f}{row['share']:>8.1%}{shown}")
    lines.append(f"{'all':<26}{analysis.seconds:>10.2f}{1:>8.1%}{'':>10}   {analysis.steps} steps")
    return "\n".join([line.rstrip() for line in lines] + list(analysis.notes))
