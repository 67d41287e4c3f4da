"""The configuration of the Infinito family: every field with its default, and the checks between fields."""

from huggingface_hub.dataclasses import strict

from .family_config import COMMON_CHOICES, COMMON_RANGES, FamilyConfig
from .ranges import ANY, NOT_NEGATIVE, OPTIONAL_FEW, SEED, SIZE, with_plain_errors


@with_plain_errors
@strict
class InfinitoConfig(FamilyConfig):
    """Configuration of `InfinitoModel` and `InfinitoForCausalLM`.

    Trunk: a transformer with learned positions, `norm_style` "post" or "pre"; `attention_window` bounds how far its
    attention looks back, and an `embedding_conv_kernel` of 2 lets each embedding see its predecessor.
    Memory: each layer of `memory_layers` (counted from 0) has one, () leaves it out. By `memory_type` it is
    "attention_slots": a token that leaves the window keeps its key and value in one of `memory_slots` slots of each
    head of the layer's attention, which sees them beside its window; every `memory_segment` real tokens the slots are
    ranked anew, by an importance that fades by `memory_decay` each time. Or
    "slots", the only one there was before the field and so its default: a slot memory at the layer's input, of slots of
    width `memory_dim`, read by `memory_heads` heads and written once per `memory_segment` real tokens; a slot's
    importance fades by `memory_decay` with every later write. `memory_dim` and `memory_heads` are of no use to others.
    Special token ids are the tokenizer's; a mask token, where it has one, means nothing to a causal model.
    Exploration: in training, noise of `exploration_sigma` times the stream's rms follows each block, scaled down over
    the run as `exploration_schedule` says and drawn from a generator of its own, seeded by `exploration_seed`.

    Raises:
        ValueError: a value outside its choices, or a combination that cannot be built; the message says which.
    """

    model_type = "infinito"
    keys_to_ignore_at_inference = ["cache", "memory_state", "memory_stats", "memory_reads"]
    position_type = "learned"  # no field: the family has no other
    CHOICES = COMMON_CHOICES | {
        "memory_type": ("slots", "attention_slots"),
        "norm_style": ("post", "pre"),
        "exploration_schedule": ("cosine", "constant"),
    }
    RANGES = {
        **COMMON_RANGES,
        "embedding_conv_kernel": OPTIONAL_FEW,
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
    # layout
    norm_style: str = "post"
    embedding_conv_kernel: int = 0
    embedding_conv_depthwise: bool = False
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
    memory_type: str = "slots"
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
        if self.embedding_conv_depthwise and not self.embedding_conv_kernel:
            raise ValueError("embedding_conv_depthwise=True does nothing without an embedding_conv_kernel.")
        if self.memory_type == "attention_slots":
            self._check_attention_slots()
        elif self.memory_layers and self.memory_dim % self.memory_heads:
            raise ValueError(f"memory_heads={self.memory_heads} must divide memory_dim={self.memory_dim}.")
        if not 0 < self.memory_decay <= 1:
            raise ValueError(f"memory_decay={self.memory_decay} must lie in (0, 1]; 1 means that nothing fades.")

    def _check_attention_slots(self) -> None:
        if self.memory_layers and self.attention_window is None:
            raise ValueError(
                "memory_type='attention_slots' needs an attention_window: slots keep what leaves it. Set one, such as "
                "attention_window=128, or memory_layers=[]."
            )
        if self.memory_layers and self.memory_slots < self.memory_segment:
            raise ValueError(
                f"memory_slots={self.memory_slots} must be at least memory_segment={self.memory_segment}: as many "
                "tokens can leave the window between two rankings of the slots."
            )
