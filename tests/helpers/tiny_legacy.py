"""Tiny Legacy-1bit models of every kind, and what their tests share."""

from frankenlm.modeling import Legacy1BitConfig
from frankenlm.modeling.bit_embedding import BitEmbedding
from frankenlm.modeling.bitlinear import BitLinear

VOCAB = 61
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 44,
    "max_position_embeddings": 96,
}
# What tells legacy-1bit-base from legacy-1bit.
MODERN = {
    "norm_type": "rms_norm",
    "position_type": "rope",
    "use_bias": False,
    "hidden_act": "relu2",
    "head_bias": False,
    "tie_word_embeddings": True,
    "bitnet_embedding": False,
    "bitnet_head": False,
    "embedding_norm": "rms",
    "embedding_initializer_range": 0.02,
}
KINDS = {
    "legacy": {},
    "modern": MODERN,
    "twin": {"use_bitnet": False},
    "modern twin": MODERN | {"use_bitnet": False},
    "tied ternary": {"tie_word_embeddings": True, "head_bias": False},
    "row scales, gated": {"scale_axis": "row", "hidden_act": "swiglu", "w_scheme": "int2"},
    "window": {"attention_window": 5, "position_type": "rope"},
    "embedding norm": {"embedding_norm": "rms"},
}


def tiny_legacy(kind="legacy", **fields):
    return Legacy1BitConfig(**TINY | KINDS[kind] | fields)


def low_bit_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear | BitEmbedding)}
