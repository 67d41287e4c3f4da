"""The small decoders that the tasks are put to: one a mixer of the table, alike in everything else.

Two layers, RMS norms, SiLU feed-forward layers of twice the width, rotary positions for whatever attends by them, no
dropout. Every embedding sees its predecessor's too (`embedding_conv_kernel=2`), so that a few hundred steps teach a
mixer to join a key with its value: a convolution before attention as in the MQAR experiments of Based
(arXiv:2402.18668), which Zoology's have not.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM
from frankenlm.modeling.norms import RMSNorm

from .task import SyntheticTask

HEADS = 2
LAYERS = 2
MAMBA_HEAD_WIDTH = 8  # each head forgets at a rate of its own: narrow heads, many rates
# Name in the table -> what its configuration sets. Attention in the usual form is the baseline.
MODELS: dict[str, Mapping[str, Any]] = {
    "softmax": {"layer_pattern": ["standard_attn"]},
    "sigmoid": {"layer_pattern": ["sigmoid_attn"]},
    "titan": {"layer_pattern": ["titan_attn"]},
    "titan_memory": {"layer_pattern": ["titan_attn"], "use_titan_memory": True},
    "retnet": {"layer_pattern": ["retnet"]},
    "mamba": {"layer_pattern": ["mamba"]},
    "ode": {"layer_pattern": ["ode"]},
}
# Those whose state does not grow with the row.
RECURRENT = ("retnet", "mamba")


def model_config(mixer: str, task: SyntheticTask, hidden_size: int, mamba_state: int) -> FrankensteinConfig:
    """The configuration of one decoder.

    Raises:
        ValueError: sizes that cannot be built, as the configuration tells them.
    """
    return FrankensteinConfig(
        is_decoder=True,
        vocab_size=task.vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=task.length,
        position_type="rope",
        norm_type="rms_norm",
        embedding_norm=None,
        embedding_conv_kernel=2,
        initializer_range=0.1,
        dropout=0.0,
        attention_dropout=0.0,
        mamba_head_dim=MAMBA_HEAD_WIDTH,
        mamba_state=mamba_state,
        memory_chunk=16,
        **MODELS[mixer],
    )


class PlaceReader(nn.Module):
    """What stood at each place, from one state: (B, D) -> (B, L, D), for the embedding's rows to be compared with.

    Two layers on the state with the sine code of a place added to it, as in MAD's autoencoder.
    """

    def __init__(self, hidden_size: int, length: int):
        super().__init__()
        self.register_buffer("places", place_codes(length, hidden_size), persistent=False)
        self.layers = nn.Sequential(
            RMSNorm(hidden_size),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            RMSNorm(hidden_size),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            RMSNorm(hidden_size),
        )

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.layers(state[:, None] + self.places)


def place_codes(length: int, width: int) -> torch.Tensor:
    """Sines and cosines of Vaswani et al. 2017, (L, D): all sines first."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


class TaskModel(nn.Module):
    """A decoder that answers a task: (B, L) ids and where something is asked -> (N, V) logits, row by row."""

    def __init__(self, config: FrankensteinConfig, task: SyntheticTask):
        super().__init__()
        self.decoder = FrankensteinForCausalLM(config)
        self.reader = PlaceReader(config.hidden_size, task.length) if task.reads_last else None

    def forward(self, input_ids: torch.Tensor, is_asked: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.model(input_ids, use_cache=False).last_hidden_state
        if self.reader is not None:
            hidden = self.reader(hidden[:, -1])
        return self.decoder.lm_head(hidden[is_asked])

    @torch.no_grad()
    def state_size(self, length: int) -> int:
        """Numbers that a row of `length` tokens leaves behind in the cache, of all layers."""
        ids = torch.zeros(1, length, dtype=torch.long)
        return cached_numbers(self.decoder.model(ids, use_cache=True).cache)


def cached_numbers(cache) -> int:
    """How many numbers a cache of one row holds."""
    total = 0
    for layer in cache.layers:
        total += sum(tensor.numel() for tensor in layer.tensors.values())
        total += sum(part.numel() for store in layer.key_values for part in store.view())
    return total
