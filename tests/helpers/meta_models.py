"""Sizes of the tiny models, for the tests of groups."""

H, I, V, LAYERS = 32, 48, 272, 4  # hidden, intermediate, vocabulary, layers of the tiny models
Q, KV = H, 16  # outputs of the projections with two of four heads for keys and values
# families of transformers that have layers with a state or a convolution
HYBRIDS = (
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lara_mini",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
)
