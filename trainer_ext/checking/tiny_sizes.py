"""What the fields of one meaning are called by families of transformers and by ours, and how large they are here."""

VOCABULARY = 97
HIDDEN = 32
INNER = 2 * HIDDEN  # also of Mamba, with the expansion of 2 that its families have
HEADS, GROUPS, HEAD_DIM, RANK = 4, 2, 8, 16
PLACES = 128  # positions of a table: more than any row of the check
WINDOW = 8  # of attention, and chunks of scans: shorter than the rows of the check
# The heads of an indexer (index_n_heads) stay many: its ReLU may cut off all of a few; then lots choose the tokens.
LAYERS = 2  # where all are of one kind

_NAMES: tuple[tuple[int, str], ...] = (
    (
        VOCABULARY,
        """vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size unpadded_vocab_size
        entity_vocab_size""",
    ),
    (
        HIDDEN,
        """hidden_size n_embd d_model dim emb_dim embedding_dim embedding_size input_embedding_size dim_model lru_width
        word_embed_proj_dim output_embedding_size moe_intermediate_size moe_shared_expert_intermediate_size
        shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size shape_embed_dim
        pronunciation_embed_dim router_hidden_size entity_emb_size intra_bottleneck_size""",
    ),
    (
        INNER,
        """intermediate_size ffn_dim n_inner ffn_hidden_size hidden_dim mamba_d_ssm intermediate_size_mlp block_ff_dim
        dim_ff dff encoder_ffn_dim decoder_ffn_dim mamba_intermediate_size feed_forward_size dense_intermediate_size
        d_inner""",
    ),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks"),
    (
        HEADS,
        """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_swa_attention_heads swa_num_attention_heads retention_heads
        memory_heads memory_segment memory_slots linear_num_value_heads linear_num_key_heads num_local_experts
        num_experts n_routed_experts moe_num_experts""",
    ),
    (
        GROUPS,
        """num_key_value_heads num_kv_heads swa_num_key_value_heads n_groups mamba_n_groups mamba_ngroups moe_topk
        moe_k num_experts_per_tok num_experts_per_token top_k_experts n_group topk_group num_expert_group""",
    ),
    (
        HEAD_DIM,
        """head_dim d_kv d_head dim_head attention_head_size attention_head_dim kv_channels global_head_dim swa_head_dim
        swa_v_head_dim linear_key_head_dim linear_value_head_dim mamba_head_dim mamba_headdim mamba_d_head
        qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim state_size ssm_state_size mamba_d_state mamba_state
        hidden_size_per_layer_input mamba_n_heads mamba_num_heads n_mamba_heads linear_head_dim rotary_dim""",
    ),
    (
        RANK,
        """factorized_embedding_dim memory_dim kv_lora_rank q_lora_rank time_step_rank mamba_dt_rank adapter_rank
        qk_head_dim""",
    ),
    (
        WINDOW,
        """sliding_window attention_window_size local_attention window_size chunk_size mamba_chunk_size index_topk
        attention_chunk_size sliding_window_size swa_window_size local_attn_chunk_length lsh_attn_chunk_length
        attention_window mem_len memory_chunk hope_span""",
    ),
    (
        PLACES,
        """max_position_embeddings n_positions max_seq_len n_ctx context_length max_seq_length max_sequence_length
        original_max_position_embeddings""",
    ),
)
TINY = {name: value for value, names in _NAMES for name in names.split()}
