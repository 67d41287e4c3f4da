"""Full precision first, low bits later: layers that round their weights take them as they are until a given step.

Paper: Nielsen et al. 2025, "Continual Quantization-Aware Pre-Training: When to transition from 16-bit to 1.58-bit
pre-training for BitNet language models?", arXiv:2502.11895. There the optimizer's state is kept across the transition:
the jump of the loss is smaller than with a fresh one, and what is left of either is gone a little later. Here it is
kept, so that nothing happens at the switch but the rounding.
Differs from the paper: the parameter-free norm of BitLinear's input stays on from the first step, so that the switch
rounds and does not change the network besides; and there is no phase of partial rounding, which the paper finds to
matter no more.
"""

import logging
import math

from transformers import TrainerCallback

from ..common.cli import UserError, is_main_process
from ..ternary_stats import low_bit_layers

logger = logging.getLogger("frankenlm.training")


def starting_step(start: float, steps: int) -> int:
    """Return how many steps of `steps` come before the rounding: `start` itself, or a share of all if below 1.

    Raises:
        UserError: none would be left; or `start` is above 1 and no whole number.
    """
    if start >= 1 and start % 1:
        raise UserError(f"--ternary_start {start}: a share below 1, or a whole number of steps.")
    # 0.07 * 100 is 7.000000000000001, which is 7 steps and no eighth
    first = math.ceil(round(start * steps, 6)) if start < 1 else int(start)
    if first >= steps:
        raise UserError(
            f"--ternary_start {start:g}: the run has {steps} steps, and none of them would train rounded weights; give "
            "a share below 1, or fewer steps."
        )
    return first


class TernaryStart(TrainerCallback):
    """Lets the low-bit layers of a model train unrounded before `start`, a share of all steps or a number of them.

    It goes by the number of steps done alone, so a resumed run is where it was. Evaluations and checkpoints before the
    start are of the rounded weights, since that is what they would be used as.

    Raises (when training begins):
        UserError: the run is too short, or the model rounds nothing.
    """

    def __init__(self, start: float):
        self.start = start
        self.first = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not low_bit_layers(model):
            raise UserError(f"--ternary_start {self.start:g}: this model has no low-bit layers that could start later.")
        self.first = starting_step(self.start, state.max_steps)
        if state.global_step < self.first and is_main_process():
            logger.info(
                "low-bit layers train unrounded until step %d of %d; evaluations and checkpoints before it are of the "
                "rounded weights, as they would be used",
                self.first,
                state.max_steps,
            )

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.first and is_main_process():
            logger.info("from step %d on the low-bit layers round their weights", self.first + 1)
        _train_unrounded(model, state.global_step < self.first)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        _train_unrounded(model, False)


def _train_unrounded(model, unrounded: bool) -> None:
    for layer in low_bit_layers(model).values():
        layer.trains_unrounded = unrounded
