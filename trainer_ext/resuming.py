"""May a run go on from a checkpoint? Only as the run that wrote it, or with a word of the user's.

What decides the weights (settings, data, processes) is kept in every checkpoint and compared. What differs, or is
missing, is refused in one line that names it; --allow_inexact_resume goes on with a warning that names it.
"""

import dataclasses
import enum
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING

from frankenlm.modeling import read_preset

from .arguments import DataArguments, FrankenTrainingArguments
from .common.cli import UserError, is_main_process
from .common.redaction import redact_facts
from .model_arguments import ModelArguments
from .presets import RunSettings
from .saving.checkpoint_record import CheckpointRecord
from .saving.saved_checkpoints import SavedCheckpoint, examine, examined

logger = logging.getLogger("frankenlm.resuming")

FLAG = "--allow_inexact_resume"
# Rows of a stream that its fingerprint is made of.
STREAM_ROWS = 500

# What fingerprints are taken of.
PRINTS = {
    "train": "rows of the dataset",
    "validation": "rows of the validation data",
    "teacher": "weights of the teacher",
}

# What may change between the parts of a run: places, records, evaluation, when to stop, how fast data comes.
FREE_PREFIXES = ("logging_", "log_", "save_", "hub_", "eval_", "ddp_", "trackio_", "do_", "dataloader_", "include_")
FREE = frozenset(
    (
        "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_inexact_resume", "push_to_hub",
        "report_to", "run_name", "project", "disable_tqdm", "per_device_eval_batch_size", "prediction_loss_only",
        "batch_eval_metrics", "enable_jit_checkpoint", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "early_stopping_patience", "restore_callback_states_from_checkpoint",
        "full_determinism", "use_cpu", "cpu_threads", "remove_unused_columns", "label_names", "length_column_name",
        "debug", "skip_memory_metrics", "local_rank", "torch_empty_cache_steps", "use_cache",
        "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "dataset", "validation_dataset", "num_proc", "cache_dir", "skip_bad_rows",
        "list_presets", "config", "trust_remote_code", "use_galore",
    )
)  # fmt: skip
NOT_FREE = frozenset({"dataloader_drop_last"})
LENGTH = ("max_steps", "num_train_epochs")
# Schedules whose rate at a step does not depend on how many steps there will be.
OPEN_SCHEDULES = frozenset({"constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy"})
# With another of these the optimizer's state fits nothing.
STATE_SHAPING = (
    "optim",
    "ternary_training",
    "matrix_optimizer",
    "galore_rank",
    "galore_projection",
    "galore_bits",
    "lora",
    "lora_rank",
    "lora_targets",
)


def run_settings(run: RunSettings) -> dict[str, Any]:
    """Return what decides a run's result, as plain JSON values, without secrets."""
    settings = {"processes": run.training.world_size, "device": run.training.device.type}
    sections = {ModelArguments: run.model, DataArguments: run.data, FrankenTrainingArguments: run.training}
    for section, part in sections.items():
        for field in dataclasses.fields(section):
            free = field.name in FREE or (field.name.startswith(FREE_PREFIXES) and field.name not in NOT_FREE)
            free |= field.name.startswith("galore_") and run.training.matrix_optimizer != "galore"
            if field.init and not free:
                settings[field.name] = _plain(getattr(part, field.name))
    return redact_facts(settings)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return value if isinstance(value, str) else json.dumps(vars(value), default=str, sort_keys=True)


def fingerprint(dataset: Any, streaming: bool) -> str:
    """Return a hash of the rows (ids, labels, boundaries); of a stream, of its first `STREAM_ROWS` rows."""
    hashes: dict[str, Any] = {}
    if streaming:
        batches = ({name: [value] for name, value in row.items()} for row in itertools.islice(dataset, STREAM_ROWS))
    else:
        batches = dataset.with_format("numpy").iter(1000)
    for batch in batches:
        for name, values in batch.items():
            column = hashes.setdefault(name, hashlib.sha256())
            for value in values:
                numbers = np.asarray(value, dtype=np.int64)
                column.update(f"{numbers.shape}".encode())
                column.update(numbers.tobytes())
    return hashlib.sha256("".join(name + hashes[name].hexdigest() for name in sorted(hashes)).encode()).hexdigest()


def fingerprint_weights(model: torch.nn.Module) -> str:
    """Return a hash of a model's weights, names included."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def choose_checkpoint(run: RunSettings, wanted: str) -> SavedCheckpoint:
    """Return the checkpoint to go on from: the named one, or for 'last' the newest whole one.

    Raises:
        UserError: there is none, or it is damaged, incomplete or of another run.
    """
    if wanted.lower() in ("last", "true"):
        chosen = _newest_whole(run, wanted)
    else:
        chosen = _named(run, wanted)
    if chosen.missing:
        _warn(f"{chosen.folder}: {chosen.fault}: what it held starts anew, and the run is not what it would have been.")
    return chosen


def _newest_whole(run: RunSettings, wanted: str) -> SavedCheckpoint:
    output_dir = Path(run.training.output_dir)
    passed: list[SavedCheckpoint] = []
    for saved in examined(output_dir, run.training.world_size):
        if saved.is_whole or (saved.damage is None and run.training.allow_inexact_resume):
            for earlier in passed:
                _warn(f"{earlier.folder} is passed over: {earlier.fault}")
            return saved
        passed.append(saved)
    faults = "; ".join(f"{saved.folder.name}: {saved.fault}" for saved in passed)
    faults = f" ({faults})" if faults else ""
    hint = f" {FLAG} goes on without what is missing." if any(saved.damage is None for saved in passed) else ""
    raise UserError(f"--resume_from_checkpoint {wanted}: no whole checkpoint in {output_dir}{faults}.{hint}")


def _named(run: RunSettings, wanted: str) -> SavedCheckpoint:
    saved = examine(Path(wanted).expanduser(), run.training.world_size)
    if saved.damage is not None:
        raise UserError(f"--resume_from_checkpoint {wanted}: not a checkpoint folder that can be used: {saved.damage}.")
    if saved.missing and not run.training.allow_inexact_resume:
        raise UserError(
            f"--resume_from_checkpoint {wanted}: {saved.fault}: the run would not go on as it was; {FLAG} goes on "
            "without."
        )
    return saved


def check_settings(run: RunSettings, chosen: SavedCheckpoint) -> None:
    """Compare the settings of now with those of the checkpoint.

    Raises:
        UserError: they differ, without --allow_inexact_resume.
    """
    if chosen.record is None:
        _warn(f"{chosen.folder} has no resume.json: whether settings and data are those of its run is not known.")
        return
    report(chosen.folder, different_settings(run, chosen.record), run)


def different_settings(run: RunSettings, record: CheckpointRecord) -> list[str]:
    """Return what differs, each as 'name=then, now NOW'.

    Raises:
        UserError: something differs with which the optimizer's state cannot be used at all.
    """
    now, then = run_settings(run), dict(record.settings)
    if run.data.packing and run.data.objective != "classification":
        then.setdefault("packed_documents", "joined")  # what was before there was a choice
    differing = {name for name in now.keys() & then.keys() if now[name] != then[name]}
    for name in STATE_SHAPING:
        if name in differing:
            raise UserError(
                f"--{name} {now[name]}: the checkpoint's optimizer is of {name}={record.settings[name]}, and its state "
                "fits no other; begin a new run with --model_name_or_path CHECKPOINT."
            )
    if differing & set(LENGTH) and is_open(run) and not differing - set(LENGTH):
        if is_main_process():
            logger.info("the run gets another length; its schedule goes by the step alone, so what is done stands")
        differing -= set(LENGTH)
    if now["max_steps"] > 0 and "max_steps" not in differing:
        differing.discard("num_train_epochs")  # without effect
    return [f"{name}={then[name]}, now {now[name]}{_why(name, run)}" for name in sorted(differing)]


def _why(name: str, run: RunSettings) -> str:
    if name not in LENGTH:
        return ""
    return " (the schedule follows the length, so the steps done would have had other rates)"


def is_open(run: RunSettings) -> bool:
    """Whether the steps of a run are the same, however many follow."""
    training = run.training
    if _plain(training.lr_scheduler_type) not in OPEN_SCHEDULES or 0 < training.warmup_steps < 1:
        return False
    shares = (training.weight_decay_share, training.ternary_start)
    if training.learning_rate_drop < 1 or any(0 < share < 1 for share in shares):
        return False
    return run.model.preset is None or not _explores(run)


def _explores(run: RunSettings) -> bool:
    """Whether the model adds noise that fades over the run (Infinito)."""
    config_class = CONFIG_MAPPING[read_preset(run.model.preset).model_type]
    if "exploration_schedule" not in config_class.known_keys():
        return False
    config = config_class.from_preset(run.model.preset, **run.model_fields)
    return config.exploration_sigma > 0 and config.exploration_schedule != "constant"


def check_data(run: RunSettings, record: CheckpointRecord | None, data: Mapping[str, str]) -> None:
    """Compare the fingerprints of the rows, or of a teacher, with those of the checkpoint.

    Raises:
        UserError: they differ, without --allow_inexact_resume.
    """
    if record is None:
        return
    differing = [
        f"the {PRINTS[name]} are not those it was trained with" for name in data if data[name] != record.data.get(name)
    ]
    report("the checkpoint", differing, run)


def report(where: object, differing: list[str], run: RunSettings) -> None:
    """Raises UserError for what differs, or warns where --allow_inexact_resume was given."""
    if not differing:
        return
    text = "; ".join(differing)
    if not run.training.allow_inexact_resume:
        raise UserError(
            f"--resume_from_checkpoint: {where} is of another run: {text}. Give what it was, or go on all the same "
            f"with {FLAG}."
        )
    _warn(f"{where} is of another run: {text}; going on all the same")


def _warn(text: str) -> None:
    if is_main_process():
        logger.warning(text)
