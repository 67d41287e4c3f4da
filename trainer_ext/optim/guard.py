"""A guard for the gradients of any `transformers.Trainer`, TRL's too: no step from numbers that are none.

    guard = GradientGuard(GuardPolicy()).attach(trainer)
    trainer.train()
    print(guard.counts, guard.stop_reason)

It looks at the accumulated gradient after backward and before clipping. What it does about NaN, Inf and norms that are
far too large or zero is `GuardPolicy`, a table of numbers; what happened in the last step is `guard.last`.
"""

import contextlib
import dataclasses
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from .gradients import GradientReport, inspect_gradients
from .guard_policy import GuardPolicy
from .rolling_copy import RollingCopy, all_finite
from .sign_training import SideBySide

logger = logging.getLogger("frankenlm.guard")

# What can be done about a vanishing gradient, by the field of a configuration that has to be there for it.
MITIGATIONS = {
    "initializer_range": "a larger initializer_range",
    "hidden_act": "another hidden_act (silu, gelu)",
    "norm_style": "norm_style=pre, whose residual stream is not normalised away",
    "ode_steps": "fewer ode_steps",
}

# What is done about a step, from nothing to the gravest.
ACTIONS = ("none", "vanishing", "clip", "retry", "rollback", "skip")


@dataclass
class StepRecord:
    """What the guard saw in one step, before it did one of ACTIONS."""

    grad_norm: float
    has_nan: bool
    has_inf: bool
    has_zero: bool
    repair_action: str
    rate: float  # factor on the learning rate


class GradientGuard(TrainerCallback, ExportableState):
    """See the module. One guard watches one trainer."""

    def __init__(self, policy: GuardPolicy | None = None):
        self.policy = GuardPolicy() if policy is None else policy
        self.last: StepRecord | None = None
        self.undo: list[Callable[[], None]] = []  # called before a step is computed again or left out
        self.counts: Counter[str] = Counter()
        self.stop_reason: str | None = None
        self.rate = 1.0  # what the learning rate is multiplied with
        self._lowest = 1.0  # what it was lowered to last
        self.failures = 0  # batches skipped in a row
        self.skipped = False  # whether the step that is under way has no gradient left
        self._exploding_epochs = 0
        self._exploded_in_epoch = False
        self._vanished_since_evaluation = False
        self._vanished_evaluations = 0
        self._best_loss: float | None = None
        self._told_vanishing = False
        self._batches: list[tuple[dict, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._randomness: dict | None = None
        self._rates: list[float] | None = None
        self._window: list[StepRecord] = []  # since the last log event

    def attach(self, trainer: Trainer) -> "GradientGuard":
        """Watch a trainer: its training_step and its log are wrapped, and the guard becomes one of its callbacks.

        Raises:
            ValueError: the trainer has a guard already, or shards its parameters (FSDP, DeepSpeed), where no
                process sees a whole gradient.
        """
        if any(isinstance(callback, GradientGuard) for callback in trainer.callback_handler.callbacks):
            raise ValueError("this trainer has a GradientGuard already.")
        if trainer.args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "restore_callback_states_from_checkpoint: leave it out; the guard takes up its state itself."
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("GradientGuard does not work under FSDP or DeepSpeed: no process holds a whole gradient.")
        self.trainer = trainer
        self._compute, self._log = trainer.training_step, trainer.log
        trainer.training_step, trainer.log = self._training_step, self._logged
        trainer.add_callback(self)
        return self

    # --- one step

    def _training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """As the trainer's, for every micro-batch; behind the last one the gradient is looked at.

        The losses come back in one piece then, so that a repeated or skipped batch counts once or not at all.
        """
        if not self._batches:
            self._randomness = random_state()
        self._batches.append((inputs, num_items_in_batch))
        loss = self._compute(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        if not self.trainer.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        try:
            return self._guarded(model)
        finally:
            self._batches, self._losses = [], []

    def _guarded(self, model) -> torch.Tensor:
        self.skipped = False
        _set_overflow(self.trainer.optimizer, False)
        report = self._inspect(model)
        first = report
        action = "none"
        if not report.is_finite and self._scales_losses:
            # an overflow of fp16: the scaler leaves the step out and lowers its scale, for which it needs the gradient
            return self._noted(first, "skip")
        if report.has_nan:
            action, report = self._repair(model, report)
        elif not report.is_finite:
            action = "skip"
        if action != "skip" and report.is_finite:
            action = self._bound(model, report, action)
        if action == "skip":
            self._skip(model, first)
        else:
            self.failures = 0
        return self._noted(first, action)

    def _noted(self, seen: GradientReport, action: str) -> torch.Tensor:
        """Remember what was seen and done; return the loss of the step, 0 for one that is left out."""
        self.last = StepRecord(seen.norm, seen.has_nan, seen.has_inf, seen.zero > 0, action, self.rate)
        self.counts[action] += 1
        self._window.append(self.last)
        return torch.zeros_like(self._losses[-1]) if action == "skip" else torch.stack(self._losses).sum()

    @property
    def _scales_losses(self) -> bool:
        """Whether a GradScaler looks after overflow: it skips the step and lowers its scale."""
        scaler = self.trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled()

    def _inspect(self, model) -> GradientReport:
        accelerator = self.trainer.accelerator
        agree = None
        if accelerator.num_processes > 1:

            def agree(flags: torch.Tensor) -> torch.Tensor:
                return accelerator.reduce(flags.float(), "sum").double()

        scale = accelerator.scaler.get_scale() if self._scales_losses else 1.0
        return inspect_gradients(model.named_parameters(), scale=scale, agree=agree)

    def _repair(self, model, report: GradientReport) -> tuple[str, GradientReport]:
        """Compute the batch again, from elsewhere if need be; return what helped, or "skip", and the last report."""
        logger.warning(
            "step %d: the gradient holds NaN (%s)", self.trainer.state.global_step + 1, ", ".join(report.bad)
        )
        rolled_back = False
        for attempt in range(self.policy.tries):
            if attempt and self.policy.rolling_copy and self._copy.taken and not rolled_back:
                self._copy.swap()
                rolled_back = True
            self._compute_again(model)
            report = self._inspect(model)
            if report.is_finite:
                if rolled_back:
                    self._slow_down(self.policy.redo_rate)
                action = "rollback" if rolled_back else "retry"
                logger.warning("%s helped", "the parameters of before the last step" if rolled_back else "a second try")
                return action, report
        if rolled_back:
            self._copy.swap()
        return "skip", report

    def _healthy(self) -> bool:
        """Whether the parameters and optimizer states are finite, on every process."""
        mine = all_finite(self.trainer.model.parameters(), self._optimizers)
        if self.trainer.accelerator.num_processes == 1:
            return mine
        sick = torch.tensor([float(not mine)], device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(sick, "sum") == 0)

    def _compute_again(self, model) -> None:
        model.zero_grad()
        self._forget()
        self._losses = []
        accelerator = self.trainer.accelerator
        for index, (inputs, count) in enumerate(self._batches):
            last = index == len(self._batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                self._losses.append(self._compute(model, inputs, count))

    def _forget(self) -> None:
        for undo in self.undo:
            undo()

    def _bound(self, model, report: GradientReport, action: str) -> str:
        """Clip what explodes, tell what vanishes, and let the rate recover."""
        policy = self.policy
        if report.norm > policy.exploding_norm:
            logger.warning(
                "step %d: gradient norm %.3g, clipped to %g",
                self.trainer.state.global_step + 1,
                report.norm,
                policy.exploding_clip,
            )
            scale = policy.exploding_clip / report.norm
            torch._foreach_mul_(list(_gradients(model)), scale)
            self._slow_down(policy.exploding_rate)
            self._exploded_in_epoch = True
            return "clip"
        if report.norm < policy.vanishing_norm:
            self._vanished_since_evaluation = True
            self._tell_vanishing(report)
            return "vanishing"
        if action == "none":
            self.rate = min(1.0, self.rate + (1 - self._lowest) / policy.recovery_steps)
        return action

    def _slow_down(self, rate: float) -> None:
        self.rate = self._lowest = min(self.rate, rate)

    def _skip(self, model, report: GradientReport) -> None:
        """Leave everything as if the batch had not been seen, and end the run when it is the last of too many."""
        model.zero_grad()
        self._forget()
        set_random_state(self._randomness)
        if self.policy.rolling_copy and self._copy.taken and not self._healthy():
            self._copy.swap()  # the last step has poisoned them: what was before it is all there is
        self.skipped = True
        _set_overflow(self.trainer.optimizer, True)  # the schedule stands still too
        self.failures += 1
        logger.warning(
            "step %d: skipped, its gradient is not finite (norm %s)", self.trainer.state.global_step + 1, report.norm
        )
        if self.failures >= self.policy.failures_in_a_row:
            self._stop(f"{self.failures} batches in a row gave no finite gradient")

    def _tell_vanishing(self, report: GradientReport) -> None:
        if self._told_vanishing:
            return
        self._told_vanishing = True
        config = self.trainer.model.config if hasattr(self.trainer.model, "config") else None
        fitting = [text for field, text in MITIGATIONS.items() if config is not None and hasattr(config, field)]
        logger.warning(
            "step %d: the gradient has vanished (norm %.3g); what may help: %s",
            self.trainer.state.global_step + 1,
            report.norm,
            "; ".join(["a higher learning rate or a longer warm-up", *fitting]),
        )

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.trainer.control.should_training_stop = True
        self.trainer.control.should_save = True
        logger.error("stopping: %s", reason)

    # --- around the step

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if saved:
            for name, value in saved["attributes"].items():
                setattr(self, name, value)
            self.counts = Counter(self.counts)
            self._window = [StepRecord(**record) for record in self._window]
        self._optimizers = leaves(self.trainer.optimizer)
        self._copy = RollingCopy(self.trainer.model.parameters(), self._optimizers)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.skipped:
            return
        if self.policy.rolling_copy:
            self._copy.take()
        if self.rate < 1:
            groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
            self._rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = group["lr"] * self.rate

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self._rates is not None:
            groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
            self._rates = None

    def on_epoch_end(self, args, state, control, **kwargs):
        self._exploding_epochs = self._exploding_epochs + 1 if self._exploded_in_epoch else 0
        self._exploded_in_epoch = False
        if self._exploding_epochs > self.policy.exploding_epochs:
            self._stop(f"gradients exploded in {self._exploding_epochs} epochs in a row")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        loss = (metrics or {}).get("eval_loss", math.nan)
        is_better = self._best_loss is None or loss < self._best_loss
        fruitless = self._vanished_since_evaluation and not is_better
        self._vanished_evaluations = self._vanished_evaluations + 1 if fruitless else 0
        if is_better and math.isfinite(loss):
            self._best_loss = loss
        self._vanished_since_evaluation = False
        if self._vanished_evaluations >= self.policy.vanishing_evaluations:
            count = f"{self._vanished_evaluations} evaluations brought no better loss"
            self._stop(f"gradients have vanished, and {count}")

    def _logged(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As the trainer's, with what the guard saw and did since the last log event; the loss is a mean over steps
        that were taken.
        """
        if "loss" in logs and self._window:
            taken = sum(record.repair_action != "skip" for record in self._window)
            logs["loss"] = logs["loss"] * len(self._window) / taken if taken else math.nan
            for name in ("has_nan", "has_inf", "has_zero"):
                logs[name] = float(any(getattr(record, name) for record in self._window))
            logs["grad_norm"] = self._window[-1].grad_norm  # before it was clipped here
            if "learning_rate" in logs:
                logs["learning_rate"] *= self._window[-1].rate
            logs["repair_action"] = max((record.repair_action for record in self._window), key=ACTIONS.index)
            self._window = []
        return self._log(logs, *args, **kwargs)

    def state(self) -> dict:
        """What a checkpoint keeps: counters and the lowered rate."""
        names = (
            "counts",
            "rate",
            "_lowest",
            "failures",
            "_exploding_epochs",
            "_exploded_in_epoch",
            "_best_loss",
            "_vanished_since_evaluation",
            "_vanished_evaluations",
            "_told_vanishing",
        )
        attributes = {name: getattr(self, name) for name in names}
        return {
            "args": {},
            "attributes": {
                **attributes,
                "counts": dict(self.counts),
                "_window": [dataclasses.asdict(record) for record in self._window],
            },
        }


def leaves(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that hold state, below accelerate's wrapper and `SideBySide`."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return list(optimizer.optimizers) if isinstance(optimizer, SideBySide) else [optimizer]


def _set_overflow(optimizer: Optimizer, value: bool) -> None:
    """Tell accelerate's wrapper whether the step is left out: then the Trainer lets the schedule stand."""
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer._is_overflow = value


def _gradients(model) -> Iterator[torch.Tensor]:
    return (parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def random_state() -> dict:
    """The states of Python's, numpy's and torch's generators."""
    states = {"python": random.getstate(), "numpy": numpy.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_state(states: dict) -> None:
    """Go back to what `random_state` returned."""
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
