"""The configuration of the Legacy-1bit family: every field with its default, and the checks between fields."""

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
    SHARE,
    SIZE,
    check_ranges,
    check_token_ids,
    check_total,
    with_plain_errors,
)

CHOICES = {
    "position_type": ("learned", "rope"),
    "norm_type": ("layer_norm", "rms_norm"),
    "hidden_act": ("relu", "relu2", "gelu", "silu", "swiglu"),
    "embedding_norm": (None, "rms"),
    "head_bias_init": ("zeros", "unigram"),
    "w_scheme": ("binary", "ternary_absmean", "ternary_absmedian", "ternary_twn", "int2", "int2_pow"),
    "scale_axis": ("tensor", "row"),
}
# What a model's number of parameters mostly comes from.
SIZES = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers")
RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), SIZE),
    "num_hidden_layers": DEPTH,
    "max_position_embeddings": POSITIONS,
    **dict.fromkeys(("dropout", "attention_dropout"), SHARE),
    **dict.fromkeys(("layer_norm_eps", "rope_theta"), POSITIVE),
    **dict.fromkeys(("initializer_range", "embedding_initializer_range"), NOT_NEGATIVE),
    **dict.fromkeys(("attention_window", "activation_bits"), ANY),
}


@with_plain_errors
@strict
class Legacy1BitConfig(PreTrainedConfig):
    """Configuration of `Legacy1BitModel` and `Legacy1BitForCausalLM`: a pre-norm transformer of ternary matrices.

    The defaults are the preset legacy-1bit, without its special tokens: the sizes of the C project Legacy-1bit-LLM.
    Bits: `use_bitnet=False` gives the full-precision twin, parameter for parameter. Otherwise `bitnet_attention`,
    `bitnet_ffn`, `bitnet_embedding` and `bitnet_head` choose which matrices are quantised, by `w_scheme` with a scale
    per `scale_axis`; inputs of linear layers are rounded to `activation_bits`. Norms, biases and learned positions
    always stay in full precision.
    A quantised branch writes at the size of its weights whatever it reads, and would drown tokens and positions of
    N(0, 0.02). Either these start with a spread of `embedding_initializer_range`, or `embedding_norm="rms"`
    scales their sum to rms 1 before the first layer, without parameters: for tied tables, which must start small.
    `use_bias` gives every projection of attention and feed-forward a bias, `head_bias` the output.

    Raises:
        ValueError: a value outside its choices, or a combination that cannot be built; the message says which.
    """

    model_type = "legacy_1bit"
    keys_to_ignore_at_inference = ["cache"]

    # size
    vocab_size: int = 259
    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 128
    # common
    use_bias: bool = True
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    embedding_initializer_range: float | int = 0.25
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    mask_token_id: int | None = None
    # direction
    is_decoder: bool = True
    attention_window: int | None = None
    use_cache: bool = True
    # layers
    norm_type: str = "layer_norm"
    position_type: str = "learned"
    rope_theta: float | int = 1e4
    intermediate_size: int = 1024
    hidden_act: str = "relu"
    # embedding and head
    embedding_norm: str | None = None
    tie_word_embeddings: bool = False
    head_bias: bool = True
    head_bias_init: str = "zeros"
    # bits
    use_bitnet: bool = True
    bitnet_attention: bool = True
    bitnet_ffn: bool = True
    bitnet_embedding: bool = True
    bitnet_head: bool = True
    w_scheme: str = "ternary_absmean"
    scale_axis: str = "tensor"
    activation_bits: int = 8

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_consistency()

    @classmethod
    def known_keys(cls) -> set[str]:
        """Return every key a preset or a command line may set."""
        return {field.name for field in fields(cls)}

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "Legacy1BitConfig":
        """Build the configuration of a preset, with fields replaced by `overrides`.

        Raises:
            ValueError: unknown preset, unknown key (with a did-you-mean), wrong type or impossible combination.
        """
        return config_from_preset(cls, name, overrides)

    def check_consistency(self) -> None:
        """Check every cross-field rule; the model calls it again, since attributes may have been set by hand."""
        for field, choices in CHOICES.items():
            value = self.__dict__[field]
            if value not in choices:
                check_choice(field, value, [choice for choice in choices if choice is not None])
        check_ranges(self.__dict__, RANGES)
        check_token_ids(self.__dict__)
        self._check_total()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}."
            )
        if self.position_type == "rope" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"position_type='rope' turns pairs of features, but hidden_size={self.hidden_size} over "
                f"num_attention_heads={self.num_attention_heads} gives heads of odd width."
            )
        if self.attention_window is not None and self.attention_window <= 0:
            raise ValueError(f"attention_window={self.attention_window} must be positive, or None for no window.")
        if not 2 <= self.activation_bits <= 8:
            raise ValueError(f"activation_bits={self.activation_bits} must lie in 2..8.")

    def _check_total(self) -> None:
        positions = self.max_position_embeddings if self.position_type == "learned" else 0
        tables = self.hidden_size * (self.vocab_size + positions)
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)
        check_total(self.__dict__, tables + self.num_hidden_layers * layer, SIZES)
