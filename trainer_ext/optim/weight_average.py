"""An exponential moving average of the weights (EMA, Polyak averaging), kept beside the weights that are trained.

After step n the average moves by 1 - d towards the weights, with d = min(decay, (1 + n) / (10 + n)): without the ramp a
short run would be averaged with its random beginning. Averages are float32, whatever the weights are.
Where a run keeps the best of its weights, it keeps the best of their averages too, which is rarely of the same step.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerState

from .rolling_copy import all_finite

logger = logging.getLogger("frankenlm.weight_average")

FILE, BEST_FILE = "ema.safetensors", "ema_best.safetensors"
COUNT, STEP, LOSS = "steps", "step", "loss"
METRIC = "eval_ema_loss"


@dataclass(frozen=True)
class BestAverage:
    """The average of the evaluation with the lowest loss. step: the run's. averages: float32, on the CPU."""

    loss: float
    step: int
    averages: list[torch.Tensor]


class WeightAverage(TrainerCallback):
    """The average of a model's trainable parameters.

    Weights enter it when the next step is taken, or when the average is asked for: a step that poisoned them, which the
    gradient guard then takes back, leaves no trace.

    Args:
        model: its parameters are averaged. decay: in (0, 1).
        was_skipped: asked behind each step, whether it left the weights as they were.
        keeps_best: keep the average of its own best evaluation, for the end.
    """

    def __init__(self, model: nn.Module, decay: float, was_skipped: Callable[[], bool], keeps_best: bool = False):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay}: expected a number between 0 and 1, such as 0.999.")
        self.decay, self.was_skipped, self.keeps_best = decay, was_skipped, keeps_best
        self.steps = 0
        self.best: BestAverage | None = None
        self._named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = [weight.detach().float().clone() for weight in self._named.values()]
        self._is_behind = False  # whether the last step's weights have not entered
        self._went_back = False  # whether it is the best one

    def on_step_end(self, args, state, control, **kwargs):
        self._is_behind = self._is_behind or not self.was_skipped()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._enter()

    @torch.no_grad()
    def _enter(self) -> None:
        if not self._is_behind or not all_finite(self._named.values(), []):
            return
        self._is_behind = False
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = [weight.detach().float() for weight in self._named.values()]
        get_ema_multi_avg_fn(decay)(self._averages, weights, self.steps)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average for its weights; afterwards it has its own again, bit by bit."""
        self._enter()
        with torch.no_grad():
            own = [weight.detach().clone() for weight in self._named.values()]
            torch._foreach_copy_(list(self._named.values()), self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._named.values()), own)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        loss = (metrics or {}).get(METRIC, math.nan)
        if self.keeps_best and state.global_step and loss < (math.inf if self.best is None else self.best.loss):
            copies = [average.to("cpu", copy=True) for average in self._averages]
            self.best = BestAverage(loss, state.global_step, copies)

    def go_back_to_best(self) -> None:
        """Be the average of the best evaluation from now on; where there was none, stay as it is."""
        if self.best is None:
            return
        self._went_back, self._is_behind = True, False  # the model's weights, of another step by now, do not enter
        for average, best in zip(self._averages, self.best.averages, strict=True):
            average.copy_(best)

    def step(self, state: TrainerState) -> int:
        """Return the step that it is the average of."""
        return self.best.step if self._went_back else state.global_step

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint, and the best one where it is kept."""
        self._enter()
        save_file(dict(zip(self._named, self._averages, strict=True)), folder / FILE, metadata={COUNT: str(self.steps)})
        if self.best is not None:
            about = {STEP: str(self.best.step), LOSS: self.best.loss.hex()}
            save_file(dict(zip(self._named, self.best.averages, strict=True)), folder / BEST_FILE, metadata=about)

    def resume(self, folder: Path) -> None:
        """Take up the averages of a checkpoint; without one it begins with the checkpoint's weights, which is told.

        Raises:
            ValueError: the file is of other parameters.
        """
        self._is_behind = False
        if not (folder / FILE).is_file():
            logger.warning("%s has no average of the weights: it begins with its weights", folder)
            torch._foreach_copy_(self._averages, [weight.detach().float() for weight in self._named.values()])
            return
        averages, about = self._read(folder / FILE)
        torch._foreach_copy_(self._averages, averages)
        self.steps = int(about[COUNT])
        if self.keeps_best and (folder / BEST_FILE).is_file():
            averages, about = self._read(folder / BEST_FILE)
            self.best = BestAverage(float.fromhex(about[LOSS]), int(about[STEP]), averages)

    def _read(self, path: Path) -> tuple[list[torch.Tensor], dict[str, str]]:
        """Return the tensors of a file, in the order of the parameters, and what it says about them."""
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != self._named.keys():
                raise ValueError(f"{path} is of other parameters than the model's.")
            return [file.get_tensor(name) for name in self._named], file.metadata()
