"""The flow of a recovery: damage, measure, train, measure on the way; each measured step has files of its own.

The rows of step s are an ordinary experiment named `suffix_after{s}`, with all that the lab promises of rows: a run
that is killed goes on with the cell it was in, from its last checkpoint, and measures no step twice.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from frankenlm.trainer_ext.common.cli import user_mistakes

from ..cells import Cell
from ..configs import TARGETED, ExperimentConfig
from ..lab import Lab
from ..run.limits import Signals
from ..run.numbering import renumber
from ..run.plan import CellPlan, Experiment
from ..run.runner import ExperimentRun, Subject
from .settings import Blocks, RecoverySettings, load_text
from .training import forget_training, held, put_back, steps_kept, train_on

logger = logging.getLogger(__name__)


def after_step(suffix: str, step: int) -> str:
    """Return the suffix of the experiment whose rows were written after so many steps."""
    return f"{suffix}_after{step:05d}"


def plan_recovery(lab: Lab, experiment: Experiment, settings: RecoverySettings, text: str) -> dict[int, Experiment]:
    """Return step -> the experiment of its rows.

    Raises:
        ValueError: the model cannot be trained like that.
    """
    config = experiment.config
    if experiment.fills_masks:
        raise ValueError(f"recover: {lab.name} is a masked language model; only causal ones are trained here.")
    if config.dtype != "float32" or config.load_4bit:
        raise ValueError(f"recover: dtype={config.dtype!r}, load_4bit={config.load_4bit}: train in float32.")
    if lab.options.device_map is not None:
        raise ValueError("recover: a model that is spread by device_map is not trained here; leave it out.")
    if config.tied_policy != "both":
        raise ValueError(f"recover: tied_policy={config.tied_policy!r} unties a table that training ties; use 'both'.")
    reading = {**experiment.reading, "recovery": settings.identity(text)}
    return {
        step: dataclasses.replace(
            experiment, config=config | {"name_suffix": after_step(config.name_suffix, step)}, reading=reading
        )
        for step in settings.measured
    }


class RecoveryRun:
    """One experiment's recoveries on a loaded model.

    runs: step -> the run of its experiment, whose store says what is missing.
    """

    def __init__(
        self,
        runs: Mapping[int, ExperimentRun],
        settings: RecoverySettings,
        text: str,
        folder: Path,
        signals: Signals,
    ):
        self.runs, self.settings, self.folder, self.signals = runs, settings, folder, signals
        self.first = runs[0]
        with user_mistakes():
            self.rows = Blocks(text, self.first.loaded.tokenizer, settings.length)

    def work(self, progress: tqdm) -> None:
        """Do every cell that misses rows of a step; the model is as it was, afterwards and on errors."""
        missing = missing_of(self.runs)
        with self.first.subject() as subject, put_back(self.first.loaded.model) as restore:
            for cell, steps in missing.items():
                restore()
                self._cell(cell, steps, subject, progress)

    def _cell(self, cell: Cell, steps: Mapping[int, CellPlan], subject: Subject, progress: tqdm) -> None:
        model, config = self.first.loaded.model, self.first.config
        lesion = self.first.damage(cell, subject)
        folder = training_folder(self.folder, cell, config)
        # a checkpoint never goes back: a step that it has passed is only measured by training anew
        if any(0 < step <= steps_kept(folder) for step in steps):
            forget_training(folder)

        def look(step: int) -> None:
            self.signals.check()
            if step in steps:
                was_training = model.training
                model.eval()
                run = self.runs[step]
                score = subject.probe.measure() if subject.probe else None
                run.answer(steps[step], subject, lesion, progress, score=score)
                model.train(was_training)

        if 0 in steps:
            look(0)
        if any(steps):  # another than 0
            with held(subject.baseline, self.settings.frozen):
                train_on(model, self.rows, self.settings, config.seed_base + cell.repeat_index, folder, look)
        forget_training(folder)


def missing_of(runs: Mapping[int, ExperimentRun]) -> dict[Cell, dict[int, CellPlan]]:
    """Return the cells that miss rows, each with what it misses at which steps."""
    found: dict[Cell, dict[int, CellPlan]] = {}
    for step, run in runs.items():
        for plan in run.experiment.pending(run.store.finished):
            found.setdefault(plan.cell, {})[step] = plan
    return found


def forget_finished(runs: Mapping[int, ExperimentRun], folder: Path) -> None:
    """Remove checkpoints of cells that miss no row: a run that was killed right behind their last one left them."""
    missing = missing_of(runs)
    for cell in runs[0].experiment.cells:
        if cell not in missing:
            forget_training(training_folder(folder, cell, runs[0].config))


def training_folder(folder: Path, cell: Cell, config: ExperimentConfig) -> Path:
    """Return where the checkpoints of a cell lie while it is trained."""
    return folder / f"training_{re.sub(r'[^A-Za-z0-9.+-]+', '_', cell.name(config))}"


def recover(lab: Lab, experiment: Experiment, settings: RecoverySettings) -> list[Path]:
    """Carry an experiment's recoveries to their end, from wherever they stand; return the JSON files, by step.

    Raises:
        ValueError: the model cannot be trained like that, or there is no such text. Others: see `Lab.run`.
    """
    if experiment.config.method in TARGETED and settings.frozen:
        logger.info("frozen: the units that are removed stay removed")
    text = load_text(settings.text)
    planned = plan_recovery(lab, experiment, settings, text)
    signals = Signals()  # one for all steps: of several, only the one that was entered last would hear
    with ExitStack() as stack:
        runs = {step: stack.enter_context(lab.session(each, signals)) for step, each in planned.items()}
        stack.enter_context(signals)
        for run in runs.values():
            renumber(run.experiment, run.store)
            run.store.refresh()
        folder = runs[0].store.files.journal_dir
        rows = sum(len(p.missing) for run in runs.values() for p in run.experiment.pending(run.store.finished))
        shown = lab.options.progress
        forget_finished(runs, folder)
        try:
            if rows:
                with tqdm(total=rows, unit="row", desc=experiment.label, disable=not shown, dynamic_ncols=True) as bar:
                    RecoveryRun(runs, settings, text, folder, signals).work(bar)
        finally:
            paths = [run.store.export() for run in runs.values()]
    return paths
