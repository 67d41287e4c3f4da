"""Checkpoints of any `transformers.Trainer`, TRL's too, that are whole or not there, and know whether they are healthy.

    SafeCheckpoints().attach(trainer)
    trainer.train(resume_from_checkpoint=newest_healthy(output_dir))

A checkpoint is written beside its place and renamed when all of it is on the disk, with sums and a health record in its
resume.json. Rotation spares the newest healthy one, and whatever another run or somebody else wrote.
"""

import contextlib
import inspect
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from ..optim.guard import GradientGuard, leaves
from ..optim.rolling_copy import all_finite, largest
from .checkpoint_record import Health, RunRecord, read_record_or_none, write_record
from .output_folder import MODEL, discard, rotate
from .publishing import partial_of, publish, publish_files, settle
from .saved_checkpoints import PREFIX, STATE, examined

logger = logging.getLogger("frankenlm.checkpoints")

# A loss this many times the first one, and by as much above it, is of a run that has diverged.
DIVERGED = 10.0
# Squares of larger numbers overflow float32: the next gradient is not finite, though the loss may be.
UNUSABLE = 1e19


class SafeCheckpoints:
    """See the module. One looks after one trainer.

    Args:
        record: what each checkpoint tells of the run; a run that goes on takes the id of the run it continues.
    """

    def __init__(self, record: RunRecord | None = None):
        self.record = RunRecord() if record is None else record
        self._told: set[Path] = set()

    def attach(self, trainer: Trainer) -> "SafeCheckpoints":
        """Wrap how a trainer writes a checkpoint and how it ends.

        Raises:
            ValueError: the trainer has one already.
        """
        finish = trainer._finalize_training
        if inspect.ismethod(finish) and isinstance(finish.__self__, SafeCheckpoints):
            raise ValueError("this trainer has SafeCheckpoints already.")
        self.trainer = trainer
        self._save, self._finish, self._place = trainer._save_checkpoint, finish, trainer._get_output_dir
        self._take_up = trainer._load_optimizer_and_scheduler
        trainer._save_checkpoint, trainer._finalize_training = self.save, self._finalized
        trainer._load_optimizer_and_scheduler = self._taken_up
        return self

    def save(self, model: torch.nn.Module, trial=None) -> None:
        """Write the checkpoint of now; every process has to call it."""
        trainer, output_dir = self.trainer, Path(self._place(trial=trial))
        folder = output_dir / f"{PREFIX}{trainer.state.global_step}"
        partial = partial_of(folder)
        if trainer.args.should_save:
            discard(partial)
        trainer.accelerator.wait_for_everyone()
        with self._base_class_keeps_all(), self._elsewhere(partial):
            self._save(model, trial)
        trainer.accelerator.wait_for_everyone()  # each process writes its random numbers
        self._publish(output_dir, folder, partial / folder.name)
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(folder))

    def _publish(self, output_dir: Path, folder: Path, written: Path) -> None:
        trainer = self.trainer
        health = self.health()
        self._settle_best(output_dir, folder)
        if trainer.args.should_save:
            if health.fault is not None:
                logger.warning("%s is not healthy: %s", folder, health.fault)
            trainer.state.save_to_json(str(written / STATE))  # again, with the best one's place
            write_record(written, self.record, trainer.state.global_step, time.time_ns(), health)
            publish(written, folder)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_local_process_zero() and written.is_dir():
            publish(written, folder)  # a node with a disk of its own: the random numbers of its processes
        if trainer.args.should_save:
            self._rotate(output_dir, trainer.args.save_total_limit, folder)

    def save_result(self, output_dir: Path) -> None:
        """Write the model as it is now into the run's folder; every process has to call it."""
        written = self._write_model(output_dir / MODEL)
        if self.trainer.args.should_save:
            publish_files(written, output_dir)

    def save_folder(self, folder: Path, step: int) -> None:
        """Write the model as it is now, with a record of its step, into a folder of its own; every process has to."""
        written = self._write_model(folder)
        if self.trainer.args.should_save:
            write_record(written, self.record, step, time.time_ns())
            publish(written, folder)

    def _write_model(self, folder: Path) -> Path:
        """Write the model beside `folder`; return where it lies."""
        written = partial_of(folder) / folder.name
        self.trainer.save_model(str(written), _internal_call=True)
        self.trainer.accelerator.wait_for_everyone()
        return written

    def health(self) -> Health:
        """What a checkpoint of now would be worth; every process has to call it."""
        trainer = self.trainer
        fault = self.weights_fault()
        if self._is_anywhere(not all_finite([], leaves(trainer.optimizer))) and fault is None:
            fault = "its optimizer's state holds NaN or Inf"
        evaluated, trained = (losses_of(trainer.state.log_history, name) for name in ("eval_loss", "loss"))
        if fault is None:
            fault = loss_fault("evaluation", evaluated)
        if fault is None and trained and math.isfinite(trained[-1]):  # a skipped step has no loss, and harms nothing
            fault = loss_fault("training", trained)
        loss = evaluated[-1] if evaluated and math.isfinite(evaluated[-1]) else None
        guards = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, GradientGuard)]
        return Health(fault, loss, dict(guards[0].counts) if guards else {})

    def weights_fault(self) -> str | None:
        """Why nobody should load the parameters, None if they are fine; every process has to call it."""
        magnitude = largest(self.trainer.model.parameters(), [])
        if self._is_anywhere(not math.isfinite(magnitude)):
            return "its parameters hold NaN or Inf"
        return f"its parameters hold numbers beyond {UNUSABLE:.0e}" if self._is_anywhere(magnitude > UNUSABLE) else None

    def _is_anywhere(self, flag: bool) -> bool:
        """Whether a process says so: with shards each sees a part."""
        mine = torch.tensor(float(flag), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(mine, "sum") > 0)

    def _settle_best(self, output_dir: Path, folder: Path) -> None:
        """Let the state name the best checkpoint by the place where it will stand."""
        state = self.trainer.state
        best = output_dir / f"{PREFIX}{state.best_global_step}"
        if self.trainer.args.save_strategy != SaveStrategy.NO and (best == folder or best.is_dir()):
            state.best_model_checkpoint = str(best)

    def _taken_up(self, checkpoint: str | None) -> None:
        """As the trainer's; a run that goes on is the run that it continues."""
        record = None if checkpoint is None else read_record_or_none(Path(checkpoint))
        if record is not None:
            self.record.run = record.run
        self._take_up(checkpoint)

    def _finalized(self, trial, *args, **kwargs):
        """As the trainer's; with a limit of one checkpoint, the best alone is kept."""
        with self._base_class_keeps_all():
            output = self._finish(trial, *args, **kwargs)
        limit, best = self.trainer.args.save_total_limit, self.trainer.state.best_model_checkpoint
        if self.trainer.args.should_save and best is not None and limit == 1:
            self._rotate(Path(self._place(trial=trial)), 1, is_over=True)
        return output

    def _rotate(self, output_dir: Path, limit: int | None, *keep: Path, is_over: bool = False) -> None:
        if self.trainer.state.best_model_checkpoint is not None:
            keep = (*keep, Path(self.trainer.state.best_model_checkpoint))
        rotate(output_dir, self.record.run, limit, keep, self._told, is_over=is_over)

    @contextlib.contextmanager
    def _base_class_keeps_all(self) -> Iterator[None]:
        """Without a limit, as the base class would delete every folder that is named like a checkpoint."""
        args = self.trainer.args
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            args.save_total_limit = limit

    @contextlib.contextmanager
    def _elsewhere(self, output_dir: Path) -> Iterator[None]:
        """Let checkpoints be written below another folder, and be pushed by nobody yet."""
        trainer, push = self.trainer, self.trainer.args.push_to_hub
        trainer._get_output_dir, trainer.args.push_to_hub = (lambda trial: str(output_dir)), False
        try:
            yield
        finally:
            trainer._get_output_dir, trainer.args.push_to_hub = self._place, push


def losses_of(log_history: Iterable[Mapping[str, float]], name: str) -> list[float]:
    """The values of `name` in the log events that have it."""
    return [logs[name] for logs in log_history if name in logs]


def loss_fault(name: str, losses: Sequence[float]) -> str | None:
    """What the last of a run's losses says against it; None where it is fine, or where there is none."""
    if not losses:
        return None
    if not math.isfinite(losses[-1]):
        return f"its {name} loss is {losses[-1]}"
    if losses[-1] > max(DIVERGED * losses[0], losses[0] + DIVERGED):
        return f"its {name} loss is {losses[-1]:.4g}, and the run began with {losses[0]:.4g}: it has diverged"
    return None


def newest_healthy(output_dir: str | Path, world_size: int | None = None) -> str | None:
    """The checkpoint to go on from: the one written last that is whole and healthy; None where there is none.

    What it passes over is told in a warning. A checkpoint that a killed run had written whole is published first. Of
    several processes each has to call it.

    Args:
        output_dir: where the checkpoints lie.
        world_size: the processes that will train (default: those that a launcher has started).

    Raises:
        UserError: a run is going on in the folder, and is writing a checkpoint.
    """
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("RANK", "0") == "0":
        settle(Path(output_dir))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    for saved in examined(Path(output_dir), world_size):
        if saved.is_whole:
            return str(saved.folder)
        logger.warning("%s is passed over: %s", saved.folder, saved.fault)
    return None
