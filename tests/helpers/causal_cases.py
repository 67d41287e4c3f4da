"""Causal Frankensteins of every kind, and ways to run them in pieces."""

import torch

from frankenlm.modeling.cache import StateCache
from frankenlm.modeling.mixers import MIXERS

LENGTH = 30
HYBRID = ("retnet", "titan_memory", "mamba", "ode", "sigmoid_attn")
CONV = {"factorized_embedding_dim": 8, "embedding_conv_kernel": 4, "embedding_conv_depthwise": True}
CASES = {
    **{mixer: (mixer, {}) for mixer in [*sorted(MIXERS), "titan_memory"]},
    "rk4": ("ode", {"ode_solver": "rk4", "ode_time_input": True}),
    "learned positions": ("standard_attn", {"position_type": "learned"}),
    "post-norm": ("standard_attn", {"norm_style": "post", "position_type": "learned", "use_bias": True}),
    "window": (("standard_attn", "titan_attn", "sigmoid_attn"), {"attention_window": 5}),
    "loops": (HYBRID, {"num_loops": 2, "loop_embedding": True, **CONV}),
    "windowed hybrid": (HYBRID, {"attention_window": 6, **CONV}),
    "experts": (HYBRID, {"num_experts": 4}),
    "ternary": (("retnet", "mamba"), {"use_bitnet": True}),
}


def padded(ids, pads, side="left"):
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        place = slice(0, count) if side == "left" else slice(ids.shape[1] - count, None)
        mask[row, place] = 0
    return mask


def greedy(model, prompts, **options):
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0} | options
    if prompts is not None and "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(prompts)  # or generate() would take the token 0 for a pad
    return model.generate(prompts, **options)


def in_pieces(model, ids, sizes, mask=None, whole_mask=True):
    cache, outputs, start = model.new_cache(), [], 0
    for size in sizes:
        stop = start + size
        piece = None if mask is None else mask[:, :stop] if whole_mask else mask[:, start:stop]
        with torch.no_grad():
            output = model(ids[:, start:stop], attention_mask=piece, cache=cache)
        assert output.cache is cache and cache.get_seq_length() == stop
        outputs.append(output.logits)
        start = stop
    return torch.cat(outputs, dim=1), cache


def state_bytes(cache: StateCache) -> int:
    """Return the bytes of everything that a cache keeps."""
    entries = (cache.embedding, *cache.layers)
    tensors = [tensor for entry in entries for tensor in entry.tensors.values()]
    tensors += [tensor for entry in entries for store in entry.key_values for tensor in (store.keys, store.values)]
    if any(entry.key_values for entry in entries):  # positions and masks are those of the keys
        tensors += [tensor for tensor in (cache.key_positions, cache.key_mask) if tensor is not None]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
