"""A tiny Infinito, and what its tests share."""

import torch

from frankenlm.modeling import InfinitoConfig

VOCAB, SEGMENT = 61, 4
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "memory_layers": [1, 2],
    "memory_slots": 5,
    "memory_dim": 8,
    "memory_heads": 2,
    "memory_segment": SEGMENT,
    "head_bias_init": "zeros",
    "exploration_sigma": 0.0,
}

# seven slots in each head, of which a text of 34 tokens replaces many
ATTENTION_SLOTS = {"memory_type": "attention_slots", "attention_window": 5, "memory_slots": 7}


def tiny_infinito(**fields):
    return InfinitoConfig(**TINY | fields)


def assert_same(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def left_padded(ids, pads):
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        mask[row, :count] = 0
    return mask
