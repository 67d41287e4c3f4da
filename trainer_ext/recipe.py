"""The steps of a training run after its checks, in the order in which scripts/train.py takes them.

Prepare the text, build the model, count tokens, build the trainer. What a user can get wrong about data and model is
found in the first two, before training starts.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
)

from .analysis.step_times import StepTimes
from .analysis.timing_file import FILE as TIMING
from .arguments import FrankenTrainingArguments
from .callbacks import DrawnWindow, ExplorationSchedule, MaskingEpochs, SignalStop
from .common.cli import UserError, is_main_process, user_mistakes
from .common.folder_lock import locked_folder
from .common.objectives import form_of_text
from .data.chat import prepare_conversations
from .data.chat_templates import set_chat_template
from .data.collators import build_collator
from .data.epochs import with_random_offsets
from .data.splits import (
    count_tokens,
    has_messages,
    is_conversations,
    iter_texts,
    label_names,
    load_splits,
    prepare_dataset,
)
from .data.tokenizers import load_tokenizer, special_token_ids
from .losses.teaching import Teaching
from .metrics.language import unigram_cross_entropy
from .optim.early_stopping import EarlyStopping
from .optim.guard import GradientGuard
from .optim.guard_policy import read_policy
from .optim.schedule import TwoStages
from .optim.ternary_start import TernaryStart
from .preflight import documents_stay_apart, has_two_directions
from .presets import RunSettings
from .requirements import needed_packages
from .resuming import check_data, fingerprint, fingerprint_weights, run_settings
from .saving.checkpoint_record import RunRecord
from .saving.saved_checkpoints import STATE, SavedCheckpoint, checkpoint_folders
from .saving.training_csv import CsvLog
from .trainer import FrankenTrainer

logger = logging.getLogger("frankenlm.recipe")

# What a stream's unigram statistics and a trained tokenizer are estimated from.
STREAM_SAMPLE = 2_000
TOKENIZER_DOCUMENTS = 100_000


@dataclass(frozen=True)
class PreparedData:
    """Tokenised text, the tokenizer, and the label names (none unless classification)."""

    train: Any
    validation: Any
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]


@dataclass(frozen=True)
class Unigram:
    """Token counts of the training text (V,), sums of both texts, and the cross-entropy in nats per token."""

    counts: torch.Tensor
    train_tokens: int
    validation_tokens: int
    cross_entropy: float


@contextlib.contextmanager
def hold_output_dir(run: RunSettings, found: Sequence[Path]) -> Iterator[None]:
    """Make the output folder and hold it against other runs.

    Args:
        found: the checkpoints in it when it was looked at.
    Raises:
        UserError: another run holds the folder, or has written into it since.
    """
    output_dir = Path(run.training.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with locked_folder(output_dir):
        if checkpoint_folders(output_dir) != found:
            raise UserError(f"--output_dir {output_dir}: another run has written into it meanwhile; start again.")
        yield


def compare_data(run: RunSettings, checkpoint: SavedCheckpoint | None, data: PreparedData) -> dict[str, str]:
    """Return the fingerprints of the rows, after comparing them with those that a checkpoint's run was trained on.

    Raises:
        UserError: they differ, without --allow_inexact_resume.
    """
    if checkpoint is None and not is_main_process():
        return {}  # the record is rank 0's
    sides = {"train": data.train, "validation": data.validation}
    prints = {name: fingerprint(rows, run.data.streaming) for name, rows in sides.items()}
    if checkpoint is not None:
        check_data(run, checkpoint.record, prints)
    return prints


def compare_teacher(run: RunSettings, checkpoint: SavedCheckpoint | None, teaching: Teaching) -> dict[str, str]:
    """Return the fingerprint of the teacher, after comparing it with that of a checkpoint's run.

    Raises:
        UserError: they differ, without --allow_inexact_resume.
    """
    prints = {"teacher": fingerprint_weights(teaching.model)}
    if checkpoint is not None:
        check_data(run, checkpoint.record, prints)
    return prints


def check_first_batch(run: RunSettings, data: PreparedData) -> None:
    """Raises UserError where --dataloader_drop_last leaves no batch at all."""
    training = run.training
    if run.data.streaming or not training.dataloader_drop_last:
        return
    needed = training.per_device_train_batch_size * training.world_size
    if len(data.train) < needed:
        raise UserError(
            f"--dataloader_drop_last leaves nothing to train on: the data makes {len(data.train)} rows of --max_length "
            f"{run.data.max_length}, and a batch takes {needed}; lower --batch_size, or leave the flag out."
        )


def prepare_data(run: RunSettings, checkpoint: SavedCheckpoint | None) -> PreparedData:
    """Load, split, tokenise and pack the text. Rank 0 does the work; the others then read what it left.

    Raises:
        UserError: data or tokenizer are missing, damaged or do not fit the settings.
    """
    data, training = run.data, run.training
    with user_mistakes(), training.main_process_first(local=False, desc="data"):
        splits = load_splits(
            data.dataset,
            validation=data.validation_dataset,
            validation_fraction=data.validation_fraction,
            seed=data.split_seed,
            streaming=data.streaming,
            text_column=data.text_column,
            label_column=data.label_column if data.objective == "classification" else None,
            max_documents=data.max_documents,
            join_articles=data.join_articles,
            skip_bad_rows=data.skip_bad_rows,
            record_form=data.record_form if data.objective == "causal" else "text",
            cache_dir=data.cache_dir,
        )
        if data.random_offsets and is_conversations(splits["train"]):
            raise UserError(f"--random_offsets: {data.dataset} holds conversations, a row each, without cuts to move.")
        tokenizer = prepare_tokenizer(run, splits["train"], checkpoint)
        apart = documents_stay_apart(run)
        tokenised = {name: tokenise(run, name, split, tokenizer, apart) for name, split in splits.items()}
        labels = label_names(splits["train"]) if data.objective == "classification" else []
    return PreparedData(tokenised["train"], tokenised["validation"], tokenizer, labels)


def tokenise(run: RunSettings, name: str, split: Any, tokenizer: PreTrainedTokenizerBase, apart: bool) -> Any:
    """Return the rows of ids of a split: conversations with labels on their answers, or texts as the objective asks.

    Args:
        apart: packed documents see nothing of each other.
    """
    data = run.data
    shared = {"max_length": data.max_length, "cache_dir": data.cache_dir, "num_proc": data.num_proc}
    if is_conversations(split):
        return prepare_conversations(split, tokenizer, name=name, skip_bad_rows=data.skip_bad_rows, **shared)
    return prepare_dataset(
        split,
        tokenizer,
        packing=data.packing,
        document_borders=apart,
        objective=form_of_text(data.objective, has_two_directions(run)),
        **shared,
    )


def prepare_tokenizer(run: RunSettings, train_split, checkpoint: SavedCheckpoint | None) -> PreTrainedTokenizerBase:
    """The run's tokenizer: the checkpoint's when resuming, else as asked for.

    Rank 0 of several leaves it in the output folder, where the others find it: a trained one is made once.
    """
    output_dir = Path(run.training.output_dir)
    spec = run.model.tokenizer or run.model.model_name_or_path or run.model.teacher or "train"
    if checkpoint is not None:
        spec = str(checkpoint.folder)
    elif not is_main_process():
        spec = str(output_dir)
    documents = itertools.islice(iter_texts(train_split), TOKENIZER_DOCUMENTS)
    tokenizer = load_tokenizer(
        spec,
        documents=documents,
        vocab_size=run.model.vocab_size,
        objective=form_of_text(run.data.objective, has_two_directions(run)),
        pad_is_new=not (run.model.lora or run.model.teacher),
    )
    choice = run.data.chat_template
    if has_messages(train_split) or (choice is not None and is_conversations(train_split)):
        set_chat_template(tokenizer, choice)
    elif choice is not None:
        raise UserError(f"--chat_template {choice}: {run.data.dataset} holds texts, no conversations.")
    if is_main_process() and run.training.world_size > 1:
        tokenizer.save_pretrained(output_dir)
    return tokenizer


def build_trainer(
    run: RunSettings,
    data: PreparedData,
    model: PreTrainedModel,
    stop: SignalStop,
    checkpoint: SavedCheckpoint | None,
    prints: Mapping[str, str],
) -> tuple[FrankenTrainer, CsvLog]:
    """Build the trainer with its callbacks; a new run evaluates before its first step.

    Args:
        prints: fingerprints of the rows.
    Raises:
        UserError: something that Trainer needs for these arguments is missing, or a guard that cannot be had.
    """
    training = run.training
    training.eval_on_start = training.eval_on_start or checkpoint is None
    classification = run.data.objective == "classification"
    collator = build_collator(
        run.data.objective,
        data.tokenizer,
        mlm_probability=run.data.mlm_probability,
        causal_share=run.data.causal_share,
        seed=training.seed,
        two_directions=has_two_directions(run),
    )
    rows, training_collator = data.train, collator
    if run.data.random_offsets:
        with user_mistakes():
            rows, training_collator = with_random_offsets(
                rows, collator, data.tokenizer, max_length=run.data.max_length, seed=training.seed
            )
    with needed_packages():
        trainer = FrankenTrainer(
            model=model,
            args=training,
            train_dataset=rows,
            eval_dataset=data.validation,
            processing_class=data.tokenizer,
            data_collator=training_collator,
            eval_collator=collator.for_evaluation(),
            compute_metrics=accuracy if classification else None,
        )
    trainer.checkpoints.record = RunRecord(run_settings(run), prints)
    trainer.causal_share = run.data.causal_share
    trainer.take_given_rates = training.allow_inexact_resume
    state = saved_state(checkpoint)
    times = StepTimes(Path(training.output_dir) / TIMING, state and state.global_step).attach(trainer)
    csv_log = CsvLog(Path(training.output_dir) / "training.csv", state)
    callbacks = [MaskingEpochs(training_collator), csv_log, stop]
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(training.early_stopping_patience))
    if hasattr(model, "set_exploration"):
        callbacks.append(ExplorationSchedule())
    if training.attention_window_range is not None:
        callbacks.append(DrawnWindow(*training.attention_window_range, training.seed))
    if training.learning_rate_drop < 1 or training.weight_decay_share < 1:
        callbacks.append(TwoStages(training.learning_rate_drop, training.weight_decay_share))
    if training.ternary_start:
        callbacks.append(TernaryStart(training.ternary_start))
    for callback in callbacks:
        trainer.add_callback(callback)
    if training.ema_decay is not None:
        trainer.take_average(training.ema_decay)
    if training.gradient_guard and training.sharding:
        if is_main_process():
            logger.warning("the gradient guard is off: under %s no process holds a whole gradient", training.sharding)
    elif training.gradient_guard:
        with user_mistakes():
            trainer.take_guard(GradientGuard(read_policy(training.guard_policy)))
        times.watch_guard(trainer.guard)
    return trainer, csv_log


def use_hardware(args: FrankenTrainingArguments) -> None:
    """Give the processes of a run on the CPU its cores, and say what the run trains on.

    `accelerate launch` without a configuration file sets OMP_NUM_THREADS=1, which would leave the other cores idle.
    """
    if args.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(args.cpu_threads or max(cores // processes, 1))
    precision = {"no": "fp32"}.get(args.mixed_precision, args.mixed_precision)
    logger.info(
        "%d process(es) on %s, %s, %d thread(s)", args.world_size, args.device.type, precision, torch.get_num_threads()
    )


def saved_state(checkpoint: SavedCheckpoint | None) -> TrainerState | None:
    """The state of the trainer that wrote a checkpoint."""
    return None if checkpoint is None else TrainerState.load_from_json(str(checkpoint.folder / STATE))


def accuracy(prediction) -> dict[str, float]:
    """Share of documents whose most probable class is their label."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def unigram_statistics(run: RunSettings, data: PreparedData, vocab_size: int) -> Unigram:
    """Count the tokens that can be predicted, in both texts (in a sample of each, when they are streams)."""
    exclude = special_token_ids(data.tokenizer) if run.data.objective == "mlm" else ()
    counts, held_out = (
        count_tokens(split.take(STREAM_SAMPLE) if run.data.streaming else split, vocab_size, exclude=exclude)
        for split in (data.train, data.validation)
    )
    return Unigram(counts, int(counts.sum()), int(held_out.sum()), float(unigram_cross_entropy(counts, held_out)))


def set_head_bias(model: PreTrainedModel, unigram: Unigram) -> None:
    """Let fresh weights start from the unigram distribution, where the configuration asks for it."""
    if hasattr(model, "set_unigram_bias") and model.config.head_bias_init == "unigram" and model.config.head_bias:
        model.set_unigram_bias(unigram.counts.to(model.device))
