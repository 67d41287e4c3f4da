"""The configuration of the Infinito family: every field with its default, and the checks between fields."""

from huggingface_hub.dataclasses import strict

from .family_config import COMMON_CHOICES, COMMON_RANGES, FamilyConfig
from .ranges import ANY, NOT_NEGATIVE, SEED, SIZE, with_plain_errors


@with_plain_errors
@strict
class InfinitoConfig(FamilyConfig):
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
    position_type = "learned"  # no field: the family has no other
    CHOICES = COMMON_CHOICES | {"exploration_schedule": ("cosine", "constant")}
    RANGES = {
        **COMMON_RANGES,
        **dict.fromkeys(("memory_slots", "memory_dim", "memory_heads", "memory_segment"), SIZE),
        "memory_decay": ANY,
        "exploration_sigma": NOT_NEGATIVE,
        "exploration_seed": SEED,
    }

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

    def check_family(self) -> None:
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
