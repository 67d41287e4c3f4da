"""Saved causal models, first what can be known without their weights, then the weights; and checks before the work."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frankenlm.modeling.bitlinear import BitLinear
from frankenlm.modeling.packed_operators import has_native_operators
from frankenlm.modeling.quantizer_ternary import packed_layers

from ..metrics.text import TEXT_MEASURES, require_sacrebleu
from .cli import UserError
from .objectives import OBJECTIVES
from .opening import check_runs, read_config, read_tokenizer, read_weights

# families whose position of the first token is pad_token_id + 1
COUNTED_FROM_PAD = ("camembert", "data2vec-text", "ibert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a saved model before its weights are loaded.

    limit: tokens its position table has room for; None where positions have no end.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    trust_remote_code: bool

    @property
    def has_memory(self) -> bool:
        """Whether it has a slot memory to carry from window to window."""
        return hasattr(self.config, "memory_layers") and bool(self.config.memory_layers)


def open_checkpoint(name: str, *, option: str = "--model", trust_remote_code: bool = False) -> Checkpoint:
    """Read configuration and tokenizer of a causal language model, or of an adapter for one, by folder or hub name.

    Raises:
        UserError: no such model, files of it that cannot be used, or one that does not generate.
    """
    config = read_config(name, option=option, trust_remote_code=trust_remote_code, adapters=True)
    architectures = config.architectures or []
    if architectures and not any(OBJECTIVES["causal"].is_head(architecture) for architecture in architectures):
        raise UserError(f"{option} {name}: holds {', '.join(architectures)}; only causal language models generate.")
    tokenizer = read_tokenizer(name, option=option, trust_remote_code=trust_remote_code)
    return Checkpoint(name, config, tokenizer, position_limit(config), trust_remote_code)


def check_vocabulary(ids: Collection[int], vocabulary: int) -> None:
    """Raises UserError for an id beyond the model's vocabulary: its tokenizer is of another model."""
    if ids and max(ids) >= vocabulary:
        raise UserError(
            f"the tokenizer gives token {max(ids)}, and the model's vocabulary ends at {vocabulary - 1}: the tokenizer "
            "in its folder is of another model."
        )


def position_limit(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model has positions for; None where they are computed, or there are none."""
    if not hasattr(config, "max_position_embeddings"):
        return None
    if hasattr(config, "position_type") and config.position_type != "learned":
        return None
    return config.max_position_embeddings


def usable_positions(config: PreTrainedConfig) -> int:
    """The positions of a table that text can stand at: RoBERTa and its kin count from behind the pad token."""
    limit = config.max_position_embeddings
    return limit - config.pad_token_id - 1 if config.model_type in COUNTED_FROM_PAD else limit


def known_positions(config: PreTrainedConfig) -> int | None:
    """How many tokens a model of anybody's has positions for; None where its configuration names no limit.

    Asked of the attribute: GPT-2's field has another name. XLNet says -1, RoBERTa counts from behind the pad token.
    """
    limit = usable_positions(config) if hasattr(config, "max_position_embeddings") else None
    return None if limit == -1 else limit


def check_memory_switch(checkpoint: Checkpoint, option: str) -> None:
    """Raises UserError where an option about the slot memory is given for a model without one."""
    if not checkpoint.has_memory:
        raise UserError(f"{option}: {checkpoint.name} ({checkpoint.config.model_type}) has no slot memory.")


def load_model(checkpoint: Checkpoint, *, device: str, dtype: str = "auto", option: str = "--model") -> PreTrainedModel:
    """Load the weights, ready to generate; of its generation settings only the token ids are kept.

    Raises:
        UserError: weights that are missing, damaged or of another architecture, or that cannot be run.
    """
    model = read_weights(
        AutoModelForCausalLM,
        checkpoint.name,
        checkpoint.config,
        option=option,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=checkpoint.trust_remote_code,
    )
    keep_token_ids_only(model, checkpoint.tokenizer)
    if packed_layers(model) or any(isinstance(layer, BitLinear) for layer in model.modules()):
        has_native_operators()  # so that what they run on is said now, not amid the text
    model = model.to(device)
    check_runs(model, checkpoint.name, option=option)
    return model


def keep_token_ids_only(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Forget the sampling defaults that came with a model; its ids of end, begin and pad stay."""
    own = model.generation_config
    end = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = end[0] if isinstance(end, list) else end
    model.generation_config = GenerationConfig(eos_token_id=end, bos_token_id=own.bos_token_id, pad_token_id=pad)


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str, option: str = "--device") -> torch.device:
    """Return a device by its name; raises UserError for one that is not here."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"{option} {device}: no such device; use cpu or cuda.") from error
    kind = found.type
    own = torch.accelerator.current_accelerator()
    known = ["cpu"] if own is None else ["cpu", own.type]
    if kind in ("cuda", "mps", "xpu") and kind not in known:
        raise UserError(f"{option} {device}: there is no GPU here; use cpu.")
    if kind not in known:
        raise UserError(f"{option} {device}: no such device; use cpu or cuda.")
    if kind != "cpu" and (found.index or 0) >= torch.accelerator.device_count():
        raise UserError(f"{option} {device}: there are {torch.accelerator.device_count()} here, counted from 0.")
    return found


def check_sacrebleu(metrics: Sequence[str]) -> None:
    """Raises UserError, before the work, where BLEU is asked for and its library is missing."""
    if any(measure.needs_sacrebleu for name, measure in TEXT_MEASURES.items() if name in metrics):
        try:
            require_sacrebleu()
        except ImportError as error:
            raise UserError(str(error)) from error
