"""The configuration of the Infinito family: every field with its default, and the checks between fields."""

from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .checks import check_choice
from .preset_files import config_from_preset
from .ranges import (
    ANY,
    DEPTH,
    NOT_NEGATIVE,
    POSITIONS,
    POSITIVE,
    SEED,
    SHARE,
    SIZE,
    check_ranges,
    check_token_ids,
    check_total,
    with_plain_errors,
)

CHOICES = {
    "hidden_act": ("gelu", "silu", "relu", "relu2", "swiglu"),
    "head_bias_init": ("unigram", "zeros"),
    "exploration_schedule": ("cosine", "constant"),
}
# What a model's number of parameters mostly comes from.
SIZES = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers")
RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), SIZE),
    **dict.fromkeys(("memory_slots", "memory_dim", "memory_heads", "memory_segment"), SIZE),
    "num_hidden_layers": DEPTH,
    "max_position_embeddings": POSITIONS,
    **dict.fromkeys(("dropout", "attention_dropout"), SHARE),
    "layer_norm_eps": POSITIVE,
    **dict.fromkeys(("initializer_range", "exploration_sigma"), NOT_NEGATIVE),
    "exploration_seed": SEED,
    **dict.fromkeys(("memory_decay", "attention_window"), ANY),
}


@with_plain_errors
@strict
class InfinitoConfig(PreTrainedConfig):
    """Configuration of `InfinitoModel` and `InfinitoForCausalLM`.

    Trunk: a post-norm transformer with learned positions; `attention_window` bounds how far its attention looks back.
    Memory: each layer of `memory_layers` (counted from 0) gets a slot memory at its input, of `memory_slots` slots of
    width `memory_dim`, read by `memory_heads` heads and written once per `memory_segment` real tokens; a slot's
    importance fades by `memory_decay` with every later write. () leaves the memory out.
    Special token ids are the tokenizer's; a mask token, where it has one, means nothing to a causal model.
    Exploration: in training, noise of `exploration_sigma` times the stream's rms follows each block, scaled down over
    the run as `exploration_schedule` says and drawn from a generator of its own, seeded by `exploration_seed`.

    Raises:
        ValueError: a value outside its choices, or a combination that cannot be built; the message says which.
    """

    model_type = "infinito"
    keys_to_ignore_at_inference = ["cache", "memory_state", "memory_stats", "memory_reads"]

    # size
    vocab_size: int = 50257
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    max_position_embeddings: int = 1024
    # common
    use_bias: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    # direction
    is_decoder: bool = True
    attention_window: int | None = None
    use_cache: bool = True
    # feed-forward
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    # head
    tie_word_embeddings: bool = False
    head_bias: bool = True
    head_bias_init: str = "unigram"
    # slot memory
    memory_layers: list[int] | tuple[int, ...] = (3,)
    memory_slots: int = 256
    memory_dim: int = 64
    memory_heads: int = 4
    memory_segment: int = 16
    memory_decay: float | int = 0.98
    # exploration
    exploration_sigma: float | int = 0.1
    exploration_schedule: str = "cosine"
    exploration_seed: int = 0

    def __post_init__(self, **kwargs):
        self.memory_layers = list(self.memory_layers)
        super().__post_init__(**kwargs)
        self.check_consistency()

    @classmethod
    def known_keys(cls) -> set[str]:
        """Return every key a preset or a command line may set."""
        return {field.name for field in fields(cls)}

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "InfinitoConfig":
        """Build the configuration of a preset, with fields replaced by `overrides`.

        Raises:
            ValueError: unknown preset, unknown key (with a did-you-mean), wrong type or impossible combination.
        """
        return config_from_preset(cls, name, overrides)

    def check_consistency(self) -> None:
        """Check every cross-field rule; the model calls it again, since attributes may have been set by hand."""
        for field, choices in CHOICES.items():
            check_choice(field, self.__dict__[field], choices)
        check_ranges(self.__dict__, RANGES)
        check_token_ids(self.__dict__)
        self._check_total()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}."
            )
        if self.attention_window is not None and self.attention_window <= 0:
            raise ValueError(f"attention_window={self.attention_window} must be positive, or None for no window.")
        self._check_memory()

    def _check_memory(self) -> None:
        last = self.num_hidden_layers - 1
        for layer in self.memory_layers:
            if not 0 <= layer <= last:
                raise ValueError(
                    f"memory_layers={self.memory_layers} names layer {layer}, but num_hidden_layers="
                    f"{self.num_hidden_layers} gives layers 0..{last}."
                )
        if len(set(self.memory_layers)) < len(self.memory_layers):
            raise ValueError(f"memory_layers={self.memory_layers} names a layer twice; a layer has one memory at most.")
        if self.memory_layers and not self.is_decoder:
            raise ValueError(
                f"memory_layers={self.memory_layers} needs is_decoder=True: the slot memory is causal. Set "
                "memory_layers=[] for a bidirectional stack."
            )
        if self.memory_dim % self.memory_heads:
            raise ValueError(f"memory_heads={self.memory_heads} must divide memory_dim={self.memory_dim}.")
        if not 0 < self.memory_decay <= 1:
            raise ValueError(f"memory_decay={self.memory_decay} must lie in (0, 1]; 1 means that nothing fades.")

    def _check_total(self) -> None:
        tables = self.hidden_size * (self.vocab_size + self.max_position_embeddings)
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
        check_total(self.__dict__, tables + self.num_hidden_layers * layer, SIZES)
