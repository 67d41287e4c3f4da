"""The configuration of the Legacy-1bit family: every field with its default, and the checks between fields."""

from huggingface_hub.dataclasses import strict

from .family_config import BIT_CHOICES, COMMON_CHOICES, COMMON_RANGES, FamilyConfig
from .ranges import ANY, BITS, NOT_NEGATIVE, POSITIVE, with_plain_errors


@with_plain_errors
@strict
class Legacy1BitConfig(FamilyConfig):
    """Configuration of `Legacy1BitModel` and `Legacy1BitForCausalLM`: a pre-norm transformer of ternary matrices.

    The defaults are the preset legacy-1bit, without its special tokens: the sizes of the C project Legacy-1bit-LLM.
    Bits: `use_bitnet=False` gives the full-precision twin, parameter for parameter. Otherwise `bitnet_attention`,
    `bitnet_ffn`, `bitnet_embedding` and `bitnet_head` choose which matrices are quantised, by `w_scheme` with a scale
    per `scale_axis` (of the whole matrix, of each row, or of `group_size` inputs of a row); inputs of linear layers are
    rounded to `activation_bits`. Norms, biases and learned positions always stay in full precision.
    A quantised branch writes at the size of its weights whatever it reads, and would drown tokens and positions of
    N(0, 0.02). Either these start with a spread of `embedding_initializer_range`, or `embedding_norm="rms"`
    scales their sum to rms 1 before the first layer, without parameters: for tied tables, which must start small.
    `use_bias` gives every projection of attention and feed-forward a bias, `head_bias` the output.

    Raises:
        ValueError: a value outside its choices, or a combination that cannot be built; the message says which.
    """

    model_type = "legacy_1bit"
    keys_to_ignore_at_inference = ["cache"]
    CHOICES = {
        **COMMON_CHOICES,
        **BIT_CHOICES,
        "position_type": ("learned", "rope"),
        "norm_type": ("layer_norm", "rms_norm"),
        "embedding_norm": (None, "rms"),
    }
    RANGES = {
        **COMMON_RANGES,
        "rope_theta": POSITIVE,
        "embedding_initializer_range": NOT_NEGATIVE,
        "activation_bits": BITS,
        "group_size": ANY,
    }

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
    group_size: int | None = None
    activation_bits: int = 8

    def check_family(self) -> None:
        if self.position_type == "rope" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"position_type='rope' turns pairs of features, but hidden_size={self.hidden_size} over "
                f"num_attention_heads={self.num_attention_heads} gives heads of odd width."
            )
