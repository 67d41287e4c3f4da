"""An exponential moving average of the weights (EMA, Polyak averaging), kept beside the weights that are trained.

After step n the average moves by 1 - d towards the weights, with d = min(decay, (1 + n) / (10 + n)): without the ramp a
short run would be averaged with its random beginning. Averages are float32, whatever the weights are.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from .rolling_copy import all_finite

logger = logging.getLogger("frankenlm.weight_average")

FILE = "ema.safetensors"
COUNT = "steps"


class WeightAverage(TrainerCallback):
    """The average of a model's trainable parameters.

    Weights enter it when the next step is taken, or when the average is asked for: a step that poisoned them, which the
    gradient guard then takes back, leaves no trace.

    Args:
        model: its parameters are averaged. decay: in (0, 1).
        was_skipped: asked behind each step, whether it left the weights as they were.
    """

    def __init__(self, model: nn.Module, decay: float, was_skipped: Callable[[], bool]):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay}: expected a number between 0 and 1, such as 0.999.")
        self.decay, self.was_skipped = decay, was_skipped
        self.steps = 0
        self._named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = [weight.detach().float().clone() for weight in self._named.values()]
        self._is_behind = False  # whether the last step's weights have not entered

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

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        self._enter()
        save_file(dict(zip(self._named, self._averages, strict=True)), folder / FILE, metadata={COUNT: str(self.steps)})

    def resume(self, folder: Path) -> None:
        """Take up the average of a checkpoint; without one it begins with the checkpoint's weights, which is told.

        Raises:
            ValueError: the file is of other parameters.
        """
        self._is_behind = False
        if not (folder / FILE).is_file():
            logger.warning("%s has no average of the weights: it begins with its weights", folder)
            torch._foreach_copy_(self._averages, [weight.detach().float() for weight in self._named.values()])
            return
        with safe_open(folder / FILE, framework="pt") as file:
            if set(file.keys()) != self._named.keys():
                raise ValueError(f"{folder / FILE} is of other parameters than the model's.")
            for name, average in zip(self._named, self._averages, strict=True):
                average.copy_(file.get_tensor(name))
            self.steps = int(file.metadata()[COUNT])
