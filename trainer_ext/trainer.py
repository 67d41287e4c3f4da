"""FrankenTrainer: `transformers.Trainer`, extended at its own seams.

What differs: weight decay spares what the model says, the evaluation loss is the mean over tokens (exact with one
process; with several, samples repeated to fill the last batch count twice), and log events carry router balance,
final-norm saturation, the codes of low-bit layers, throughput and memory. Ternary weights may learn without master
weights (`sign_training.py`). (The gradient seam, `_clip_grad_norm`, is left to the base class.)
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import unwrap_peft_model

from frankenlm.modeling.outputs import IGNORED_LABEL

from .callbacks import ConsoleLog, LossWindow, ProgressBar, SaturationProbe, StepClock, StepWindow
from .common.redaction import without_secrets
from .data.collators import CAUSAL_SHARE
from .data.epochs import PLACE, EpochLengthSampler
from .losses.evaluation_sums import EvaluationSums, rows_of_each_way
from .losses.loss_conduct import LossConduct, ask_model, smoothing_term
from .losses.teaching import PROJECTION, Teaching
from .optim.early_stopping import EarlyStopping
from .optim.galore import GaLoreAdamW, beside_adamw, hidden_matrices, muon
from .optim.guard import GradientGuard
from .optim.sign_training import SideBySide, build_code_optimizer, without_gradient
from .optim.weight_average import WeightAverage
from .saving.safe_checkpoints import SafeCheckpoints
from .sharding import as_saved, give_scalars_a_dimension, shard_on_cpu
from .ternary_stats import LowBitProbe

logger = logging.getLogger("frankenlm.trainer")

# What a group of an optimizer holds of the arguments, and a checkpoint would bring back.
RATES = frozenset({"lr", "initial_lr", "weight_decay", "betas", "eps", "scale", "update_gap"})


class FrankenTrainer(Trainer):
    """Trainer of the recipes; takes the arguments of `transformers.Trainer` and one more.

    Args:
        eval_collator: collator of the evaluation batches; None uses `data_collator`.

    checkpoints: how they are written, and what they tell of the run. take_given_rates: whether a resumed run goes by
    the learning rate, decay and betas of its arguments where the checkpoint has others. causal_share: how much of the
    evaluation loss, where rows are evaluated in both directions, is of those read left to right.
    """

    # Trainer sets these when training begins; they may be asked for before.
    _tr_loss: torch.Tensor | None = None
    _globalstep_last_logged = 0
    current_gradient_accumulation_steps = 1

    def __init__(self, model=None, args=None, *more, eval_collator: Callable | None = None, **kwargs):
        has_cache_flag = hasattr(model, "config") and hasattr(model.config, "use_cache")
        self._saved_use_cache = model.config.use_cache if has_cache_flag else None
        super().__init__(model, args, *more, **kwargs)
        self._scalars = give_scalars_a_dimension(self.model) if self.is_fsdp_enabled else frozenset()
        self.checkpoints = SafeCheckpoints().attach(self)
        self.take_given_rates = False
        self.label_smoother = None  # the base class's shifts by class name and drops the model's other losses
        self._conduct: LossConduct | None = None
        self.eval_collator = eval_collator
        self.guard: GradientGuard | None = None
        self.average: WeightAverage | None = None
        self.teaching: Teaching | None = None
        self.window = StepWindow()
        self._eval_sums = EvaluationSums()
        self.causal_share = CAUSAL_SHARE
        probes = (SaturationProbe(self.window), LowBitProbe(self.window))
        for callback in (StepClock(self.window), *probes, LossWindow(self), ConsoleLog()):
            self.add_callback(callback)
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())

    def create_accelerator_and_postprocess(self) -> None:
        """As the base class; processes on CPUs shard too, where FSDP is asked for."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled |= shard_on_cpu(self.args, self.accelerator)

    def take_guard(self, guard: GradientGuard) -> None:
        """Let a guard watch the gradients; what a step that is not taken has collected is forgotten."""
        self.guard = guard.attach(self)
        guard.undo.append(self.window.forget_step)

    def take_average(self, decay: float) -> None:
        """Keep a moving average of the weights, which is evaluated and saved beside them; at the end it is that of its
        own best evaluation, where the weights are those of theirs.
        """
        self.average = WeightAverage(
            self.model,
            decay,
            lambda: self.accelerator.optimizer_step_was_skipped,
            keeps_best=self.args.load_best_model_at_end,
        )
        self.add_callback(self.average)

    def take_teacher(self, teaching: Teaching) -> None:
        """Let a teacher have its part in the training loss; evaluations are of the model's own."""
        self.teaching = teaching
        teaching.model.to(self.args.device)
        self.add_callback(teaching)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters that decay: all but those the model exempts."""
        inside = unwrap_peft_model(model)  # it names its parameters as it knows them, without an adapter's prefix
        if not hasattr(inside, "no_weight_decay_names"):
            return super().get_decay_parameter_names(model)
        names = inside.no_weight_decay_names()
        exempt = {id(parameter) for name, parameter in inside.named_parameters() if name in names}
        return [name for name, parameter in model.named_parameters() if id(parameter) not in exempt]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """As the base class; with --matrix_optimizer, or a sign mode of --ternary_training, matrices get their own."""
        mode = self.args.ternary_training
        if self.optimizer is None and self.args.matrix_optimizer != "same":
            self.optimizer = self._matrix_optimizer(self.model if model is None else model)
        if self.optimizer is not None or mode == "ste":
            return super().create_optimizer(model)
        options = {"sign": self.args.ternary_sign} if mode == "sign_legacy" else {}
        codes = build_code_optimizer(mode, self.model if model is None else model, **options)
        with without_gradient(weight for group in codes.param_groups for weight in group["params"]):
            others = super().create_optimizer(model)
        self.optimizer = SideBySide(others, codes)
        return self.optimizer

    def _matrix_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """GaLore or Muon for the matrices inside the layers, AdamW for everything else."""
        args = self.args
        groups = [
            {name: group[name] for name in ("params", "weight_decay")}
            for group in super().create_optimizer(model).param_groups
        ]
        chosen = hidden_matrices(model)
        matrices = {id(weight) for name, weight in model.named_parameters() if name in chosen}
        projected = {"update_gap": args.galore_update_gap, "scale": args.galore_scale}
        projected |= {"rank": args.galore_rank, "projection": args.galore_projection, "bits": args.galore_bits}
        adamw = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        if args.matrix_optimizer == "muon":
            return beside_adamw(groups, matrices, lambda theirs: muon(theirs, args.learning_rate), **adamw)
        return beside_adamw(groups, matrices, lambda theirs: GaLoreAdamW(theirs, **adamw, **projected), **adamw)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        """The model's loss; while training, with label smoothing, a teacher's part, and the routers' statistics
        collected on the way.
        """
        taught = self.teaching is not None and model.training
        asked = self.teaching.asks(inputs) if taught else inputs
        loss, outputs = super().compute_loss(model, asked, True, num_items_in_batch)
        if num_items_in_batch is not None and not self._conduct.divides:
            # a mean of this micro-batch, where the Trainer counts on its share of the whole batch
            loss = loss * (self._predicted(inputs["labels"]).ne(IGNORED_LABEL).sum() / _scalar(num_items_in_batch))
        if not model.training:
            return (loss, outputs) if return_outputs else loss
        if self.args.label_smoothing_factor:
            loss = loss + self.args.label_smoothing_factor * self._smoothing(inputs, outputs, num_items_in_batch)
        if taught:
            loss = self._with_teacher(loss, inputs, outputs, num_items_in_batch)
        if "aux_loss" in outputs and "expert_load" in outputs:
            self.window.add_routers(outputs["aux_loss"], outputs["expert_load"])
        return (loss, outputs) if return_outputs else loss

    def _with_teacher(self, loss, inputs, outputs, num_items_in_batch) -> torch.Tensor:
        """The loss with the teacher's part in it, on the scale of the base class's loss."""
        counted = num_items_in_batch is not None
        count = _scalar(num_items_in_batch) if counted else None
        terms = self.teaching.terms(inputs, outputs, self._loss_shifts_labels, count)
        terms = {name: self._on_its_scale(term, counted) for name, term in terms.items()}
        self.window.add_taught({"label": loss, **terms}, 1 if counted else self.current_gradient_accumulation_steps)
        return self.teaching.plan.total(loss, terms)

    def _smoothing(self, inputs, outputs, num_items_in_batch) -> torch.Tensor:
        """`smoothing_term` on the scale of the base class's loss."""
        if "logits" not in outputs or outputs["logits"] is None:
            raise ValueError("--label_smoothing_factor needs the logits, and the model does not return them.")
        count = None if num_items_in_batch is None else _scalar(num_items_in_batch)
        term = smoothing_term(outputs["logits"], inputs["labels"], self._loss_shifts_labels, count)
        return self._on_its_scale(term, count is not None)

    def _on_its_scale(self, term: torch.Tensor, counted: bool) -> torch.Tensor:
        """A term on the scale of the base class's loss: a mean over a micro-batch, or its share of the whole batch."""
        if not counted:
            return term
        # DataParallel averages its replicas' losses; several processes average their gradients
        if self.args.average_tokens_across_devices:
            return term if self.args.n_gpu > 1 else term * self.accelerator.num_processes
        return term / max(self.args.n_gpu, 1)

    def _predicted(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels that the loss asks for: without the first of each row, where it shifts them."""
        return labels[..., 1:] if self._loss_shifts_labels else labels

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """As the base class, which counts by class name; here the model is asked once, with its first batch."""
        if self._conduct is None and batch_samples and "labels" in batch_samples[0]:
            inputs = self._prepare_inputs(dict(batch_samples[0]))
            with self.compute_loss_context_manager():
                self._conduct = ask_model(self.model, inputs, self.model_accepts_loss_kwargs)
            self._loss_shifts_labels = self._conduct.shifts
        return super()._get_num_items_in_batch(batch_samples, device)

    def _remove_unused_columns(self, dataset, description: str | None = None):
        """As the base class, but what no forward names and the collator needs stays: the lengths of packed documents,
        which keep them apart, and the numbers of rows whose cuts move.
        """
        kept = {*super()._remove_unused_columns(dataset, description).column_names, "seq_lengths", PLACE}
        return dataset.remove_columns([name for name in dataset.column_names if name not in kept])

    def _get_train_sampler(self, train_dataset=None):
        """As the base class, but batching by length repeats its order when a run is resumed."""
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is not LengthGroupedSampler:
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthSampler(sampler.batch_size, lengths=sampler.lengths, seed=seed)

    def get_eval_dataloader(self, eval_dataset=None):
        """The evaluation batches, made by `eval_collator`; --dataloader_drop_last drops none of them."""
        collator, drops = self.data_collator, self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        if self.eval_collator is not None:
            self.data_collator = self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drops

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """Evaluate without touching the random numbers of training; the loss is nats over all predicted tokens, not a
        mean of batch means.

        With several processes the last batch is filled up with repeated samples, which count.
        """
        options = {"metric_key_prefix": metric_key_prefix, **kwargs}
        output = self._exact_loop(dataloader, description, *args, **options)
        if self.average is not None:
            with self.average.in_place():
                averaged = self._exact_loop(dataloader, f"{description} of the average", *args, **options)
            output.metrics[f"{metric_key_prefix}_ema_loss"] = averaged.metrics[f"{metric_key_prefix}_loss"]
        return output

    def _exact_loop(self, *args, metric_key_prefix: str, **kwargs):
        self._eval_sums = EvaluationSums()
        with self.window.pause(), own_randomness(self.args.seed):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            sums = self.accelerator.reduce(self._eval_sums.table.to(self.args.device), "sum").cpu()
        losses = EvaluationSums(sums).losses(self.causal_share)
        output.metrics.update({f"{metric_key_prefix}_{name}": loss for name, loss in losses.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the base class; also adds the batch to the exact evaluation sums, rows of two directions apart."""
        if "causal_rows" in inputs:
            parts = rows_of_each_way(inputs)
            losses = [self._counted(model, part, True, ignore_keys, row) for row, part in parts.items()]
            return torch.stack([loss for loss, *_ in losses]).mean(), None, None
        return self._counted(model, inputs, prediction_loss_only, ignore_keys)

    def _counted(self, model, inputs, prediction_loss_only, ignore_keys, row: int = 0):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None and "labels" in inputs:
            tokens = self._predicted(inputs["labels"]).ne(IGNORED_LABEL).sum().to(loss.device)
            # a loss normalised over all processes' tokens is a sum over this one's tokens, up to a common factor
            if self.model_accepts_loss_kwargs and self.args.average_tokens_across_devices:
                weight = self.accelerator.reduce(tokens, "sum") / self.accelerator.num_processes
            else:
                weight = tokens
            if weight > 0:
                self._eval_sums.add(row, loss.double() * weight, tokens)
        return loss, logits, labels

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial):
        """As the base class, which always trains on: a run whose end has come has no epoch left."""
        epoch, step = super()._init_training_state(
            max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or not self._is_over(max_steps):
            return epoch, step
        logger.info(
            "%s stands at step %d of %d: nothing is left to train",
            resume_from_checkpoint,
            self.state.global_step,
            max_steps,
        )
        return num_train_epochs, 0

    def _is_over(self, max_steps: int) -> bool:
        stopped = (
            callback.is_over(self.state)
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStopping)
        )
        return self.state.global_step >= max_steps or any(stopped)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the base class; where the run was told to differ from the checkpoint's, by the rates that it was told."""
        told = [{name: group[name] for name in group.keys() & RATES} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.average is not None:
            self.average.resume(Path(checkpoint))
        if checkpoint is not None and self.teaching is not None:
            self.teaching.resume(Path(checkpoint))
        if checkpoint is None or not self.take_given_rates:
            return
        for group, rates in zip(self.optimizer.param_groups, told, strict=True):
            group.update(rates)
        if isinstance(self.lr_scheduler, LambdaLR):
            schedule = self.lr_scheduler
            schedule.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
            for group, base, factor in zip(
                self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(schedule.last_epoch)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the base class, and the average of the weights, and a teacher's matrix."""
        super()._save_optimizer_and_scheduler(output_dir)
        for beside in (self.average, self.teaching):
            if beside is not None and self.args.should_save:
                beside.save(Path(output_dir))

    def _load_best_model(self) -> None:
        """As the base class; the average is then that of its own best evaluation."""
        super()._load_best_model()
        if self.average is not None:
            self.average.go_back_to_best()

    def save_for_later(self) -> bool:
        """Leave a checkpoint of the last finished step, as after a signal; return whether there was one to leave."""
        if not self.state.global_step:
            return False
        self.model.zero_grad()
        self._save_checkpoint(self.model, trial=None)
        return True

    def _issue_warnings_after_load(self, load_result) -> None:
        """As the base class, but silent about tied weights: a checkpoint holds them once."""
        tied = self.model.all_tied_weights_keys
        missing = [name for name in load_result.missing_keys if name not in tied and not name.startswith(PROJECTION)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As the base class, which would write secrets into training_args.bin, and into the configuration that the
        cache is off, as it is while training; a saved model should generate with it.
        """
        output_dir = self.args.output_dir if output_dir is None else output_dir
        if state_dict is not None:
            state_dict = as_saved(state_dict, self._scalars, self.model.all_tied_weights_keys)
        apart = contextlib.nullcontext() if self.teaching is None else self.teaching.apart()
        with self._as_published(), apart:
            super()._save(output_dir, state_dict)

    @contextlib.contextmanager
    def _as_published(self) -> Iterator[None]:
        args, use_cache = self.args, None
        self.args = without_secrets(args)
        if self._saved_use_cache is not None:
            use_cache, self.model.config.use_cache = self.model.config.use_cache, self._saved_use_cache
        try:
            yield
        finally:
            self.args = args
            if self._saved_use_cache is not None:
                self.model.config.use_cache = use_cache

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's measurements to the log events of training steps."""
        if "loss" in logs:
            logs.update(self.window.drain(self.state.num_input_tokens_seen, self.args.device))
        # Without start_time the base class leaves out its own tokens per second, which counts evaluations as training.
        super().log(logs)


def _scalar(num_items_in_batch: torch.Tensor | int) -> torch.Tensor | int:
    """The count itself: DataParallel is handed one for each replica."""
    return num_items_in_batch.flatten()[0] if torch.is_tensor(num_items_in_batch) else num_items_in_batch


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator seeded, then give the caller's state back: evaluations repeat, without a trace."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
