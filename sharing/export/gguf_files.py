"""GGUF: the file llama.cpp reads, of those of our models that it can run.

llama.cpp knows architectures by name, and computes each in its own way. A model of ours is written where one of them
computes what it does: `llama` (RMS norm, rotary positions, SwiGLU), `gpt2` (layer norm, learned positions, GELU) and
`bert` (the same, post-norm, an encoder; its language-model head is left out). llama.cpp takes GELU by its tanh
approximation, 5e-4 off at most. Everything else is refused with the reason. Weights are written in float32.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frankenlm.modeling.norms import RMS_EPS
from frankenlm.trainer_ext.common.cli import Failed, UserError

FILE = "model.gguf"
# (is_decoder, norm_style, norm_type, position_type, hidden_act) -> architecture
ARCHITECTURES = {
    (True, "pre", "rms_norm", "rope", "swiglu"): "llama",
    (True, "pre", "layer_norm", "learned", "gelu"): "gpt2",
    (False, "post", "layer_norm", "learned", "gelu"): "bert",
}
# Fields that must have no value, and what they are.
UNKNOWN_PARTS = {
    "num_experts": "a mixture of experts with our router",
    "factorized_embedding_dim": "a factorised embedding",
    "embedding_conv_kernel": "a convolution over embeddings",
    "embedding_norm": "a norm without weights after the embedding",
    "qk_norm": "norms of queries and keys",
    "loop_embedding": "loop embeddings",
    "attention_window": "a sliding window",
    "use_titan_memory": "a delta memory",
}


def check_packages() -> None:
    """Raises UserError where gguf is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format gguf requires {error.name}: pip install 'frankenlm[export]'.") from error


def architecture_of(config, name: str) -> str:
    """Return the architecture of llama.cpp that computes what a model of this configuration does.

    Raises:
        UserError: none does; the message says why not.
    """
    reasons = list(_reasons(config))
    if reasons:
        raise UserError(f"{name}: llama.cpp cannot run it: {'; '.join(reasons)}.")
    return ARCHITECTURES[_shape(config)]


def _shape(config) -> tuple:
    fields = config.to_dict()
    style = fields.get("norm_style", "pre")
    return config.is_decoder, style, config.norm_type, config.position_type, config.hidden_act


def _reasons(config):
    fields = config.to_dict()
    if config.model_type not in ("frankenstein", "legacy_1bit"):
        memory = " with slot memories" if fields.get("memory_layers") else ""
        yield f"the family {config.model_type} is a causal post-norm transformer{memory}, which no architecture is"
        return
    mixers = sorted(set(fields.get("layer_pattern") or []) - {"standard_attn"})
    if mixers:
        yield f"layer_pattern has {', '.join(mixers)}, and of our mixers it has standard_attn alone"
    if fields.get("use_bitnet"):
        yield (
            "use_bitnet=True: a BitLinear normalises and rounds each token before it multiplies, which its ternary "
            "types (TQ1_0, TQ2_0) do not"
        )
    for field, what in UNKNOWN_PARTS.items():
        if fields.get(field):
            yield f"{field}={fields[field]} is {what}"
    if fields.get("num_loops", 1) > 1:
        yield f"num_loops={fields['num_loops']} runs layers more than once"
    if fields.get("two_directions") and not config.is_decoder:
        yield "two_directions=True predicts a masked token at the position before it, of which it knows nothing"
    if config.is_decoder and (config.head_bias or fields.get("head_transform")):
        yield "its output layer has no bias and no transform (head_bias, head_transform)"
    if fields.get("final_norm_type") not in (None, config.norm_type):
        yield f"final_norm_type={fields['final_norm_type']} is another norm than norm_type={config.norm_type}"
    if not mixers and _shape(config) not in ARCHITECTURES:
        known = "; ".join(f"{name}: {', '.join(map(str, shape[1:]))}" for shape, name in ARCHITECTURES.items())
        yield f"no architecture has {', '.join(map(str, _shape(config)[1:]))} together ({known})"


def write(model, tokenizer, path: Path, name: str) -> dict[str, Any]:
    """Write a model, read it back, and return the facts.

    Raises:
        UserError: llama.cpp cannot run it.
        Failed: what was read back are not its weights.
    """
    import gguf

    architecture = architecture_of(model.config, name)
    tensors = dict(_tensors(model, architecture))
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, model.config)
    vocabulary = _write_vocabulary(writer, tokenizer, model.config)
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(path, tensors)
    return {
        "file": path.name,
        "architecture": architecture,
        "tensors": len(tensors),
        "weights": "float32, read back equal to the last bit",
        "vocabulary": vocabulary,
    }


def read_back(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a GGUF file by name, dequantised, as float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}


def _check(path, tensors):
    found = read_back(path)
    wrong = [name for name, tensor in tensors.items() if name not in found or not np.array_equal(found[name], tensor)]
    if wrong or len(found) != len(tensors):
        raise Failed(f"{path.name}: {', '.join(wrong) or 'tensors'} came back from the file as something else.")


def _write_config(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.norm_type == "rms_norm":
        writer.add_head_count_kv(config.num_attention_heads)
        writer.add_layer_norm_rms_eps(RMS_EPS)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(float(config.rope_theta))
    else:
        writer.add_layer_norm_eps(float(config.layer_norm_eps))
    if not config.is_decoder:
        import gguf

        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)


def _write_vocabulary(writer, tokenizer, config) -> str:
    """Write the tokenizer where llama.cpp has its kind; return what was written, in words."""
    import gguf

    spec = None if tokenizer is None else json.loads(tokenizer.backend_tokenizer.to_str())
    if spec is None or spec["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(spec["pre_tokenizer"]):
        writer.add_tokenizer_model("none")
        return "none: the tokenizer is no byte-level BPE, so texts are given as ids"
    added = {each["id"]: each for each in spec["added_tokens"]}
    vocabulary = spec["model"]["vocab"] | {each["content"]: id for id, each in added.items()}
    words = {id: word for word, id in vocabulary.items()}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    types = [gguf.TokenType.NORMAL if id in words else gguf.TokenType.UNUSED for id in range(config.vocab_size)]
    for id, each in added.items():
        types[id] = kinds[each["special"]]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(id, f"[unused{id}]") for id in range(config.vocab_size)])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for add, id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if id is not None:
            add(id)
    writer.add_add_bos_token(False)
    if not config.is_decoder:
        writer.add_token_type_count(max(config.to_dict().get("type_vocab_size", 0), 1))
    return f"{len(words)} tokens of a byte-level BPE with {len(merges)} merges"


def _tensors(model, architecture):
    """Yield (name in llama.cpp, float32 array)."""
    stack = model if hasattr(model, "embeddings") else model.model
    head = model.lm_head if hasattr(model, "lm_head") else None
    embeddings = stack.embeddings
    yield "token_embd.weight", _array(embeddings.embed_tokens.weight)
    if embeddings.embed_positions is not None:
        yield "position_embd.weight", _array(embeddings.embed_positions.weight)
    if architecture == "bert":
        types = embeddings.embed_types
        width = stack.config.hidden_size
        yield "token_types.weight", np.zeros((1, width), np.float32) if types is None else _array(types.weight)
        yield from _norm("token_embd_norm", embeddings.norm)
    else:
        yield from _norm("output_norm", stack.norm_f)
        if head is not None and not stack.config.tie_word_embeddings:
            yield "output.weight", _array(head.decoder.weight)
    for index, layer in enumerate(stack.layers):
        for name, tensor in _layer(layer, architecture, stack.config.num_attention_heads):
            yield f"blk.{index}.{name}", tensor


def _layer(layer, architecture, num_heads):
    attention = layer.mixer if hasattr(layer, "mixer") else layer.attention
    norms = ("attn_output_norm", "layer_output_norm") if architecture == "bert" else ("attn_norm", "ffn_norm")
    yield from _norm(norms[0], layer.norm1)
    yield from _norm(norms[1], layer.norm2)
    needs_bias = architecture != "llama"
    q, k, v = ([_array(part) for part in _parts(each, needs_bias)] for each in _projections(attention))
    if architecture == "llama":  # its rotation takes neighbours for a pair, ours halves
        q, k = ([_interleaved(part, num_heads) for part in each] for each in (q, k))
    if architecture == "gpt2":
        yield "attn_qkv.weight", np.concatenate([q[0], k[0], v[0]])
        yield "attn_qkv.bias", np.concatenate([q[1], k[1], v[1]])
    else:
        for name, parts in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            yield from zip((f"{name}.weight", f"{name}.bias"), parts, strict=False)
    others = {"attn_output": attention.o_proj, "ffn_up": layer.ffn.up_proj, "ffn_down": layer.ffn.down_proj}
    if layer.ffn.gate_proj is not None:
        others["ffn_gate"] = layer.ffn.gate_proj
    for name, linear in others.items():
        yield from zip((f"{name}.weight", f"{name}.bias"), map(_array, _parts(linear, needs_bias)), strict=False)


def _projections(attention):
    return attention.q_proj, attention.k_proj, attention.v_proj


def _parts(linear, needs_bias):
    """Return weight and bias; a bias of zeros where the architecture has one and the layer has not."""
    bias = linear.bias
    if bias is None and needs_bias:
        bias = linear.weight.new_zeros(linear.out_features)
    return [linear.weight] if bias is None else [linear.weight, bias]


def _interleaved(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head, (first half, second half) -> pairs."""
    return np.ascontiguousarray(x.reshape(num_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape))


def _norm(name, norm):
    yield f"{name}.weight", _array(norm.weight)
    if hasattr(norm, "bias"):
        yield f"{name}.bias", _array(norm.bias)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
