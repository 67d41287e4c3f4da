"""Sizes of the tiny models, and what families of transformers 5.24 have, for the tests of groups."""

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
# family -> composites that are refused, for a part is not found
REFUSED = {"axk2": {"attn_qkvo"}, "deepseek_v4": {"attn_qkvo"}, "zaya": {"attn_qkvo"}}
# matrices in layers that are in no group, by patterns of their names
BESIDE = "|".join(
    (
        r"altup|laurel|per_layer_|_hc\.fn|_input\.query|layers\.\*\.linear\.",  # between layers
        r"attention\.(?:r_|seg_embed)|rel_attn\.",  # Funnel's relative positions; XLNet's attention is bare tensors
        r"self\.(?:\w+_global|e2e_query|e2w_query|w2e_query)\.",  # Longformer, LUKE: a second attention
        r"conv",  # short convolutions beside attention
        r"indexer|compressor",  # DeepSeek V3.2 and V4: what chooses what is attended to
        r"layernorm\.mlp\.|bottleneck|adapter|_proj_bias",
        r"self_attention\.(?:experts|kv_proj)",  # JetMoE's attention is a mixture of experts
        r"self_attn\.(?:dt_proj|g_proj|gate_proj|q_gate_proj|[qo]_proj\.(?:norm|gate_proj))",  # gates of attention
        r"self_attn\.(?:kv_proj|o_a_proj|o_b_proj|qkv_proj|r_proj|rel\w+|sink_proj)",
    )
)
