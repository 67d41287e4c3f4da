"""A tiny packed model of each family that decodes natively, with odd sizes, and what runs when it is called."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from frankenlm.modeling import native_decoder
from frankenlm.modeling.int8_layers import Int8Linear
from frankenlm.modeling.packed_linear import PackedBitLinear
from frankenlm.modeling.quantizer_ternary import TernaryConfig, adopt

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES = {
    "bitnet": (BitNetForCausalLM, BitNetConfig, {"tie_word_embeddings": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 34}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 70}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 18, "tie_word_embeddings": True}),
}


def packed_layer(layer: nn.Linear, generator: torch.Generator, **options) -> PackedBitLinear:
    """Return a packed layer of the same shape with random codes, a scale a row or group, and a random bias."""
    codes = torch.randint(-1, 2, layer.weight.shape, dtype=torch.int8, generator=generator)
    group_size = options.get("group_size")
    groups = [] if group_size is None else [-(-layer.in_features // group_size)]
    scale = 0.05 + 0.1 * torch.rand(layer.out_features, *groups, generator=generator)
    bias = None if layer.bias is None else torch.randn(layer.out_features, generator=generator)
    return PackedBitLinear.from_codes(codes, scale, bias, **options)


def packed_decoder(
    family: str, dtype=torch.float32, *, head=False, input_norm=False, group_size=None, seed=0, **changes
) -> PreTrainedModel:
    """Return a model of a family whose stack is packed; `head`: its output layer is int8."""
    cls, config_class, options = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = cls(config_class(**{**SIZES, **options, **changes})).to(dtype)
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.model.set_submodule(
                name, packed_layer(layer, generator, input_norm=input_norm, group_size=group_size)
            )
        elif name.endswith("norm"):
            layer.weight.data.uniform_(0.7, 1.3)
    if head:
        model.lm_head = Int8Linear.of(model.lm_head)
    settings = {"int8_head": head, "plain_layers": True, "group_size": group_size}
    settings["modules_to_not_convert"] = ["lm_head"]
    return adopt(model, TernaryConfig(**settings))


@contextmanager
def native_calls():
    """Yield a list that gets the number of new tokens of every call that runs natively."""
    calls, decode = [], native_decoder._decode

    def counted(stack, x, *rest):
        calls.append(x.shape[1])
        return decode(stack, x, *rest)

    with patch.object(native_decoder, "_decode", counted):
        yield calls


@contextmanager
def layer_by_layer():
    """Let no call run natively."""
    with patch.object(native_decoder, "MOST_ROWS", 0):
        yield
