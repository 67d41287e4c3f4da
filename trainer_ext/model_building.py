"""The model of a training run: fresh weights of a preset, or saved ones that go on, with an adapter where asked for."""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .common import opening
from .common.cli import UserError, user_mistakes
from .common.objectives import OBJECTIVES
from .data.chat import usual_end
from .losses.teaching import Teaching, TeachingPlan
from .model_arguments import ModelArguments
from .optim.lora import add_lora
from .preflight import SAVED, preset_config
from .presets import RunSettings
from .recipe import PreparedData

logger = logging.getLogger("frankenlm.recipe")


def build_model(run: RunSettings, data: PreparedData) -> PreTrainedModel:
    """Build the model of the run with fresh weights (from a preset) or saved ones (from a checkpoint).

    Raises:
        UserError: the configuration is impossible, or the saved weights do not fit the tokenizer.
    """
    set_seed(run.training.seed)
    auto_model = OBJECTIVES[run.data.objective].auto_model
    with user_mistakes():
        if run.model.model_name_or_path:
            model = load_model(run, data, auto_model)
        else:
            config = with_labels(preset_config(run, tokenizer_fields(run, data.tokenizer)), data.labels)
            model = auto_model.from_config(config)
            if run.model.paired_start:
                start_by_name(model, run.training.seed)
        if run.data.objective == "causal" and "labels" in data.train.column_names:
            stop_at_answers_end(model, data)
        return with_adapter(run, model) if run.model.lora else model


@torch.no_grad()
def start_by_name(model: PreTrainedModel, seed: int) -> None:
    """Give a model of ours fresh weights anew, those of each module from random numbers of its own name.

    In one stream of numbers, a layer more in one twin would shift what every layer behind it gets. A tied matrix has
    the numbers of its first name, as where it is not tied. The stream goes on as if nothing had been drawn.
    """
    with torch.random.fork_rng(devices=[]):
        for name, module in reversed(list(model.named_modules())):
            digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(digest, "big"))
            model._init_weights(module)


def stop_at_answers_end(model: PreTrainedModel, data: PreparedData) -> None:
    """Let generation stop at the token that ends the answers of the data, where the model has another."""
    end, known = usual_end(data.train, data.tokenizer), model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    if end is not None and end not in known:
        model.generation_config.eos_token_id = [end, *(token for token in known if token is not None)]
        logger.info("generation stops at %r, which ends the answers", data.tokenizer.convert_ids_to_tokens(end))


def tokenizer_fields(run: RunSettings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The configuration fields that the tokenizer decides."""
    return {
        "vocab_size": run.model.vocab_size or len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }


def load_model(run: RunSettings, data: PreparedData, auto_model: Callable) -> PreTrainedModel:
    """Load saved weights; the embedding grows when the tokenizer got new special tokens.

    Raises:
        UserError: the saved model is damaged, or --vocab_size would cut tokens off.
    """
    name, trust = run.model.model_name_or_path, run.model.trust_remote_code
    config = opening.read_config(name, option=SAVED, trust_remote_code=trust)
    if hasattr(type(config), "from_preset") and run.data.objective != "classification":
        # one parameter set serves both directions of our families
        objective = OBJECTIVES[run.data.objective]
        config.is_decoder = objective.continues
        if objective.goes_both_ways:
            config.two_directions = True
    config = with_labels(config, data.labels)
    with opening.reading(f"{SAVED} {name}", "weights"):
        opening.check_size(auto_model, name, config, f"{SAVED} {name}", trust)
        model = auto_model.from_pretrained(opening.location(name), config=config, trust_remote_code=trust)
    size = run.model.vocab_size or max(len(data.tokenizer), config.vocab_size)
    if size < config.vocab_size:
        raise UserError(f"--vocab_size {size}: the weights of {name} have {config.vocab_size} tokens; they only grow.")
    if size > config.vocab_size and run.model.lora:
        raise UserError(
            f"--lora: the tokenizer, or --vocab_size, has {size} tokens, and {name} {config.vocab_size}: an adapter "
            "leaves the embedding as it is. Give its own tokenizer, or train without --lora first."
        )
    if size > config.vocab_size:
        logger.info("vocabulary grows from %d to %d", config.vocab_size, size)
        model.resize_token_embeddings(size)
    return model


def with_adapter(run: RunSettings, model: PreTrainedModel) -> torch.nn.Module:
    """Put the LoRA adapter of the settings around a saved model."""
    settings = run.model
    model = add_lora(
        model,
        settings.model_name_or_path,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_targets,
        causal=OBJECTIVES[run.data.objective].continues,
    )
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("LoRA: %s parameters learn, beside %d layers", f"{learned:,}", len(model.targeted_module_names))
    return model


def load_teacher(run: RunSettings, data: PreparedData, model: PreTrainedModel) -> Teaching:
    """Load the teacher, frozen, and match it with the model.

    Raises:
        UserError: it is damaged, its tokenizer is another one, or its vocabulary or layers do not fit.
    """
    settings, name = run.model, run.model.teacher
    trust = settings.trust_remote_code
    check_same_tokens(name, opening.read_tokenizer(name, option="--teacher", trust_remote_code=trust), data.tokenizer)
    config = opening.read_config(name, option="--teacher", trust_remote_code=trust)
    auto_model = OBJECTIVES[run.data.objective].auto_model
    with torch.random.fork_rng(devices=[]):  # nothing about the student may depend on whether it has a teacher
        teacher = opening.read_weights(auto_model, name, config, option="--teacher", trust_remote_code=trust)
    with user_mistakes():
        teaching = Teaching(model, teacher.to(run.training.device), teaching_plan(settings), settings.teacher_layers)
    logger.info("teacher: %s, %s parameters", type(teacher).__name__, f"{teacher.num_parameters():,}")
    return teaching


def teaching_plan(settings: ModelArguments) -> TeachingPlan:
    """How much each part of the loss counts."""
    temperature = settings.teacher_temperature
    if settings.teacher_stage is not None:
        hidden = float(settings.teacher_stage == "hidden")
        return TeachingPlan(own=0.0, logits=1.0 - hidden, hidden=hidden, temperature=temperature)
    weight = settings.teacher_weight
    return TeachingPlan(1 - weight, weight, settings.teacher_hidden_weight, temperature)


def check_same_tokens(name: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    """Raises UserError where two tokenizers differ, naming the first token that does."""
    their_ids, our_ids = theirs.get_vocab(), ours.get_vocab()
    differing = [token for token in {**our_ids, **their_ids} if our_ids.get(token) != their_ids.get(token)]
    if not differing:
        return
    token = min(differing, key=lambda token: (our_ids.get(token, their_ids.get(token)), token))
    here, there = (ids.get(token, "missing") for ids in (our_ids, their_ids))
    raise UserError(
        f"--teacher {name}: its tokenizer is another one: of {len(our_ids):,} tokens here and {len(their_ids):,} there "
        f"{len(differing):,} differ, such as {token!r}, {here} here and {there} there; add --tokenizer {name}."
    )


def with_labels(config: PreTrainedConfig, labels: list[str]) -> PreTrainedConfig:
    """Give a classifier's configuration its label names."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    return config
