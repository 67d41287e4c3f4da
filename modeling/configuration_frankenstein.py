"""The configuration of the Frankenstein family: every field with its default, and the checks between fields."""

from huggingface_hub.dataclasses import strict

from .checks import check_choice
from .family_config import BIT_CHOICES, COMMON_CHOICES, COMMON_RANGES, FamilyConfig
from .mixers import MIXERS
from .ranges import (
    ANY,
    BITS,
    DEPTH,
    FEW,
    NOT_NEGATIVE,
    OPTIONAL_FEW,
    OPTIONAL_SIZE,
    POSITIVE,
    SIZE,
    with_plain_errors,
)

NORM_NAMES = ("derf", "dynamic_tanh", "layer_norm", "rms_norm")
# A field that does nothing without another: (field, value, other field, what the other must be).
NEEDS = (
    ("ode_bitnet", True, "use_bitnet", True),
    ("bitnet_head", True, "use_bitnet", True),
    ("memory_merge", "normalized", "use_titan_memory", True),
)
# Names of the seed project; `num_layers` counts physical layers and is handled apart.
ALIASES = {
    "ffn_hidden_size": "intermediate_size",
    "ffn_activation": "hidden_act",
    "num_heads": "num_attention_heads",
}


@with_plain_errors
@strict
class FrankensteinConfig(FamilyConfig):
    """Configuration of `FrankensteinModel` and its heads.

    Sizes: `num_hidden_layers` is the logical depth, `num_loops` passes over `num_physical_layers` layers.
    `layer_pattern` names mixers (see mixers.py) and is cycled over the physical layers.
    Direction: `is_decoder` makes every part causal; parameters are the same either way. `two_directions` lets one
    parameter set serve both: the head chooses, and tokens are predicted at the position before them either way.
    `norm_style="post"` is BERT's layout: the embedding is normalised too and there is no final norm.
    `head_transform` is BERT's dense-activation-norm before the output matrix.
    `sparse_prediction` computes masked-LM logits at labelled positions only, as ModernBERT does.
    `qk_norm=None` means: on in sigmoid attention, off elsewhere.
    `use_titan_memory` adds a delta memory to Titan attention, scanned `memory_chunk` tokens at a time. Its read gate
    starts at sigmoid(`memory_read_bias`); the attention's heads join it as they are, or by `memory_merge` "normalized",
    as the memory's do.

    Raises:
        ValueError: a value outside its choices, or a combination that cannot be built; the message says which.
    """

    model_type = "frankenstein"
    keys_to_ignore_at_inference = ["cache", "aux_loss", "router_z_loss", "expert_load"]
    CHOICES = {
        **COMMON_CHOICES,
        **BIT_CHOICES,
        "norm_type": NORM_NAMES,
        "norm_style": ("pre", "post"),
        "final_norm_type": (None, *NORM_NAMES),
        "position_type": ("none", "learned", "rope"),
        "embedding_norm": (None, "rms"),
        "memory_merge": ("plain", "normalized"),
        "retnet_decay": ("linspace", "paper"),
        "ode_solver": ("euler", "rk4"),
    }
    RANGES = {
        **COMMON_RANGES,
        **dict.fromkeys(("chunk_size", "memory_chunk", "mamba_head_dim", "mamba_state", "retention_heads"), SIZE),
        "type_vocab_size": OPTIONAL_SIZE,
        **dict.fromkeys(("num_loops", "ode_steps", "mamba_expand", "mamba_conv", "retnet_value_factor"), DEPTH),
        **dict.fromkeys(("num_experts", "embedding_conv_kernel"), OPTIONAL_FEW),
        "top_k_experts": FEW,
        **dict.fromkeys(("rope_theta", "hope_base", "hope_damping"), POSITIVE),
        **dict.fromkeys(("hope_layer_scale", "router_aux_loss_coef", "router_z_loss_coef"), NOT_NEGATIVE),
        **dict.fromkeys(("norm_alpha_attn", "norm_alpha_other", "hope_rho", "factorized_embedding_dim"), ANY),
        "memory_read_bias": ANY,
        "activation_bits": BITS,
        "group_size": ANY,
    }
    SIZES = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_experts",
        "num_hidden_layers",
        "max_position_embeddings",
    )

    # size
    vocab_size: int = 50000
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_loops: int = 1
    num_attention_heads: int = 6
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    # common
    use_bias: bool = False
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    # direction
    is_decoder: bool = False
    two_directions: bool = False
    attention_window: int | None = None
    use_cache: bool = True
    # layers
    layer_pattern: list[str] | tuple[str, ...] = ("retnet", "titan_attn", "retnet", "mamba", "titan_attn", "ode")
    loop_embedding: bool = False
    # norms
    norm_type: str = "derf"
    norm_style: str = "pre"
    final_norm_type: str | None = None
    norm_alpha_attn: float | int = 0.5
    norm_alpha_other: float | int = 0.5
    # embedding and head
    factorized_embedding_dim: int | None = None
    embedding_conv_kernel: int = 0
    embedding_conv_depthwise: bool = False
    embedding_norm: str | None = "rms"
    position_type: str = "none"
    rope_theta: float | int = 10000.0
    tie_word_embeddings: bool = True
    head_bias: bool = True
    head_bias_init: str = "unigram"
    head_transform: bool = False
    sparse_prediction: bool = False
    # attention
    use_hope: bool = True
    hope_damping: float | int = 0.01
    hope_rho: float | int = 0.9
    hope_base: float | int = 10000.0
    hope_layer_scale: float | int = 0.05
    use_titan_memory: bool = False
    memory_chunk: int = 32
    memory_read_bias: float | int = -1.0
    memory_merge: str = "plain"
    qk_norm: bool | None = None
    # retention and state space
    retention_heads: int | None = None
    retnet_rotary: bool = True
    retnet_value_factor: int = 1
    retnet_decay: str = "linspace"
    mamba_expand: int = 2
    mamba_head_dim: int = 64
    mamba_state: int = 64
    mamba_conv: int = 4
    chunk_size: int = 64
    # ode
    ode_solver: str = "euler"
    ode_steps: int = 2
    ode_time_input: bool = False
    ode_bitnet: bool = False
    # feed-forward
    intermediate_size: int = 768
    hidden_act: str = "silu"
    num_experts: int = 0
    top_k_experts: int = 2
    router_aux_loss_coef: float | int = 0.01
    router_z_loss_coef: float | int = 0.0
    # bits
    use_bitnet: bool = False
    w_scheme: str = "ternary_absmean"
    activation_bits: int = 8
    bitnet_head: bool = False
    scale_axis: str = "tensor"
    group_size: int | None = None

    def __post_init__(self, **kwargs):
        self._take_aliases(kwargs)
        if self.retention_heads is None:
            self.retention_heads = self.num_attention_heads
        self.layer_pattern = list(self.layer_pattern)
        super().__post_init__(**kwargs)

    def _take_aliases(self, kwargs: dict) -> None:
        for field in ("num_layers", "num_labels"):  # before anything is multiplied or counted out
            if field in kwargs and (type(kwargs[field]) is not int or not FEW.holds(kwargs[field])):
                raise ValueError(f"{field}={kwargs[field]!r} must be a whole number from 1 to {FEW.highest}.")
        for alias, name in ALIASES.items():
            if alias in kwargs:
                given, value = self.__dict__[name], kwargs.pop(alias)
                if given not in (value, type(self).__dataclass_fields__[name].default):
                    raise ValueError(f"{alias}={value} and {name}={given} name the same field; give one of them.")
                setattr(self, name, value)
        if "num_layers" in kwargs:
            self.num_hidden_layers = kwargs.pop("num_layers") * self.num_loops

    @classmethod
    def known_keys(cls) -> set[str]:
        """Return every key a preset or a command line may set: the fields and the aliases."""
        return super().known_keys() | set(ALIASES) | {"num_layers"}

    @property
    def num_physical_layers(self) -> int:
        """Layers that own parameters; each is run `num_loops` times."""
        return self.num_hidden_layers // self.num_loops

    @property
    def physical_mixers(self) -> list[str]:
        """The mixer of each physical layer: `layer_pattern`, cycled."""
        return [self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_physical_layers)]

    @property
    def output_router_logits(self) -> bool:
        """Never there: whoever finds it (TRL) takes routers' logits to be among a model's outputs."""
        raise AttributeError("output_router_logits: a frankenstein returns its routers' losses and load, no logits.")

    @output_router_logits.setter
    def output_router_logits(self, value: bool) -> None:
        # TRL notes False on every configuration with a router_aux_loss_coef, and would find that the next time
        if value:
            raise ValueError("output_router_logits=True: routers' logits are not returned, only their losses and load.")

    def check_family(self) -> None:
        self._check_needs()
        self._check_layers()
        self._check_widths()
        self._check_positions()
        self._check_experts()

    def _check_needs(self) -> None:
        if self.use_titan_memory and "titan_attn" not in self.layer_pattern:
            raise ValueError(
                f"use_titan_memory=True does nothing: layer_pattern={self.layer_pattern} has no titan_attn."
            )
        for field, value, other, needed in NEEDS:
            if self.__dict__[field] == value and self.__dict__[other] != needed:
                raise ValueError(f"{field}={value} does nothing without {other}={needed}.")
        if self.final_norm_type is not None and self.norm_style == "post":
            raise ValueError(
                f"final_norm_type={self.final_norm_type!r} does nothing with norm_style='post': there is no final norm."
            )
        if self.embedding_conv_depthwise and not self.embedding_conv_kernel:
            raise ValueError("embedding_conv_depthwise=True does nothing without an embedding_conv_kernel.")

    def _check_layers(self) -> None:
        if not self.layer_pattern:
            raise ValueError("layer_pattern is empty; name at least one mixer.")
        for name in self.layer_pattern:
            check_choice("layer_pattern entry", name, MIXERS)
        if self.num_hidden_layers % self.num_loops:
            raise ValueError(
                f"num_loops={self.num_loops} must divide num_hidden_layers={self.num_hidden_layers}, the logical depth."
            )
        if len(self.layer_pattern) > self.num_physical_layers:
            raise ValueError(
                f"layer_pattern has {len(self.layer_pattern)} entries but there are only {self.num_physical_layers} "
                "physical layers (num_hidden_layers / num_loops), so part of it would be missing; shorten it."
            )

    def _check_widths(self) -> None:
        self.check_heads("retention_heads")
        if "mamba" in self.layer_pattern and (self.mamba_expand * self.hidden_size) % self.mamba_head_dim:
            raise ValueError(
                f"mamba_head_dim={self.mamba_head_dim} must divide mamba_expand * hidden_size = "
                f"{self.mamba_expand * self.hidden_size}."
            )
        uses_hope = self.use_hope and "titan_attn" in self.layer_pattern
        uses_rope = self.position_type == "rope"
        if (uses_hope or uses_rope) and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} gives an odd head "
                "width; rotary and hyperbolic positions need an even one."
            )
        if "retnet" in self.layer_pattern and self.retnet_rotary and (self.hidden_size // self.retention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} over retention_heads={self.retention_heads} gives an odd head width; "
                "set retnet_rotary=False or change the heads."
            )

    def _check_positions(self) -> None:
        if not 0 <= self.hope_rho < 1:
            raise ValueError(f"hope_rho={self.hope_rho} must lie in [0, 1), or logits grow with distance.")
        titan_is_aware = "titan_attn" in self.layer_pattern and (self.use_hope or self.use_titan_memory)
        is_aware = titan_is_aware or any(MIXERS[name].carries_position for name in self.layer_pattern)
        if self.position_type == "none" and not is_aware:
            raise ValueError(
                f"no mixer of layer_pattern={self.layer_pattern} can tell the order of tokens: set position_type to "
                "'learned' or 'rope', or add retnet, mamba or titan_attn with use_hope=True."
            )

    def _check_experts(self) -> None:
        if self.num_experts and self.top_k_experts > self.num_experts:
            raise ValueError(f"top_k_experts={self.top_k_experts} exceeds num_experts={self.num_experts}.")
        if self.factorized_embedding_dim is not None and self.factorized_embedding_dim <= 0:
            raise ValueError(f"factorized_embedding_dim={self.factorized_embedding_dim} must be positive or None.")

    def count_roughly(self) -> int:
        tables = (self.factorized_embedding_dim or self.hidden_size) * (self.vocab_size + self.num_positions)
        feed_forward = 2 * self.intermediate_size * max(self.num_experts, 1)
        layer = self.hidden_size * (4 * self.hidden_size + feed_forward)
        return tables + self.num_physical_layers * layer
