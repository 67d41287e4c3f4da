"""Where a step's time goes, measured at the Trainer's seams by the clock of the host.

At every moment the clock runs for one part: what is called inside another part is taken out of it, so that the parts
add up to the wall time. A step costs a dozen looks at the clock. On a GPU nothing is waited for that would not be
waited for anyway: kernels run behind the host, and their time shows where it next waits for them.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from transformers import Trainer, TrainerCallback

from ..common.cli import is_main_process
from .timing_file import BACKWARD, DATA, EVALUATION, FORWARD, GUARD, OPTIMIZER, OTHER, PARTS, SAVING, TimingFile


class PartClock:
    """Seconds for each part since the last `drain`; exactly one part runs at a time."""

    def __init__(self):
        self.part = OTHER
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = perf_counter()

    def turn_to(self, part: str) -> str:
        """Run for `part` from now on; return the part until now."""
        now, before = perf_counter(), self.part
        self.seconds[before] += now - self._since
        self._since, self.part = now, part
        return before

    def drain(self) -> dict[str, float]:
        """Return the seconds so far, and begin again at 0."""
        self.turn_to(self.part)
        seconds, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return seconds


class StepTimes(TrainerCallback):
    """Writes timing.csv of one trainer, rank 0 only.

    Args:
        path: the file. earlier_step: of the checkpoint that the run goes on from; None for a new run.
    """

    def __init__(self, path: Path, earlier_step: int | None = None):
        self.path, self.earlier_step = path, earlier_step
        self.clock = PartClock()
        self.file: TimingFile | None = None  # while training

    def attach(self, trainer: Trainer) -> "StepTimes":
        """Time a trainer. A GradientGuard comes after it, with `watch_guard`."""
        self.trainer = trainer
        trainer.get_batch_samples = self._timed(DATA, trainer.get_batch_samples)
        trainer.training_step = self._step(BACKWARD, trainer.training_step)
        trainer.compute_loss = self._timed(FORWARD, trainer.compute_loss, inside=BACKWARD)
        trainer.evaluate = self._timed(EVALUATION, trainer.evaluate)
        trainer._save_checkpoint = self._saved(trainer._save_checkpoint)
        trainer.add_callback(self)
        return self

    def watch_guard(self, guard: TrainerCallback) -> None:
        """Time a guard that watches the trainer: around its steps, and in its own events."""
        self.trainer.training_step = self._step(GUARD, self.trainer.training_step)
        for event in ("on_pre_optimizer_step", "on_optimizer_step"):
            setattr(guard, event, self._timed(GUARD, getattr(guard, event)))

    def _timed(self, part: str, call: Callable, inside: str | None = None) -> Callable:
        """`call` with the clock running for `part`; with `inside`, only where it runs for that part."""

        @functools.wraps(call)
        def timed(*args, **kwargs):
            if inside is not None and self.clock.part != inside:
                return call(*args, **kwargs)
            before = self.clock.turn_to(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.clock.turn_to(before)

        return timed

    def _step(self, part: str, call: Callable) -> Callable:
        """A training step; from the end of the last one before an update the clock runs for the optimizer."""
        timed = self._timed(part, call)

        @functools.wraps(call)
        def step(*args, **kwargs):
            loss = timed(*args, **kwargs)
            if self.clock.part == OTHER and self.trainer.accelerator.sync_gradients:
                self.clock.turn_to(OPTIMIZER)  # clipping, its step, the schedule, gradients to zero
            return loss

        return step

    def _saved(self, call: Callable) -> Callable:
        """A checkpoint, with a row before and one behind: a resumed run has all that was spent until it was whole."""
        timed = self._timed(SAVING, call)

        @functools.wraps(call)
        def save(*args, **kwargs):
            self._write_row()
            timed(*args, **kwargs)
            self._write_row()

        return save

    def _write_row(self) -> None:
        if self.file is not None:
            self.file.add(self.trainer.state.global_step, self.clock.drain())

    def on_train_begin(self, args, state, control, **kwargs):
        if is_main_process():
            self.file = TimingFile(self.path, self.earlier_step)
            self.clock = PartClock()
            self._write_row()  # where it begins

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.turn_to(OTHER)

    def on_log(self, args, state, control, **kwargs):
        self._write_row()

    def on_train_end(self, args, state, control, **kwargs):
        self._write_row()
        self.file = None
