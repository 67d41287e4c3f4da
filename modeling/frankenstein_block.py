"""One layer of a Frankenstein, and how the configuration's fields become its parts.

With `norm_style="pre"` a block is x += mixer(norm1(x)); x += ffn(norm2(x)); with "post" it is BERT's
x = norm1(x + mixer(x)); x = norm2(x + ffn(x)). Nothing here asks for a mixer's name.
Shapes: B batch, L length, D hidden.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .bitlinear import linear_factory
from .configuration_frankenstein import FrankensteinConfig
from .context import SequenceContext
from .feedforward import FeedForward, MixtureOfExperts, RouterStatistics
from .mixer_base import Mixer
from .mixers import MIXERS, build_mixer
from .norms import build_norm


class FrankensteinBlock(GradientCheckpointingLayer):
    """One physical layer: a mixer and a feed-forward, each on a residual branch."""

    def __init__(self, config: FrankensteinConfig, mixer_name: str):
        super().__init__()
        self.is_post_norm = config.norm_style == "post"
        self.norm1 = make_norm(config, config.norm_alpha_attn)
        self.mixer = make_mixer(config, mixer_name)
        self.norm2 = make_norm(config, config.norm_alpha_other)
        self.ffn = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, context: SequenceContext, logical_layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, RouterStatistics | None]:
        """Map x (B, L, D) to the next x, the attention weights or None, and the router's statistics or None."""
        delta, weights = self.mix(x, context, logical_layer_idx)
        x = self.add(x, delta, context)
        x = self.norm1(x) if self.is_post_norm else x

        delta, statistics = self.feed_forward(x if self.is_post_norm else self.norm2(x), context)
        x = self.add(x, delta, context)
        x = self.norm2(x) if self.is_post_norm else x
        return context.zero_pads(x), weights, statistics

    def mix(self, x, context, logical_layer_idx):
        if self.mixer.takes_raw_stream:
            return self.mixer(x, context, logical_layer_idx, self.normalize)
        return self.mixer(self.normalize(x), context, logical_layer_idx)

    def normalize(self, x):
        """What the mixer sees of the stream x."""
        return x if self.is_post_norm else self.norm1(x)

    def add(self, x, delta, context):
        return x + context.zero_pads(self.dropout(delta) if self.training else delta)

    def feed_forward(self, x, context):
        if isinstance(self.ffn, MixtureOfExperts):
            return self.ffn(x, context.mask)
        return self.ffn(x), None


def make_mixer(config: FrankensteinConfig, name: str) -> Mixer:
    """Build one mixer of the layer pattern."""
    return build_mixer(name, **MIXERS[name].options(config))


def make_norm(config: FrankensteinConfig, alpha: float, name: str | None = None) -> nn.Module:
    """Build a norm over the hidden size, by default of the config's type; `alpha` is the slope of derf and tanh."""
    return build_norm(name or config.norm_type, config.hidden_size, alpha=alpha, eps=config.layer_norm_eps)


def make_feed_forward(config: FrankensteinConfig) -> FeedForward | MixtureOfExperts:
    """Build the dense feed-forward, or the mixture when the config has experts."""
    options = {"use_bias": config.use_bias, "linear": linear_factory(config, config.use_bitnet)}
    sizes = (config.hidden_size, config.intermediate_size, config.hidden_act)
    if config.num_experts == 0:
        return FeedForward(*sizes, **options)
    return MixtureOfExperts(*sizes, num_experts=config.num_experts, top_k=config.top_k_experts, **options)
