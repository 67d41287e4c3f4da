"""timing.csv: what a run's seconds were spent on, a row where it begins, for each log line and on both sides of each
checkpoint.

The parts of a row add up to its seconds, and the rows to the time between the begin and the end of training.
"""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path

from ..common.files import replaced_file

logger = logging.getLogger("frankenlm.timing")

FILE = "timing.csv"
DATA, FORWARD, BACKWARD, GUARD, OPTIMIZER, EVALUATION, SAVING, OTHER = PARTS = (
    "data",
    "forward",
    "backward",
    "guard",
    "optimizer",
    "evaluation",
    "saving",
    "other",
)
COLUMNS = ("step", "seconds", *PARTS)


def read_timing(path: Path) -> list[dict[str, float]]:
    """Read a timing.csv, a dict a row.

    Raises:
        ValueError: its columns are others, or a cell is no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: its columns are not those of a timing.csv")
        try:
            return [{name: float(row[name]) for name in COLUMNS} for row in reader]
        except (TypeError, csv.Error) as error:
            raise ValueError(f"{path}: a row is cut short") from error


class TimingFile:
    """Writes timing.csv, row by row; a resumed run goes on with the rows up to its checkpoint's step."""

    def __init__(self, path: Path, earlier_step: int | None = None):
        rows = [] if earlier_step is None else _rows_up_to(path, earlier_step)
        self.path = path
        with replaced_file(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def add(self, step: int, seconds: Mapping[str, float]) -> None:
        """Append what was spent on each part since the last row."""
        row = {"step": step, "seconds": sum(seconds.values()), **seconds}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow({name: round(value, 6) for name, value in row.items()})


def _rows_up_to(path: Path, step: int) -> list[dict[str, float]]:
    try:
        rows = read_timing(path)
    except FileNotFoundError:
        logger.warning("%s is missing: the time before step %d is not in it", path, step)
        return []
    except ValueError as error:
        logger.warning("%s: the time before step %d is not in it any more", error, step)
        return []
    return [{**row, "step": int(row["step"])} for row in rows if row["step"] <= step]
