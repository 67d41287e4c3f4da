"""training.csv: a row of figures for every log line of a run, taken up again where a run goes on."""

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..common.cli import is_main_process
from ..common.files import replaced_file

logger = logging.getLogger("frankenlm.training")

CSV_COLUMNS = (
    "step",
    "epoch",
    "tokens_seen",
    "loss",
    "label_loss",
    "teacher_loss",
    "teacher_hidden_loss",
    "eval_loss",
    "eval_causal_loss",
    "eval_masked_loss",
    "eval_ema_loss",
    "eval_accuracy",
    "learning_rate",
    "grad_norm",
    "has_nan",
    "has_inf",
    "has_zero",
    "repair_action",
    "tokens_per_second",
    "peak_memory_mib",
    "aux_loss",
    "expert_load_min",
    "expert_load_max",
    "norm_f_saturation",
    "zero_fraction",
    "flip_rate",
    "unrounded",
    "seconds",
)
# of a cell, where it is no float
KINDS = {"step": int, "tokens_seen": int, "repair_action": str}


class CsvLog(TrainerCallback):
    """training.csv: one row per log event, written at once; rank 0 only. The file is begun when training begins.

    Args:
        path: the file. An existing one is continued when `earlier` is given: rows after that step are dropped.
        earlier: state of the checkpoint that the run continues from, or None for a new run. The seconds spent before it
            are read from the kept rows. A file that is damaged or lacks rows is kept as training.csv.damaged, and the
            rows are taken from the checkpoint.
    """

    def __init__(self, path: Path, earlier: TrainerState | None = None):
        self.path = path
        self.rows: list[dict[str, float | str]] = []
        self._damage: str | None = None
        if earlier is not None and is_main_process():
            self.rows, self._damage = rows_so_far(path, earlier)
        self._earlier_seconds = max((row["seconds"] for row in self.rows if "seconds" in row), default=0.0)
        self._start = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        if not is_main_process():
            return
        if self._damage is not None:
            kept = self.path.with_name(f"{self.path.name}.damaged")
            if self.path.exists():
                self.path.replace(kept)
            logger.warning("%s: %s; its rows are taken from the checkpoint", self.path, self._damage)
        with replaced_file(self.path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_main_process() or not ({"loss", "eval_loss"} & logs.keys()):
            return
        row = csv_row(logs, state)
        row["seconds"] = round(self._earlier_seconds + time.perf_counter() - self._start, 2)
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, CSV_COLUMNS).writerow(row)


def csv_row(logs: Mapping[str, Any], state: TrainerState) -> dict[str, float | str]:
    """The row of a log event, without its seconds."""
    row = {name: logs[name] for name in CSV_COLUMNS if name in logs}
    return row | {"step": state.global_step, "epoch": state.epoch, "tokens_seen": state.num_input_tokens_seen}


def rows_so_far(path: Path, earlier: TrainerState) -> tuple[list[dict[str, float | str]], str | None]:
    """Return the rows up to a checkpoint and what is wrong with the file, None if nothing is.

    A good file has a row for each event of the checkpoint's history; otherwise the history itself gives the rows.
    """
    events = [logs for logs in earlier.log_history if {"loss", "eval_loss"} & logs.keys()]
    damage = None
    try:
        rows = [row for row in read_csv(path) if row["step"] <= earlier.global_step]
        if [(row["step"], "loss" in row) for row in rows] == [(logs["step"], "loss" in logs) for logs in events]:
            return rows, None
        damage = "rows are missing or odd"
    except FileNotFoundError:
        damage = "is missing"
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        damage = f"is damaged ({type(error).__name__})"
    return [_row_of_history(logs) for logs in events], damage


def _row_of_history(logs: Mapping[str, Any]) -> dict[str, float | str]:
    row = {name: logs[name] for name in CSV_COLUMNS if name in logs}
    return row | {"tokens_seen": logs.get("num_input_tokens_seen", 0)}


def read_csv(path: Path) -> list[dict[str, float | str]]:
    """Read training.csv: a dict per row, without its empty cells.

    Raises:
        ValueError: a cell that is no number, a header of other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or not set(reader.fieldnames) <= set(CSV_COLUMNS):  # earlier versions had fewer
            raise ValueError(f"{path}: its columns are not those of a training.csv")
        return [{name: KINDS.get(name, float)(text) for name, text in row.items() if text} for row in reader]
