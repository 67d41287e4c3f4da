"""A GGUF file of a model with linear attention: Qwen3.5, whose layers are that but for every fourth.

llama.cpp stores value heads in another order, along the columns of one layer too, norms as w + 1, and -exp(A_log).
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3_5TextConfig

from frankenlm.modeling.quantizer_ternary import packed_layers
from ternary_checkpoints import GgufFile, dense_twin, greedy, logits, make_ternary

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 4, 32, 64
CONFIG = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": KEY_HEADS,
    "linear_num_value_heads": VALUE_HEADS,
    "linear_key_head_dim": KEY_DIM,
    "linear_value_head_dim": VALUE_DIM,
    "full_attention_interval": 4,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    },
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.": "blk.",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
}


def hybrid_model() -> PreTrainedModel:
    """Return a random one."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen3_5TextConfig(**CONFIG)).eval()


def tiled(tensor: torch.Tensor, dim: int = 1, axis: int = 0) -> torch.Tensor:
    """Order value heads by their place under a key head, not by the key head, as llama.cpp does."""
    order = torch.arange(VALUE_HEADS * dim).reshape(KEY_HEADS, -1, dim).transpose(0, 1).reshape(-1)
    return tensor.index_select(axis, order)


def as_stored(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as llama.cpp's converter changes it."""
    part = name.split("linear_attn.")[-1]
    keys = 2 * KEY_DIM * KEY_HEADS
    if part.startswith(("in_proj_qkv", "conv1d")):
        weight = weight.squeeze(1)
        return torch.cat([weight[:keys], tiled(weight[keys:], VALUE_DIM)])
    if part.startswith("in_proj_z"):
        return tiled(weight, VALUE_DIM)
    if part.startswith("out_proj"):
        return tiled(weight, VALUE_DIM, 1)
    if part.startswith(("in_proj_a", "in_proj_b", "dt_bias")):
        return tiled(weight)
    if part == "A_log":
        return tiled(-weight.exp())
    return weight + 1 if name.endswith("norm.weight") and part != "norm.weight" else weight


def write_hybrid_gguf(model: PreTrainedModel, path: Path, kind: str) -> Path:
    """Write a model of `hybrid_model`, its linear layers as `kind`."""
    config = model.config
    writer = GgufFile(path, "qwen35")
    for key, value in {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "full_attention_interval": 4,
        "rope.dimension_count": config.head_dim // 2,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": KEY_DIM,
        "ssm.group_count": KEY_HEADS,
        "ssm.time_step_rank": VALUE_HEADS,
        "ssm.inner_size": VALUE_HEADS * VALUE_DIM,
    }.items():
        writer.add_uint32(f"qwen35.{key}", value)
    writer.add_float32("qwen35.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("qwen35.rope.freq_base", config.rope_parameters["rope_theta"])
    writer.add_array("qwen35.rope.dimension_sections", [*config.rope_parameters["mrope_section"], 0])
    writer.add_array("tokenizer.ggml.tokens", [f"t{number}" for number in range(config.vocab_size)])
    for name, weight in model.state_dict().items():
        stored = name
        for ours, theirs in NAMES.items():
            stored = stored.replace(ours, theirs)
        linear = "proj" in name
        writer.add_weight(stored, as_stored(name, weight), kind if linear else "F32")
    writer.finish()
    return path


def check_same(output, model):
    packed = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    twin = dense_twin(packed)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(twin.state_dict()[name], tensor, rtol=1e-6, atol=1e-6), name
    assert (logits(twin) - logits(model)).norm() <= 1e-4 * logits(model).norm()
    return packed, twin


def test_packs_to_the_same_weights(pack, tmp_path):
    model = make_ternary(hybrid_model(), 64)
    packed, _ = check_same(pack(write_hybrid_gguf(model, tmp_path / "model.gguf", "Q2_0")), model)
    assert {layer.group_size for _, layer in packed_layers(packed)} == {64} and len(packed_layers(packed)) == 31


@pytest.mark.slow
def test_writes_the_same_greedy_text(pack, tmp_path):
    model = make_ternary(hybrid_model(), "row")
    packed, twin = check_same(pack(write_hybrid_gguf(model, tmp_path / "model.gguf", "TQ2_0")), model)
    assert torch.equal(greedy(twin), greedy(model)) and greedy(packed, 5).shape == (1, 8)


@pytest.mark.slow
def test_packs_from_safetensors(pack, tmp_path):
    model = make_ternary(hybrid_model(), 32, ends=True)
    model.save_pretrained(tmp_path / "dense")
    check_same(pack(tmp_path / "dense"), model)
