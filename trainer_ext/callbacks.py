"""What is watched while a model trains: throughput and memory, router balance, final-norm saturation, signals.

Each callback has one task. `StepWindow` collects what belongs into the next log event; `FrankenTrainer.log` drains it.
"""

import contextlib
import logging
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import unwrap_peft_model

from .common.files import written_out
from .common.signals import CaughtSignals

logger = logging.getLogger("frankenlm.training")

STARVED_EXPERT_SHARE = 0.05
SATURATION_WARNING = 0.9
# What the loss of a step with a teacher is made of, by the columns of training.csv.
TAUGHT = {"label": "label_loss", "logits": "teacher_loss", "hidden": "teacher_hidden_loss"}


class StepWindow:
    """Measurements since the last log event."""

    def __init__(self):
        self.router_batches = 0
        self.aux_loss: torch.Tensor | None = None
        self.expert_load: torch.Tensor | None = None
        self.saturation: list[torch.Tensor] = []
        self.low_bit: dict[str, float] = {}
        self.taught: dict[str, torch.Tensor] = {}  # of the last step alone
        self.total_seconds = 0.0
        self._paused_seconds = 0.0
        self._since: float | None = None
        self._tokens = 0
        self._warned: set[str] = set()
        self.mark()

    def add_routers(self, aux_loss: torch.Tensor, expert_load: torch.Tensor) -> None:
        """Add one micro-batch: balancing loss (scalar) and share of tokens per expert (logical layers, experts), or
        those of several replicas, one behind another, as nn.DataParallel gathers them."""
        expert_load = expert_load.detach().float().unflatten(0, (aux_loss.numel(), -1)).mean(0)
        aux_loss = aux_loss.detach().float().mean()
        self.aux_loss = aux_loss if self.aux_loss is None else self.aux_loss + aux_loss
        self.expert_load = expert_load if self.expert_load is None else self.expert_load + expert_load
        self.router_batches += 1

    def add_taught(self, terms: Mapping[str, torch.Tensor], parts: int) -> None:
        """Add one micro-batch of a step with a teacher: what its loss is made of, each a `parts`-th of the step's."""
        for name, term in terms.items():
            self.taught[name] = self.taught.get(name, 0.0) + term.detach().float() / parts

    def mark(self) -> None:
        """A step begins: remember what was collected before it, for `forget_step`."""
        self._marked = self.router_batches, self.aux_loss, self.expert_load
        self.taught = {}

    def forget_step(self) -> None:
        """Take back what was collected since `mark`: the step is computed again, or left out."""
        self.router_batches, self.aux_loss, self.expert_load = self._marked
        self.taught = {}

    def start(self, tokens: int) -> None:
        """Start the clock, with the number of tokens seen so far."""
        self._since, self._tokens, self._paused_seconds = time.perf_counter(), tokens, 0.0

    def export_routers(self) -> dict:
        """The router sums as plain numbers, for a checkpoint."""
        if not self.router_batches:
            return {"batches": 0}
        return {
            "batches": self.router_batches,
            "aux_loss": self.aux_loss.item(),
            "expert_load": self.expert_load.tolist(),
        }

    def restore_routers(self, saved: Mapping, device: torch.device) -> None:
        """Take up the sums of `export_routers`."""
        self.router_batches = saved["batches"]
        if self.router_batches:
            self.aux_loss = torch.tensor(saved["aux_loss"], device=device)
            self.expert_load = torch.tensor(saved["expert_load"], device=device)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the time spent here (evaluation) out of the throughput."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused_seconds += time.perf_counter() - start

    def drain(self, tokens: int, device: torch.device) -> dict[str, float]:
        """Return the measurements for a log event at `tokens` tokens seen, and start the next window."""
        values = {"peak_memory_mib": peak_memory_mib(device)}
        if self._since is not None:
            seconds = time.perf_counter() - self._since - self._paused_seconds
            self.total_seconds += seconds
            if tokens > self._tokens:
                values["tokens_per_second"] = round((tokens - self._tokens) / seconds, 1)
        if self.router_batches:
            values |= self._router_values()
        if self.saturation:
            values["norm_f_saturation"] = torch.stack(self.saturation).mean().item()
        values |= self.low_bit
        values |= {TAUGHT[name]: term.item() for name, term in self.taught.items()}
        self._warn(values)
        self.router_batches, self.aux_loss, self.expert_load, self.saturation, self.low_bit = 0, None, None, [], {}
        self.start(tokens)
        return values

    def _router_values(self) -> dict[str, float]:
        load = (self.expert_load / self.router_batches).cpu()  # (layers, experts)
        values = {"aux_loss": (self.aux_loss / self.router_batches).item()}
        for layer, shares in enumerate(load):
            values[f"expert_load_min/layer_{layer}"] = shares.min().item()
            values[f"expert_load_max/layer_{layer}"] = shares.max().item()
        values["expert_load_min"], values["expert_load_max"] = load.min().item(), load.max().item()
        return values

    def _warn(self, values: Mapping[str, float]) -> None:
        """Warn once for each cause; the numbers are in every row of training.csv."""
        starved = [
            name.removeprefix("expert_load_min/")
            for name, share in values.items()
            if name.startswith("expert_load_min/") and share < STARVED_EXPERT_SHARE
        ]
        for layer in set(starved) - self._warned:
            logger.warning(
                "%s: an expert gets %.1f %% of the tokens (under %.0f %%): raise router_aux_loss_coef if it stays so",
                layer,
                100 * values[f"expert_load_min/{layer}"],
                100 * STARVED_EXPERT_SHARE,
            )
        self._warned |= set(starved)
        saturation = values.get("norm_f_saturation", 0.0)
        if saturation > SATURATION_WARNING and "norm_f" not in self._warned:
            self._warned.add("norm_f")
            logger.warning(
                "norm_f: %.0f %% of its inputs are saturated, gradients vanish: lower the learning rate, lengthen "
                "the warm-up, or set final_norm_type to rms_norm",
                100 * saturation,
            )


def peak_memory_mib(device: torch.device) -> float:
    """Most memory this process has held so far, in MiB: CUDA allocations on a GPU, else resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform == "win32":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 2**20, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class StepClock(TrainerCallback):
    """Starts the window's clock, begins each step's count, and closes the run with a log event."""

    def __init__(self, window: StepWindow):
        self.window = window

    def on_train_begin(self, args, state, control, **kwargs):
        self.window.start(state.num_input_tokens_seen)

    def on_step_begin(self, args, state, control, **kwargs):
        self.window.mark()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True


class SaturationProbe(TrainerCallback):
    """Hooks the final norm during steps that will be logged; at other steps it costs nothing."""

    def __init__(self, window: StepWindow):
        self.window = window
        self._hook = None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        norm = final_norm(model)
        if norm is None or not hasattr(norm, "saturation") or not will_log(args, state):
            return

        def record(module, inputs):
            with torch.no_grad():
                self.window.saturation.append(module.saturation(inputs[0].detach()).float())

        self._hook = norm.register_forward_pre_hook(record)

    def on_step_end(self, args, state, control, **kwargs):
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def will_log(args, state) -> bool:
    """Whether the step that begins now ends in a log event."""
    step = state.global_step + 1
    return step % state.logging_steps == 0 or step >= state.max_steps or (step == 1 and args.logging_first_step)


class ExplorationSchedule(TrainerCallback):
    """Tells a model that explores (Infinito) how much of the training is done, before every step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.set_exploration(state.global_step / state.max_steps)


class DrawnWindow(TrainerCallback):
    """Trains every step with an attention window of its own, so that a memory has to serve what a long one would see.

    The window is drawn evenly from `lowest` to `highest` by the seed and the step alone: the same in every process, and
    when training is resumed. Evaluations in between have the configured one.
    """

    def __init__(self, lowest: int, highest: int, seed: int):
        self.lowest, self.highest, self.seed = lowest, highest, seed

    def draw(self, step: int) -> int:
        """Return the window of a step, counted from 0."""
        return random.Random(f"attention window {self.seed} {step}").randint(self.lowest, self.highest)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.set_training_window(self.draw(state.global_step))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        model.set_training_window(None)


def final_norm(model: torch.nn.Module) -> torch.nn.Module | None:
    """The norm after the last layer of one of our models; None where there is none."""
    base = unwrap_peft_model(model).base_model
    return base.norm_f if hasattr(base, "norm_f") else None


class ConsoleLog(TrainerCallback):
    """One readable line per log event, on the console and in training.log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        line = describe(logs)
        if not line:
            return
        logger.info("step %d/%d | %s", state.global_step, state.max_steps, line)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                logger.error("step %d: %s is %s", state.global_step, name, logs[name])


def describe(logs: Mapping[str, Any]) -> str:
    """Write a log event as 'name value | name value'; '' for events without a loss."""
    if "eval_loss" in logs:
        loss = logs["eval_loss"]
        parts = [f"eval loss {loss:.4f}", f"perplexity {written_out(math.exp(loss), 1)}" if loss < 50 else ""]
        if "eval_accuracy" in logs:
            parts[1] = f"accuracy {logs['eval_accuracy']:.3f}"
        if "eval_masked_loss" in logs:
            parts[1] = f"left to right {logs['eval_causal_loss']:.4f} | masked {logs['eval_masked_loss']:.4f}"
        if "eval_ema_loss" in logs:
            parts.append(f"of the average {logs['eval_ema_loss']:.4f}")
    elif "loss" in logs:
        formats = {
            "loss": "loss {:.4f}",
            "label_loss": "of the labels {:.4f}",
            "teacher_loss": "of the teacher {:.4f}",
            "teacher_hidden_loss": "of its hidden states {:.4f}",
            "learning_rate": "lr {:.2e}",
            "grad_norm": "grad norm {:.2f}",
            "tokens_per_second": "{:,.0f} tokens/s",
        }
        parts = [text.format(logs[name]) for name, text in formats.items() if name in logs]
    else:
        return ""
    return " | ".join(part for part in parts if part)


class MaskingEpochs(TrainerCallback):
    """Tells a masking collator which epoch it is in. Without it every epoch would mask the same positions."""

    def __init__(self, collator):
        self.collator = collator
        self.next_epoch: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.next_epoch = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        # state.epoch counts whole passes only where the data has a length; of a stream, passes are counted here.
        epoch = int(state.epoch or 0) if self.next_epoch is None else self.next_epoch
        if hasattr(self.collator, "set_epoch"):
            self.collator.set_epoch(epoch)
        self.next_epoch = epoch + 1


class LossWindow(TrainerCallback, ExportableState):
    """Carries the sums since the last log event across an interruption, so that the curves have no seam.

    With several processes it carries rank 0's share, an estimate of the mean.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def state(self) -> dict:
        loss_sum = 0.0 if self.trainer._tr_loss is None else self.trainer._tr_loss.item()
        return {
            "args": {},
            "attributes": {
                "loss_sum": loss_sum,
                "last_logged_step": self.trainer._globalstep_last_logged,
                "routers": self.trainer.window.export_routers(),
            },
        }

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if saved:
            self.trainer._tr_loss += saved["attributes"]["loss_sum"]
            self.trainer._globalstep_last_logged = saved["attributes"]["last_logged_step"]
            self.trainer.window.restore_routers(saved["attributes"]["routers"], args.device)


class ProgressBar(ProgressCallback):
    """transformers' progress bars without its printing: `ConsoleLog` does that."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass

    def on_prediction_step(self, args, state, control, **kwargs):
        """As the base class; a second pass over the batches, of the average of the weights, begins the bar anew."""
        if self.prediction_bar is not None and self.prediction_bar.n >= self.prediction_bar.total:
            self.prediction_bar.reset()
        super().on_prediction_step(args, state, control, **kwargs)


class SignalStop(TrainerCallback):
    """SIGTERM and SIGINT end a single-process run after the current step, with a checkpoint to resume from.

    With several processes the signal reaches them at different steps, and a checkpoint needs them at the same one:
    there the first signal ends the run at once, as it does outside of training, and as a second signal always does.
    """

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.signum: int | None = None
        self.training = False
        self._caught = CaughtSignals((signal.SIGTERM, signal.SIGINT), self._receive)

    def __enter__(self) -> "SignalStop":
        self._caught.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._caught.let_go()

    def _receive(self, signum, frame):
        if self.signum is not None or self.world_size > 1 or not self.training:
            raise SystemExit(128 + signum)
        self.signum = signum
        logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(signum).name)

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.signum is not None:
            control.should_save = True
            control.should_training_stop = True
