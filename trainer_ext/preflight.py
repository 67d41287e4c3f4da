"""Checks of a training run before anything is loaded or written: what the user asked for, and what is on the disk."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
)

from frankenlm.modeling import read_preset

from .argument_ranges import DATA_RANGES, MODEL_RANGES, check_has_window, check_ranges
from .arguments import DataArguments
from .common.checkpoints import known_positions
from .common.cli import UserError, check_model_name, check_output_dir, is_main_process, user_mistakes
from .common.objectives import OBJECTIVES
from .common.opening import read_config
from .common.shared_memory import check_processes
from .data.blocks import keeps_documents_apart
from .data.chat_templates import check_template
from .data.collators import CAUSAL_SHARE
from .optim.lora import check_peft, lora_targets
from .optim.sign_training import SCHEMES as SIGN_SCHEMES
from .optim.ternary_start import starting_step
from .presets import RunSettings
from .requirements import check_requirements
from .resuming import check_settings, choose_checkpoint
from .saving.checkpoint_record import read_record_or_none
from .saving.output_folder import RUN_FILES, check_average, check_links, is_run, taken_names
from .saving.publishing import settle
from .saving.saved_checkpoints import SavedCheckpoint, checkpoint_folders

logger = logging.getLogger("frankenlm.preflight")

SAVED = "--model_name_or_path"


def check_run(run: RunSettings) -> SavedCheckpoint | None:
    """Check the settings of a run against each other and the disk; return the checkpoint to resume from, or None.

    Raises:
        UserError: something is missing or contradicts something else.
        OSError: the storage of the output folder is full or read-only.
    """
    data, training = run.data, run.training
    if data.dataset is None:
        raise UserError("--dataset is missing: 'builtin', a hub name, or a file, folder or glob.")
    if training.output_dir == "trainer_output":
        raise UserError("--output_dir is missing: a folder for the checkpoint and its records.")
    check_data_arguments(run)
    check_workers(run)
    with user_mistakes():
        check_ranges(run.model, MODEL_RANGES)
    if run.model.lora:
        check_lora(run)
    check_requirements(training)
    if run.model.preset:
        check_config(run)
    else:
        check_model_name(SAVED, run.model.model_name_or_path)
        config = check_saved_config(run)
        check_directions(run, config, f"{SAVED} {run.model.model_name_or_path}")
        documents_stay_apart(run)
        with user_mistakes():
            check_has_window(training.attention_window_range, config)
        if run.model.lora:
            check_lora_base(run, config)
    if is_main_process():
        check_output_dir(training.output_dir)
        if training.ema_decay is not None:
            check_average(Path(training.output_dir))
    if run.model.teacher is not None:
        check_teacher(run)
    checkpoint = find_checkpoint(run)
    if checkpoint is not None:
        if run.model.preset:
            check_same_model(run, checkpoint.folder)
        check_settings(run, checkpoint)
    return checkpoint


def settle_killed_run(run: RunSettings) -> None:
    """Before a run is continued: publish the checkpoints that it had written whole when it was killed.

    Raises:
        UserError: the run is still going on.
    """
    output_dir, wanted = Path(run.training.output_dir), run.training.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return
    with run.training.main_process_first(local=False, desc="checkpoints"):
        if is_main_process():
            settle(output_dir)


def check_data_arguments(run: RunSettings) -> None:
    """Check the numbers of the data arguments, and what streams can do."""
    data = run.data
    with user_mistakes():
        check_ranges(data, DATA_RANGES)
    if data.objective != "causal":
        for name in ("record_form", "chat_template"):
            if getattr(data, name) not in (None, "auto", "text"):
                raise UserError(
                    f"--{name} {getattr(data, name)}: conversations are learned with --objective causal, not "
                    f"{data.objective}."
                )
    check_template(data.chat_template)
    if data.causal_share != CAUSAL_SHARE and not OBJECTIVES[data.objective].goes_both_ways:
        raise UserError(f"--causal_share {data.causal_share} belongs to --objective joint, not {data.objective}.")
    if data.random_offsets:
        check_random_offsets(data)
    if data.streaming and run.training.max_steps <= 0:
        raise UserError("--streaming needs --max_steps: the length of a stream is not known.")


def check_random_offsets(data: DataArguments) -> None:
    """Raises UserError where --random_offsets has no cuts to move: they are those of packed blocks that follow each
    other, without what a template puts around a masked one."""
    clash = None
    if not OBJECTIVES[data.objective].continues:
        clash = f"--objective {data.objective}", "train causal or joint"
    elif not data.packing:
        clash = "--no_packing", "leave one of them out"
    elif data.streaming:
        clash = "--streaming", "a stream's blocks are seen once, and have no places"
    if clash is not None:
        raise UserError(f"--random_offsets and {clash[0]} exclude each other: {clash[1]}.")


def documents_stay_apart(run: RunSettings) -> bool:
    """Whether the documents of a packed row see nothing of each other.

    Raises:
        UserError: they should, and the saved model is not known to keep them apart.
    """
    wanted, name = run.data.packed_documents, run.model.model_name_or_path
    if wanted == "joined" or run.model.preset:
        return wanted != "joined"
    config = read_config(name, option=SAVED, trust_remote_code=run.model.trust_remote_code)
    known = keeps_documents_apart(config)
    if wanted == "apart" and not known and run.data.packing and run.data.objective != "classification":
        raise UserError(
            f"--packed_documents apart: whether a {config.model_type} keeps the documents of a row apart is not known "
            "(`frankenlm check` tells); give each a row of its own with --no_packing, or join them with "
            "--packed_documents joined."
        )
    return known


def check_workers(run: RunSettings) -> None:
    """Raises UserError where the processes that are asked for cannot share memory."""
    check_processes("--num_proc", run.data.num_proc, alone=1)
    check_processes("--dataloader_num_workers", run.training.dataloader_num_workers, alone=0)


def check_config(run: RunSettings) -> None:
    """Check that the preset with the user's changes makes a model of this objective."""
    wanted = OBJECTIVES[run.data.objective].continues
    given = run.model_fields.get("is_decoder")
    if run.data.objective != "classification" and given is not None and bool(given) != wanted:
        raise UserError(
            f"--objective {run.data.objective} needs is_decoder={wanted}, but is_decoder={given} was given; the "
            "objective sets it."
        )
    with user_mistakes():
        config = preset_config(run, {})
    check_directions(run, config, f"--preset {run.model.preset}")
    if not OBJECTIVES[run.data.objective].has_head_for(config):
        known = ", ".join(name for name, objective in OBJECTIVES.items() if objective.has_head_for(config))
        raise UserError(f"--objective {run.data.objective}: {config.model_type} has no such head; it has: {known}.")
    check_ternary_training(run, config)
    check_ternary_start(run, config)
    with user_mistakes():
        check_has_window(run.training.attention_window_range, config)
    if run.data.max_length > config.max_position_embeddings:
        raise UserError(
            f"--max_length {run.data.max_length} exceeds max_position_embeddings={config.max_position_embeddings}; add "
            f"--model.max_position_embeddings {run.data.max_length}."
        )


def has_two_directions(run: RunSettings) -> bool:
    """Whether one parameter set of the run's model reads in two directions."""
    if OBJECTIVES[run.data.objective].goes_both_ways:
        return True
    if run.model.preset:
        config = preset_config(run, {})
    else:
        config = read_config(run.model.model_name_or_path, option=SAVED, trust_remote_code=run.model.trust_remote_code)
    return bool(config.to_dict().get("two_directions"))


def check_directions(run: RunSettings, config: PreTrainedConfig, where: str) -> None:
    """Raises UserError where --objective joint meets a model that cannot be read both ways, or was told not to be."""
    if not OBJECTIVES[run.data.objective].goes_both_ways:
        return
    fields = config.to_dict()
    if "two_directions" not in fields:
        reason = "its slot memory is causal" if fields.get("memory_layers") else "it has no head for both"
        raise UserError(
            f"--objective joint: {config.model_type} ({where}) cannot be read in two directions: {reason}. Every "
            "mixer of a frankenstein can: take such a preset, or train with --objective causal."
        )
    if run.model_fields.get("two_directions") is False:
        raise UserError("--objective joint needs two_directions=True, but False was given; the objective sets it.")
    if run.model.lora and not fields["two_directions"]:
        raise UserError(f"--lora --objective joint: {where} is of one direction, and an adapter leaves it so.")


def check_ternary_training(run: RunSettings, config: PreTrainedConfig) -> None:
    """Check that a sign mode of --ternary_training meets weights it can train."""
    mode = run.training.ternary_training
    if mode == "ste":
        return
    if "use_bitnet" not in config.known_keys() or not config.use_bitnet:
        raise UserError(f"--ternary_training {mode} trains ternary weights, and this model has none: set use_bitnet.")
    if config.w_scheme not in SIGN_SCHEMES:
        raise UserError(
            f"--ternary_training {mode}: w_scheme={config.w_scheme!r}; it needs one of {', '.join(SIGN_SCHEMES)}."
        )


def check_ternary_start(run: RunSettings, config: PreTrainedConfig) -> None:
    """Check that --ternary_start meets low-bit layers, and leaves them steps to train in."""
    start = run.training.ternary_start
    if not start:
        return
    if not config.to_dict().get("use_bitnet", False):
        way_out = "set use_bitnet" if run.model.preset else "leave it out"
        raise UserError(f"--ternary_start {start:g}: this model has no low-bit layers to start later: {way_out}.")
    if run.training.max_steps > 0:
        starting_step(start, run.training.max_steps)


def check_teacher(run: RunSettings) -> None:
    """Check that --teacher can teach this run, as far as its configuration tells.

    Raises:
        UserError: it has no such head, too few positions, or sees documents that the run keeps apart; or the run has
            settings that it cannot stand beside.
    """
    data, training, name = run.data, run.training, run.model.teacher
    clash = None
    if data.objective == "classification":
        clash = "--objective classification", "has labels of its own; train causal or mlm"
    elif training.sharding:
        clash = training.sharding, "shards the model; train whole copies (DDP) instead"
    elif training.use_liger_kernel:
        clash = "--use_liger_kernel", "returns no logits to compare; leave it out"
    elif run.model.lora:
        clash = "--lora", "trains beside weights that a teacher would move; leave one of them out"
    if clash is not None:
        raise UserError(f"--teacher and {clash[0]} exclude each other: the latter {clash[1]}.")
    config = read_config(name, option="--teacher", trust_remote_code=run.model.trust_remote_code)
    architectures, objective = config.architectures or [], OBJECTIVES[data.objective]
    if not any(objective.is_head(each) for each in architectures):
        holds = ", ".join(architectures) or "a model of no class that is named"
        raise UserError(f"--teacher {name}: holds {holds}, and --objective {data.objective} has another head.")
    if objective.goes_both_ways and not config.to_dict().get("two_directions"):
        raise UserError(f"--teacher {name}: is of one direction, and --objective joint needs one that was trained so.")
    positions = known_positions(config)
    if positions is not None and data.max_length > positions:
        raise UserError(f"--teacher {name} has {positions} positions: add --max_length {positions}, or less.")
    packs = data.packing and data.packed_documents != "joined"
    if packs and documents_stay_apart(run) and not keeps_documents_apart(config):
        raise UserError(
            f"--teacher {name}: whether a {config.model_type} keeps the documents of a row apart, as the run does, is "
            "not known; give each a row of its own with --no_packing, or join them with --packed_documents joined."
        )


def check_lora(run: RunSettings) -> None:
    """Raises UserError for what --lora cannot stand beside."""
    training = run.training
    check_peft()
    clash = None
    if run.model.preset:
        clash = f"--preset {run.model.preset}", "starts from fresh weights, which nobody else has: give " + SAVED
    elif run.data.objective == "classification":
        clash = "--objective classification", "needs a head that learns: leave --lora out, or train causal or mlm"
    elif training.matrix_optimizer != "same":
        clash = f"--matrix_optimizer {training.matrix_optimizer}", "is for whole matrices: leave one of them out"
    elif training.ternary_training != "ste":
        clash = f"--ternary_training {training.ternary_training}", "moves the codes that --lora leaves as they are"
    elif training.ternary_start:
        clash = (
            f"--ternary_start {training.ternary_start:g}",
            "is for weights that learn, not for those of --lora",
        )
    elif training.sharding:
        clash = training.sharding, "shards the model: train the adapter in whole copies (DDP) instead"
    if clash is not None:
        raise UserError(f"--lora and {clash[0]} exclude each other: the latter {clash[1]}.")


def check_lora_base(run: RunSettings, config: PreTrainedConfig) -> None:
    """Raises UserError where the saved model cannot be opened again as what the adapter is for, or lacks its layers."""
    name, objective = run.model.model_name_or_path, OBJECTIVES[run.data.objective]
    architectures = config.architectures or []
    if architectures and not any(objective.is_head(each) for each in architectures):
        raise UserError(
            f"--lora --objective {run.data.objective}: {name} holds {', '.join(architectures)}, and an adapter cannot "
            "give it another head."
        )
    if "quantization_config" in config.to_dict():
        raise UserError(
            f"--lora: the weights of {name} are quantised or packed, and an adapter stands beside plain ones: give the "
            "checkpoint that they were made from."
        )
    with user_mistakes(), torch.device("meta"):
        model = objective.auto_model.from_config(config, trust_remote_code=run.model.trust_remote_code)
        lora_targets(model, run.model.lora_targets)


def check_saved_config(run: RunSettings) -> PreTrainedConfig:
    """Check that the saved model can be read, and that the sequences fit its positions; return its configuration."""
    name = run.model.model_name_or_path
    config = read_config(name, option=SAVED, trust_remote_code=run.model.trust_remote_code)
    positions = known_positions(config)
    if positions is not None and run.data.max_length > positions:
        raise UserError(
            f"--max_length {run.data.max_length} exceeds max_position_embeddings={positions} of {name}; add "
            f"--max_length {positions}."
        )
    check_ternary_start(run, config)
    return config


def find_checkpoint(run: RunSettings) -> SavedCheckpoint | None:
    """Resolve --resume_from_checkpoint; refuse to train over an earlier run, or anything else, by accident."""
    output_dir, wanted = Path(run.training.output_dir), run.training.resume_from_checkpoint
    check_links(output_dir)
    if wanted is not None and wanted.lower() != "false":
        if run.training.overwrite_output_dir:
            raise UserError("--overwrite_output_dir and --resume_from_checkpoint exclude each other: give one.")
        chosen = choose_checkpoint(run, wanted)
        check_own_folder(output_dir, chosen)
        return chosen
    taken = taken_names(output_dir) if output_dir.is_dir() else []
    if run.training.overwrite_output_dir:
        if taken and not is_run(output_dir):
            raise UserError(
                f"--overwrite_output_dir {output_dir}: holds {taken[0]}, but nothing that a run of this program wrote: "
                "choose another folder."
            )
        return None
    if is_run(output_dir) and any(name not in RUN_FILES for name in taken):
        raise UserError(
            f"--output_dir {output_dir} already holds a run: continue it with --resume_from_checkpoint last, "
            "replace it with --overwrite_output_dir, or choose another folder."
        )
    if taken and not is_run(output_dir):
        raise UserError(
            f"--output_dir {output_dir} holds {taken[0]}, which no run of this program wrote and this one would "
            "overwrite: choose another folder."
        )
    return None


def check_own_folder(output_dir: Path, chosen: SavedCheckpoint) -> None:
    """Raises UserError where the output folder holds checkpoints of another run than the one to be continued."""
    for folder in checkpoint_folders(output_dir):
        record = read_record_or_none(folder)
        if record is not None and chosen.record is not None and record.run != chosen.record.run:
            raise UserError(
                f"--resume_from_checkpoint {chosen.folder}: --output_dir {output_dir} holds another run "
                f"({folder.name}): choose another folder."
            )


def check_same_model(run: RunSettings, checkpoint: Path) -> None:
    """Refuse to continue a run with another model; what the tokenizer decides comes from the checkpoint anyway."""
    config = preset_config(run, {})
    with user_mistakes():
        saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    own_fields = type(config).__annotations__.keys()  # without those of transformers, such as dtype
    for name, asked in config.to_dict().items():
        if name not in own_fields or name not in saved:
            continue
        if saved[name] != asked and name != "vocab_size" and not name.endswith("_token_id"):
            raise UserError(
                f"--resume_from_checkpoint: {checkpoint} has {name}={saved[name]}, this run asks for {asked}."
            )


def preset_config(run: RunSettings, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the run's preset with the user's changes and `fields`."""
    config_class = CONFIG_MAPPING[read_preset(run.model.preset).model_type]
    objective = OBJECTIVES[run.data.objective]
    direction = {} if run.data.objective == "classification" else {"is_decoder": objective.continues}
    if objective.goes_both_ways and "two_directions" in config_class.known_keys():
        direction["two_directions"] = True
    return config_class.from_preset(run.model.preset, **{**run.model_fields, **direction, **fields})
