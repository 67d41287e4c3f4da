"""The second half of a low-bit run: a lower learning rate and no weight decay.

Recipe: "The Era of 1-bit LLMs: Training Tips, Code and FAQ" (Microsoft, 2024), sections on learning rate and weight
decay. A smaller step lets codes near a rounding threshold settle; decay would keep pulling them across it.
"""

import functools
from collections.abc import Callable

from accelerate.scheduler import AcceleratedScheduler
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback


class TwoStages(TrainerCallback):
    """Multiplies any schedule by `learning_rate_drop` from the middle of the run on, and ends weight decay at
    `weight_decay_share` of it.

    Raises (when training begins):
        ValueError: the schedule is not a function of the step, so that there is nothing to multiply.
    """

    def __init__(self, learning_rate_drop: float, weight_decay_share: float):
        self.learning_rate_drop = learning_rate_drop
        self.weight_decay_share = weight_decay_share

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        if self.learning_rate_drop == 1:
            return
        schedule = lr_scheduler.scheduler if isinstance(lr_scheduler, AcceleratedScheduler) else lr_scheduler
        if not isinstance(schedule, LambdaLR):
            raise ValueError(
                f"--learning_rate_drop {self.learning_rate_drop} needs a schedule that depends on the step alone, not "
                f"{type(schedule).__name__}: use --lr_scheduler_type linear, cosine or constant_with_warmup."
            )
        wrap = functools.partial(dropped, at=state.max_steps // 2, factor=self.learning_rate_drop)
        schedule.lr_lambdas = [wrap(factor_of) for factor_of in schedule.lr_lambdas]

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step >= self.weight_decay_share * state.max_steps:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0


def dropped(factor_of: Callable[[int], float], at: int, factor: float) -> Callable[[int], float]:
    """Return the schedule `factor_of(step)`, multiplied by `factor` from step `at` on."""
    return lambda step: factor_of(step) * (factor if step >= at else 1.0)
