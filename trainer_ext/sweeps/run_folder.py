"""A run of a sweep on the disk: where it stands, how train.py is told to go on, and what came of it.

Beside what train.py leaves, the folder holds console.log, what the run printed, and sweep_run.json: the settings that
it was made with, and how it ended.
"""

import contextlib
import csv
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenlm.modeling.yaml_text import plain

from ..common.cli import UserError
from ..common.files import write_json
from ..common.objectives import OBJECTIVES
from ..common.redaction import redact_facts
from ..preflight import check_run
from ..presets import RunSettings, parse_run
from ..resuming import run_settings
from ..saving.output_folder import taken_names
from ..saving.saved_checkpoints import checkpoint_folders, examined
from ..saving.training_csv import read_csv
from .choice import CHOICE, REPORT
from .grid import PEEKING_SCHEDULES, SweepRun

logger = logging.getLogger("frankenlm.sweep")

RECORD, CONSOLE = "sweep_run.json", "console.log"
GAVE_UP = "stopped: "  # how the last line of a run begins that ended by its own decision
# Settings that decide a result, though a run may change them on its way.
ALSO = ("dataset", "validation_dataset", "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model")
# What is to be done about a run: nothing, all of it, the rest of it, all of it once more.
FINISHED, NEW, GOES_ON, AGAIN = STATES = ("finished", "new", "goes on", "again")


class ImpossibleRun(UserError):
    """Settings that nothing could be trained with, whatever lies in the run's folder."""


@dataclass
class PlannedRun:
    """A run with what its folder says of it.

    settings: what decides its result. state: one of STATES. earlier: its sweep_run.json, {} without one.
    """

    run: SweepRun
    folder: Path
    settings: Mapping[str, Any]
    state: str
    earlier: Mapping[str, Any]

    def words(self) -> list[str]:
        """The words of train.py's command line."""
        more = {GOES_ON: ["--resume_from_checkpoint", "last"], AGAIN: ["--overwrite_output_dir"]}
        quiet = [] if "disable_tqdm" in self.run.settings else ["--disable_tqdm", "true"]
        return [*self.run.words(), "--output_dir", str(self.folder), *quiet, *more.get(self.state, [])]

    @property
    def gave_up(self) -> bool:
        """Whether train.py itself ended the run: its loss or its gradients were beyond repair."""
        return self.earlier.get("status") == "failed" and self.earlier.get("message", "").startswith(GAVE_UP)

    def write(self, status: str, message: str = "", seconds: float | None = None) -> None:
        """Leave sweep_run.json. status: running, finished, failed or interrupted; seconds: of the whole process."""
        self.earlier = {"settings": self.settings, "status": status, "message": message, "process_seconds": seconds}
        write_json(self.folder / RECORD, self.earlier)

    def facts(self) -> dict[str, Any]:
        """Its metrics.json, {} where there is none yet."""
        return read_json(self.folder / "metrics.json")

    def curve(self) -> list[dict]:
        """The rows of its training.csv, none where it cannot be read."""
        path = self.folder / "training.csv"
        try:
            return read_csv(path) if path.is_file() else []
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            logger.warning("%s cannot be read (%s)", path, type(error).__name__)
            return []


def plan_run(run: SweepRun, output_dir: Path, metric: str | None = None) -> PlannedRun:
    """Check a run's settings as train.py would, and look at what lies in its folder.

    metric: what the run is to have at its end where it helps to choose.

    Raises:
        ImpossibleRun: a mistake in the settings. UserError: the folder holds a run with others, or something else.
        OSError: the storage of the folder is full or read-only.
    """
    folder = output_dir / run.name
    try:
        with settings_checked():
            parsed = parse_run([*run.words(), "--output_dir", str(folder)])
            check_no_peeking(run, parsed)
            if run.stage == CHOICE and metric is not None:
                check_has_metric(parsed, metric)
        settings = deciding_settings(parsed)
        earlier = read_json(folder / RECORD)
        check_same_settings(folder, earlier, settings)
        planned = PlannedRun(run, folder, settings, state_of(folder, earlier), earlier)
        if planned.state == NEW:
            with settings_checked():
                check_run(parse_run(planned.words()))
        elif planned.state != FINISHED:
            check_run(parse_run(planned.words()))
    except UserError as error:
        raise type(error)(f"run {run.name}: {error}") from error
    return planned


def check_no_peeking(run: SweepRun, parsed: RunSettings) -> None:
    """Raises UserError where a preset or a file of settings has the weights chosen on the text that is reported; what
    the sweep's own file says of that is told when it is read."""
    if run.stage != REPORT or not run.own.get("validation_dataset"):
        return
    if parsed.training.load_best_model_at_end:
        raise UserError(
            "load_best_model_at_end, or early_stopping_patience, would choose the weights on the text that is "
            "reported; leave it out of the settings, or say load_best_model_at_end: false in report."
        )
    schedule = str(parsed.training.lr_scheduler_type.value)
    if schedule in PEEKING_SCHEDULES:
        raise UserError(
            f"lr_scheduler_type: {schedule} would lower the rate by the text that is reported; take a schedule that "
            "looks at no text, such as linear."
        )


def check_has_metric(parsed: RunSettings, metric: str) -> None:
    """Raises UserError where a run's settings leave it without the metric by which values are chosen."""
    training, objective = parsed.training, OBJECTIVES[parsed.data.objective]
    labels = parsed.data.objective == "classification"
    never_looks = training.eval_strategy == "no" and not training.eval_on_start
    lacking = {
        "best_eval_loss": never_looks and "an eval_strategy other than no",
        "lowest_eval_loss": never_looks and "an eval_strategy other than no",
        "ema_eval_loss": training.ema_decay is None and "ema_decay",
        "eval_accuracy": not labels and "objective: classification",
        "eval_causal_loss": not objective.continues and "objective: causal or joint",
        "eval_masked_loss": not objective.masks and "objective: mlm or joint",
        "eval_perplexity": (labels or objective.goes_both_ways) and "objective: causal or mlm",
    }
    if lacking.get(metric):
        raise UserError(f"metric: {metric} needs {lacking[metric]}: no value could be chosen by it; take eval_loss.")


@contextlib.contextmanager
def settings_checked() -> Iterator[None]:
    """Raises ImpossibleRun for a mistake that is told inside."""
    try:
        yield
    except UserError as error:
        raise ImpossibleRun(str(error)) from error


def deciding_settings(parsed: RunSettings) -> dict[str, Any]:
    """What decides a run's result, as plain JSON values, without secrets."""
    everything = {**vars(parsed.data), **vars(parsed.training)}
    settings = {**run_settings(parsed), **{name: everything[name] for name in ALSO}}
    settings |= {f"model.{name}": plain(value) for name, value in parsed.model_fields.items()}
    return json.loads(json.dumps(redact_facts(settings)))


def check_same_settings(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises UserError where the folder's run was made with other settings, or where something else lies there."""
    if "settings" not in earlier:
        taken = taken_names(folder) if folder.is_dir() else []
        if taken:
            raise UserError(
                f"{folder} holds {taken[0]}, which is of no run of this sweep: choose another --output_dir."
            )
        return
    before = earlier["settings"]
    # settings that came with another version are in one of the two alone; fields of the model are where they are given
    names = {name for name in before.keys() | settings.keys() if name.startswith("model.")}
    names |= before.keys() & settings.keys()
    changed = [name for name in sorted(names) if before.get(name) != settings.get(name)]
    if changed:
        told = "; ".join(f"{name}={before.get(name)}, now {settings.get(name)}" for name in changed[:4])
        raise UserError(
            f"{folder} was made with other settings: {told}. Choose another --output_dir, or remove the folder to run "
            "it again."
        )


def state_of(folder: Path, earlier: Mapping[str, Any]) -> str:
    """Which of STATES a run is in."""
    if earlier and read_json(folder / "metrics.json"):
        return FINISHED
    if checkpoint_folders(folder) and any(saved.is_whole for saved in examined(folder, 1)):
        return GOES_ON
    return AGAIN if folder.is_dir() and taken_names(folder) else NEW


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; {} where the file is missing or cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
