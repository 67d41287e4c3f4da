"""Training a damaged model with FrankenTrainer, from where it was stopped."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, default_data_collator

from frankenlm.trainer_ext.arguments import FrankenTrainingArguments
from frankenlm.trainer_ext.saving.saved_checkpoints import checkpoint_folders, step_of
from frankenlm.trainer_ext.trainer import FrankenTrainer

from .settings import RecoverySettings


class OnTheWay(TrainerCallback):
    """Calls `look` with the number of steps that were taken, after each."""

    def __init__(self, look: Callable[[int], None]):
        self.look = look

    def on_step_end(self, args, state, control, **kwargs):
        self.look(state.global_step)


def train_on(
    model: nn.Module, rows: Dataset, settings: RecoverySettings, seed: int, folder: Path, look: Callable[[int], None]
) -> None:
    """Train to the last step, with a checkpoint in `folder` every `settings.every` steps, and from the newest there.

    Args:
        look: is called after every step; what it raises ends the training, which goes on later.
    """
    args = FrankenTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        warmup_steps=0,
        save_strategy="steps",
        save_steps=settings.every,
        save_total_limit=1,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=next(model.parameters()).device.type == "cpu",
        log_level="warning",
        include_num_input_tokens_seen="no",
    )
    trainer = FrankenTrainer(model=model, args=args, train_dataset=rows, data_collator=default_data_collator)
    trainer.add_callback(OnTheWay(look))
    found: Sequence[Path] = checkpoint_folders(folder)
    trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)


def steps_kept(folder: Path) -> int:
    """Return after how many steps training would go on; 0 without a checkpoint."""
    found = checkpoint_folders(folder)
    return step_of(found[-1]) if found else 0


def forget_training(folder: Path) -> None:
    """Remove the checkpoints of a cell that is done."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def put_back(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Yield what puts all weights and settings back as they are now, bit for bit; so does the end."""
    with torch.no_grad():
        kept = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
    # Trainer writes its tokenizer's special tokens and a flag for caches into these
    notes = [(holder, dict(vars(holder))) for holder in (model.config, model.generation_config)]
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def restore() -> None:
        for name, value in model.state_dict().items():
            value.copy_(kept[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])
            parameter.grad = None
        for holder, values in notes:
            vars(holder).clear()
            vars(holder).update(values)
        model.eval()

    try:
        yield restore
    finally:
        restore()
