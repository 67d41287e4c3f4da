"""The flow of a recovery: damage, measure, train, measure on the way; each measured step has files of its own.

The rows of step s are an ordinary experiment named `suffix_after{s}`, with all that the lab promises of rows: a run
that is killed goes on with the cell it was in, from its last checkpoint, and measures no step twice.
"""

import dataclasses
import itertools
import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from frankenlm.trainer_ext.common.cli import user_mistakes

from ..cells import Cell
from ..configs import TARGETED, ExperimentConfig
from ..damage.methods import MethodOptions
from ..errors import ConfigConflict
from ..lab import Lab
from ..offloaded import computing_devices, is_offloaded
from ..records.export import JOURNAL_ENDING
from ..records.manifest import ExperimentFiles
from ..records.recovery import archive
from ..run.limits import Signals
from ..run.numbering import renumber
from ..run.plan import CellPlan, Experiment
from ..run.runner import ExperimentRun, Subject
from ..weights.model_checks import read_tokenizer, resolve_device
from ..weights.parameter_index import unwrap
from ..weights.restore import distance
from .held import addressed, held
from .settings import Blocks, RecoverySettings, load_text
from .training import forget_training, put_back, steps_kept, train_on

logger = logging.getLogger(__name__)

LONG_TOKEN = 64  # characters


def after_step(suffix: str, step: int) -> str:
    """Return the suffix of the experiment whose rows were written after so many steps."""
    return f"{suffix}_after{step:05d}"


def plan_recovery(lab: Lab, experiment: Experiment, settings: RecoverySettings, text: str) -> dict[int, Experiment]:
    """Return step -> the experiment of its rows.

    Raises:
        ValueError: the model cannot be trained like that.
    """
    config, limit = experiment.config, experiment.positions
    if experiment.fills_masks:
        raise ValueError(f"recover: {lab.name} is a masked language model; only causal ones are trained here.")
    if config.dtype != "float32" or config.load_4bit:
        raise ValueError(f"recover: dtype={config.dtype!r}, load_4bit={config.load_4bit}: train in float32.")
    if config.tied_policy != "both":
        raise ValueError(f"recover: tied_policy={config.tied_policy!r} unties a table that training ties; use 'both'.")
    if limit is not None and settings.length > limit:
        raise ValueError(f"train_length={settings.length} is more than the {limit} positions of {lab.name}: lower it.")
    check_devices(lab)
    if len(text) < LONG_TOKEN * settings.length:  # a longer one has enough tokens
        Blocks(text, tokenizer_of(lab), settings.length)
    reading = {**experiment.reading, "recovery": settings.identity(text)}
    return {
        step: dataclasses.replace(
            experiment, config=config | {"name_suffix": after_step(config.name_suffix, step)}, reading=reading
        )
        for step in settings.measured
    }


def check_devices(lab: Lab) -> None:
    """Raise ValueError for a model that lies on several devices: Trainer trains on the first GPU, or on all at once."""
    model = unwrap(lab.given.model) if lab.given else None
    away = model is not None and any(is_offloaded(model, name) for name, _ in model.named_parameters())
    if lab.options.device_map is not None or away or (model is not None and len(computing_devices(model)) > 1):
        raise ValueError(
            "recover: a model that is spread over devices (device_map, offloading) is not trained here: load it on one."
        )
    device = lab.given.device if lab.given else resolve_device(lab.options.device)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ValueError(
            f"recover: {torch.cuda.device_count()} GPUs are visible, and it trains on one: set CUDA_VISIBLE_DEVICES to "
            f"{device.index or 0} and leave --device out."
        )


def tokenizer_of(lab: Lab) -> PreTrainedTokenizerBase:
    if lab.given:
        return lab.given.tokenizer
    return read_tokenizer(lab.name, False, lab.options.trust_remote_code)[0]


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
                now = {"rel_l2_after_training": distance(subject.baseline)} if step else {}
                run.answer(steps[step], subject, {**lesion, **now}, progress, score=score)
                model.train(was_training)

        if 0 in steps:
            look(0)
        if any(steps):  # another than 0
            with held(subject.baseline, self._kept(cell, subject)):
                train_on(model, self.rows, self.settings, config.seed_base + cell.repeat_index, folder, look)
        forget_training(folder)

    def _kept(self, cell: Cell, subject: Subject) -> list[torch.Tensor]:
        """Return which elements training leaves alone: those that the damage was meant for, where that is asked."""
        config, baseline = self.first.config, subject.baseline
        if not self.settings.frozen:
            return [torch.zeros_like(saved.rows, dtype=torch.bool) for saved in baseline.saved]
        chosen = subject.targets.chosen(cell)[0] if subject.targets else None
        options = MethodOptions.from_config(config)
        return addressed(baseline, config.method, cell.level, config.seed_base, cell.repeat_index, options, chosen)


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
    signals = Signals()  # one for all steps: of several, only the one that was entered last would hear
    with ExitStack() as stack:
        runs = open_steps(lab, experiment, settings, text, signals, stack)
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


def open_steps(
    lab: Lab, experiment: Experiment, settings: RecoverySettings, text: str, signals: Signals, stack: ExitStack
) -> dict[int, ExperimentRun]:
    """Open the experiments of all steps until `stack` is left; they move together where `on_conflict` asks for it.

    Raises:
        ConfigConflict: rows of another configuration are there, and `on_conflict` is stop.
    """
    asked, on_conflict = experiment.config.name_suffix, lab.options.on_conflict
    for number in itertools.count(1):
        suffix = f"{asked}-{number}" if number > 1 and on_conflict == "new-suffix" else asked
        named = dataclasses.replace(experiment, config=experiment.config | {"name_suffix": suffix})
        planned = plan_recovery(lab, named, settings, text)
        try:
            with ExitStack() as opened:
                runs = {step: opened.enter_context(lab.session(each, signals)) for step, each in planned.items()}
                stack.push(opened.pop_all())
                return runs
        except ConfigConflict as conflict:
            if on_conflict == "stop":
                raise
            logger.warning("%s", conflict)
            if on_conflict == "archive":
                archive_steps(lab, named)
    raise AssertionError("numbers do not end")


def archive_steps(lab: Lab, experiment: Experiment) -> None:
    """Move the files of every step that is there to names with a time in them, whichever are measured now."""
    config = experiment.config
    first = ExperimentFiles(
        Path(lab.options.output_dir), config.method, experiment.short_name, after_step(config.name_suffix, 0)
    )
    name = re.compile(re.escape(first.stem.rpartition("_after")[0]) + r"_after(\d{5,})" + re.escape(JOURNAL_ENDING))
    for folder in sorted(first.results_dir.iterdir()):
        if match := name.fullmatch(folder.name):
            files = dataclasses.replace(first, suffix=after_step(config.name_suffix, int(match[1])))
            logger.warning("%s is now in %s.", folder, archive(files))
