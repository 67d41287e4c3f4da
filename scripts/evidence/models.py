"""The models that the memory evidence compares, each sized to one parameter budget.

    infinito-small   the preset with the slot memory at its third layer's input; memory-off is the same model, told not
                     to use its memory
    hybrid           a causal Mini: retention, Titan attention, Mamba-2 and a one-step Euler ODE block in six layers
    attention        the hybrid's baseline: its six mixers replaced by plain softmax attention, all else the same
    gpt2             transformers' GPT2LMHeadModel, without Mini's safeguards: no unigram output bias, no norm and no
                     convolution on the embedding
    titan            four layers of Titan attention, without and with the delta memory

All share the vocabulary, the width and the number of heads; the feed-forward width is what the budget decides. Twins
have the same feed-forward width, so that they differ in the memory alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, InfinitoConfig, InfinitoForCausalLM

TOLERANCE = 0.02
HYBRID = ("retnet", "titan_attn", "retnet", "mamba", "titan_attn", "ode")
ATTENTION_LAYERS = {"layer_pattern": ["standard_attn"], "num_hidden_layers": len(HYBRID), "position_type": "rope"}
TITAN_LAYERS = 4
GPT2_LAYERS = 4


@dataclass(frozen=True)
class Shape:
    """What the models of one table share.

    budget: the parameters that each should have, within TOLERANCE. positions: the longest input.
    """

    budget: int
    vocab_size: int
    hidden_size: int
    num_heads: int
    positions: int
    attention_window: int | None


@dataclass(frozen=True)
class Variant:
    """One model of a table.

    configure: (shape, special ids) -> configuration. forward: arguments of every forward call.
    explores: takes `set_exploration(progress)` while training. has_memory: reports memory statistics.
    unigram_bias: its output bias starts at the logarithm of the token frequencies.
    """

    name: str
    description: str
    model_class: type[PreTrainedModel]
    configure: Callable[[Shape, Mapping[str, int]], PreTrainedConfig]
    forward: Mapping[str, Any] = field(default_factory=dict)
    explores: bool = False
    has_memory: bool = False
    unigram_bias: bool = True


def infinito_config(shape: Shape, special_ids: Mapping[str, int]) -> InfinitoConfig:
    """The preset infinito-small without dropout, with the memory at a layer's input that it had before attention slots.

    At the full shape every other field keeps its value.
    """
    return InfinitoConfig.from_preset(
        "infinito-small",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
        max_position_embeddings=shape.positions,
        attention_window=shape.attention_window,
        memory_type="slots",
        memory_layers=[2],
        memory_dim=shape.hidden_size // 4,
        dropout=0.0,
        attention_dropout=0.0,
        **special_ids,
    )


def hybrid_config(shape: Shape, special_ids: Mapping[str, int]) -> FrankensteinConfig:
    """A causal Mini of six layers, run through once, with the feed-forward width that meets the budget."""
    fields = {"layer_pattern": list(HYBRID), "num_hidden_layers": len(HYBRID)}
    return _fitted_mini(shape, special_ids, fields)


def attention_config(shape: Shape, special_ids: Mapping[str, int]) -> FrankensteinConfig:
    """The hybrid with softmax attention and rotary positions in every layer; every other field is the hybrid's.

    The feed-forward width alone follows, because the budget decides it.
    """
    return _fitted_mini(shape, special_ids, ATTENTION_LAYERS)


def titan_config(shape: Shape, special_ids: Mapping[str, int]) -> FrankensteinConfig:
    """Four layers of Titan attention with the feed-forward width that meets the budget."""
    return _fitted_mini(shape, special_ids, {"layer_pattern": ["titan_attn"], "num_hidden_layers": TITAN_LAYERS})


def titan_memory_config(shape: Shape, special_ids: Mapping[str, int]) -> FrankensteinConfig:
    """The same with the delta memory and the feed-forward width of the model without."""
    width = titan_config(shape, special_ids).intermediate_size
    fields = {"layer_pattern": ["titan_attn"], "num_hidden_layers": TITAN_LAYERS, "use_titan_memory": True}
    return _mini(shape, special_ids, fields, width)


def gpt2_config(shape: Shape, special_ids: Mapping[str, int]) -> GPT2Config:
    """GPT-2 of four layers with the feed-forward width that meets the budget.

    Raises:
        ValueError: the shape has an attention window, which GPT-2 does not know.
    """
    if shape.attention_window is not None:
        raise ValueError(f"attention_window={shape.attention_window}: GPT-2 has no attention window; leave it out.")

    def config(width: int) -> GPT2Config:
        return GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.positions,
            n_embd=shape.hidden_size,
            n_layer=GPT2_LAYERS,
            n_head=shape.num_heads,
            n_inner=width,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **special_ids,
        )

    return config(fit_width(lambda width: GPT2LMHeadModel(config(width)), shape.budget))


def _fitted_mini(shape, special_ids, fields) -> FrankensteinConfig:
    def model(width: int) -> FrankensteinForCausalLM:
        return FrankensteinForCausalLM(_mini(shape, special_ids, fields, width))

    return _mini(shape, special_ids, fields, fit_width(model, shape.budget))


def _mini(shape, special_ids, fields, width: int) -> FrankensteinConfig:
    return FrankensteinConfig.from_preset(
        "mini",
        is_decoder=True,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_loops=1,
        num_attention_heads=shape.num_heads,
        retention_heads=shape.num_heads,
        max_position_embeddings=shape.positions,
        attention_window=shape.attention_window,
        factorized_embedding_dim=None,
        ode_solver="euler",
        ode_steps=1,
        intermediate_size=width,
        num_experts=0,
        dropout=0.0,
        attention_dropout=0.0,
        sparse_prediction=False,
        **special_ids,
        **fields,
    )


def fit_width(build: Callable[[int], PreTrainedModel], budget: int) -> int:
    """Return the feed-forward width whose parameter count comes nearest to `budget`; the count is affine in it.

    Raises:
        ValueError: even a feed-forward of width 1 is beyond the budget.
    """
    narrow, wide = (_count(build, width) for width in (8, 16))
    width = 8 + round((budget - narrow) * 8 / (wide - narrow))
    if width < 1:
        raise ValueError(f"budget={budget:,} is too small: with a feed-forward 8 wide the model has {narrow:,}.")
    return width


def _count(build: Callable[[int], PreTrainedModel], width: int) -> int:
    with torch.device("meta"):  # counting needs no numbers
        return build(width).num_parameters()


def check_budget(name: str, parameters: int, budget: int) -> None:
    """Make sure that a model is of the size that the comparison promises.

    Raises:
        ValueError: it is more than TOLERANCE away.
    """
    if abs(parameters - budget) > TOLERANCE * budget:
        raise ValueError(
            f"{name} has {parameters:,} parameters, {parameters / budget - 1:+.1%} of the budget of {budget:,}; "
            f"at most {TOLERANCE:.0%} is allowed."
        )


INFINITO = Variant(
    "infinito-small",
    "the preset: causal attention and one slot memory",
    InfinitoForCausalLM,
    infinito_config,
    explores=True,
    has_memory=True,
)
MEMORY_OFF = Variant(
    "memory-off",
    "its twin, trained and measured with `use_memory=False`, same start and same exploration noise",
    InfinitoForCausalLM,
    infinito_config,
    forward={"use_memory": False},
    explores=True,
)
HYBRID_VARIANT = Variant(
    "hybrid",
    "causal Mini: retnet, titan_attn, retnet, mamba, titan_attn, ode (Euler, one step)",
    FrankensteinForCausalLM,
    hybrid_config,
)
ATTENTION = Variant(
    "attention",
    "the hybrid with plain softmax attention (rotary positions) in all six layers; same embedding, norms, output bias",
    FrankensteinForCausalLM,
    attention_config,
)
GPT2 = Variant("gpt2", "transformers' `GPT2LMHeadModel`, four layers", GPT2LMHeadModel, gpt2_config, unigram_bias=False)
TITAN = Variant("titan", "four layers of Titan attention", FrankensteinForCausalLM, titan_config)
TITAN_MEMORY = Variant("titan-memory", "the same with the delta memory", FrankensteinForCausalLM, titan_memory_config)
