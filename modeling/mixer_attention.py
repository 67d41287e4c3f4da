"""Softmax, Titan and sigmoid attention.

standard_attn: Vaswani et al. 2017, arXiv:1706.03762, with rotary, learned or no positions.
titan_attn: the attention branch of Titans (arXiv:2501.00663) with hyperbolic positions (HoPE, arXiv:2509.05218).
sigmoid_attn: Ramapuram et al. 2024, arXiv:2409.04431; the bias is -log(number of keys the row sees), not of the padded
length, plus a learnable offset per head. No row is divided by its sum.
Shapes: B batch, L length, T keys (those of the past first), D hidden, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .attention_blocks import MASKED_QUERIES, Block, end_mask
from .bitlinear import LinearFactory, apply_together, linear_factory
from .context import SequenceContext
from .delta_memory import READ_BIAS, DeltaMemory
from .mixer_base import Mixer, ends_branch
from .native_ops import attend_step, attends_natively
from .norms import RMSNorm, at_least_float32, full_precision, rms_normalize
from .positions import (
    HopeRates,
    apply_rotary,
    hope_cuts,
    hope_features,
    hope_rates,
    hope_scores,
    middle,
    shared_rotary_tables,
    to_light_cone,
)


def _softmax_attention(scores, v, block, dropout):
    scores = scores.masked_fill(~block.visible_keys(), float("-inf"))
    weights = scores.softmax(-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v, weights


def _fused_attention(q, k, v, visible, is_causal, dropout, scale):
    """(B, H, Lq, K) attention through fused kernels; never materialises the weights."""
    if attends_natively(q, k, v, visible, dropout):
        return attend_step(q, k, v, visible, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


class StandardAttention(Mixer):
    """softmax(Q K^T / sqrt(K)) V.

    Args:
        position_type: "rope" turns queries and keys; "learned" and "none" leave them.
        qk_norm: RMSNorm with a gain on each head's queries and keys.
    """

    keeps_keys_only = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        position_type: str = "none",
        rope_theta: float = 1e4,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_width = hidden_size // num_heads
        self.scale = self.head_width**-0.5
        self.rope_theta = rope_theta if position_type == "rope" else None
        self.carries_position = position_type != "none"
        self.attention_dropout = attention_dropout
        self.q_proj = linear(hidden_size, hidden_size, bias=use_bias)
        self.k_proj = linear(hidden_size, hidden_size, bias=use_bias)
        self.v_proj = linear(hidden_size, hidden_size, bias=use_bias)
        self.o_proj = ends_branch(linear(hidden_size, hidden_size, bias=use_bias))
        self.q_norm = RMSNorm(self.head_width) if qk_norm else None
        self.k_norm = RMSNorm(self.head_width) if qk_norm else None

    @classmethod
    def options(cls, config) -> dict:
        return {
            "hidden_size": config.hidden_size,
            "num_heads": config.num_attention_heads,
            "position_type": config.position_type,
            "rope_theta": config.rope_theta,
            "use_bias": config.use_bias,
            "qk_norm": bool(config.qk_norm),
            "attention_dropout": config.attention_dropout,
            "linear": linear_factory(config, config.use_bitnet),
        }

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k, v, each (B, H, L, K)."""
        shape = (x.shape[0], x.shape[1], self.num_heads, self.head_width)
        projected = apply_together(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (each.view(shape).transpose(1, 2) for each in projected)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def rotate(self, q, k, context: SequenceContext) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rope_theta is None:
            return q, k
        tables = shared_rotary_tables(context, self.head_width, self.rope_theta, q.dtype)
        return apply_rotary(q, tables), apply_rotary(k, tables)

    def attend(
        self, q, k, v, context: SequenceContext, logical_layer_idx: int, evaluation: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the heads' outputs (B, H, L, K), and the weights (B, H, L, T) when they are all in one block."""
        q, k = self.rotate(q, k, context)
        state = context.state(logical_layer_idx)
        if state is not None:
            k, v = state.append(k, v, evaluation)
        blocks = context.blocks()
        if len(blocks) == 1 and blocks[0].keys == slice(0, k.shape[2]):
            return self.attend_block(q, k, v, blocks[0], context, logical_layer_idx)
        outputs = [
            self.attend_block(
                q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys], block, context, logical_layer_idx
            )
            for block in blocks
        ]
        return torch.cat([heads for heads, _ in outputs], dim=2), None

    def attend_block(self, q, k, v, block: Block, context: SequenceContext, logical_layer_idx: int):
        """Attend from the block's queries (B, H, Lq, K) to its keys (B, H, Lk, K)."""
        dropout = self.attention_dropout if self.training else 0.0
        if context.attn_implementation == "sdpa":
            return _fused_attention(q, k, v, block.visible, block.is_causal, dropout, self.scale), None
        scores = at_least_float32(q @ k.transpose(-1, -2)) * self.scale
        return _softmax_attention(scores, v, block, dropout)

    def merge(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, H, L, K) -> (B, L, D), through the output projection."""
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    def forward(self, x, context, logical_layer_idx, evaluation: int = 0):
        heads, weights = self.attend(*self.heads(x), context, logical_layer_idx, evaluation)
        return self.merge(heads), weights if context.keep_weights else None


class TitanAttention(StandardAttention):
    """Softmax attention with hyperbolic positions; the damping grows with the logical layer.

    Without `use_hope` it is StandardAttention. Logits and position factors are computed in at least float32.
    `use_memory` adds a delta memory, which also remembers what lies beyond an attention window; see delta_memory.py.
    With `normalize_attention` the attention's heads are RMS-normalised, as the memory's are, before they are added up.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        use_hope: bool = True,
        hope_damping: float = 0.01,
        hope_rho: float = 0.9,
        hope_base: float = 1e4,
        hope_layer_scale: float = 0.05,
        use_memory: bool = False,
        memory_chunk: int = 32,
        memory_read_bias: float = READ_BIAS,
        normalize_attention: bool = False,
        **attention_options,
    ):
        super().__init__(hidden_size, num_heads, **attention_options)
        self.memory = DeltaMemory(hidden_size, num_heads, memory_chunk, memory_read_bias) if use_memory else None
        self.normalize_attention = normalize_attention
        self.use_hope = use_hope
        self.carries_position = self.carries_position or use_hope or use_memory
        self.hope_damping = hope_damping
        self.hope_rho = hope_rho
        self.hope_base = hope_base
        self.hope_layer_scale = hope_layer_scale

    @classmethod
    def options(cls, config) -> dict:
        return {
            **super().options(config),
            "use_hope": config.use_hope,
            "hope_damping": config.hope_damping,
            "hope_rho": config.hope_rho,
            "hope_base": config.hope_base,
            "hope_layer_scale": config.hope_layer_scale,
            "use_memory": config.use_titan_memory,
            "memory_chunk": config.memory_chunk,
            "memory_read_bias": config.memory_read_bias,
            "normalize_attention": config.memory_merge == "normalized",
        }

    def rates(self, logical_layer_idx: int) -> HopeRates:
        """Return this layer's decay rates, each (K,) float64."""
        damping = self.hope_damping * (1 + self.hope_layer_scale * logical_layer_idx)
        return hope_rates(self.head_width, damping, self.hope_rho, self.hope_base)

    def forward(self, x, context, logical_layer_idx, evaluation: int = 0):
        q, k, v = self.heads(x)
        heads, weights = self.attend(q, k, v, context, logical_layer_idx, evaluation)
        if self.memory is not None:
            heads = rms_normalize(heads) if self.normalize_attention else heads
            heads = heads + self.memory(x, q, k, v, context, context.state(logical_layer_idx))
        return self.merge(heads), weights if context.keep_weights else None

    def rotate(self, q, k, context):
        # Keys are cached as they are: a factor e^(rate n) on them would overflow as n grows.
        return (to_light_cone(q), to_light_cone(k)) if self.use_hope else super().rotate(q, k, context)

    def attend_block(self, q, k, v, block, context, logical_layer_idx):
        if not self.use_hope:
            return super().attend_block(q, k, v, block, context, logical_layer_idx)
        with full_precision(q.device.type):
            return self._attend_hyperbolically(q, k, v, block, context, self.rates(logical_layer_idx))

    def _attend_hyperbolically(self, q, k, v, block, context, rates):
        if context.attn_implementation == "sdpa" and context.is_causal:
            cuts = hope_cuts(block.query_ids, block.key_ids, rates.span, block.is_contiguous)
            if cuts is not None:
                return self._attend_in_runs(q, k, at_least_float32(v), block, context, rates.past, cuts).to(
                    v.dtype
                ), None
        scores = hope_scores(q, k, block.query_ids, block.key_ids, rates, context.is_causal, block.is_contiguous)
        return _softmax_attention(scores * self.scale, v, block, self.attention_dropout if self.training else 0.0)

    def _attend_in_runs(self, q, k, v, block, context, rates, cuts):
        """Attend from each run of queries, counted from a centre of its own, to all keys before it and in it."""
        past, outputs = k.shape[2] - q.shape[2], []
        for start, stop in cuts:
            ids, seen = block.query_ids[:, start:stop], past + stop
            queries, keys = hope_features(
                q[:, :, start:stop], k[:, :, :seen], ids, block.key_ids[:, :seen], rates, middle(ids)
            )
            outputs.append(self._attend_run(queries, keys, v[:, :, :seen], block, context, start, stop))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _attend_run(self, q, k, v, block, context, start, stop):
        """Attend from the block's queries start..stop (B, H, Lq, K) to the keys (B, H, Lk, K) that end with them."""
        dropout = self.attention_dropout if self.training else 0.0
        if block.visible is not None or not start:
            visible = None if block.visible is None else block.visible[:, :, start:stop, : k.shape[2]]
            return _fused_attention(q, k, v, visible, block.is_causal, dropout, self.scale)
        total = block.key_ids.shape[1]
        mask = context.shared(("end mask", total, v.dtype), lambda: end_mask(total, v))
        outputs = []
        for queries in q.split(MASKED_QUERIES, dim=2):
            start += queries.shape[2]  # (now the end of these queries, and as many keys)
            visible = mask[-queries.shape[2] :, total - start :]
            outputs.append(
                _fused_attention(queries, k[:, :, :start], v[:, :, :start], visible, False, dropout, self.scale)
            )
        return torch.cat(outputs, dim=2)


class SigmoidAttention(StandardAttention):
    """sum_j sigmoid(q_i k_j / sqrt(K) - log(n_i) + b_h) v_j, followed by an RMSNorm (the paper's hybrid norm)."""

    def __init__(self, hidden_size: int, num_heads: int, *, qk_norm: bool = True, **attention_options):
        super().__init__(hidden_size, num_heads, qk_norm=qk_norm, **attention_options)
        self.head_bias = nn.Parameter(torch.empty(num_heads))
        self.output_norm = RMSNorm(hidden_size)
        self.initialize_parameters()

    @classmethod
    def options(cls, config) -> dict:
        return {**super().options(config), "qk_norm": config.qk_norm is not False}

    def initialize_parameters(self) -> None:
        init.zeros_(self.head_bias)

    def attend_block(self, q, k, v, block, context, logical_layer_idx):
        visible = block.visible_keys()
        keys_seen = visible.sum(-1, keepdim=True)  # n_i: without its logarithm the sum would grow with the text
        logits = at_least_float32(q @ k.transpose(-1, -2)) * self.scale
        logits = logits - keys_seen.to(logits.dtype).log() + self.head_bias[:, None, None]
        weights = logits.masked_fill(~visible, float("-inf")).sigmoid()
        dropped = F.dropout(weights, self.attention_dropout, self.training)
        return dropped.to(v.dtype) @ v, weights

    def merge(self, heads):
        return self.output_norm(super().merge(heads))
