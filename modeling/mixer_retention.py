"""Retention: attention without softmax whose memory of the past fades at a fixed rate per head.

Paper: Sun et al. 2023, "Retentive Network", arXiv:2307.08621.
Differs from the paper: plain rotary positions instead of xPos; an RMSNorm without gain on each head instead of
GroupNorm and of the row rescaling (which has no exact recurrent form); value width D by default, not 2D.
Both directions: decay gamma^|n-m|, the sum of a forward and a backward scan less the diagonal that both count.
Shapes: B batch, L length, D hidden, H heads, K key width, V value width per head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .bitlinear import LinearFactory, linear_factory
from .cache import LayerState
from .checks import check_choice
from .mixer_base import Mixer, ends_branch
from .norms import at_least_float32, full_precision, rms_normalize
from .positions import apply_rotary, shared_rotary_tables
from .scan_linear import linear_scan_chunked, may_reuse

DECAYS = ("linspace", "paper")


def retention_log_decay(num_heads: int, kind: str = "linspace") -> torch.Tensor:
    """Return log gamma per head, (H,) float64.

    "linspace": gamma = 1 - exp(linspace(log 1/32, log 1/512, H)), as published with the code;
    "paper": gamma_h = 1 - 2^(-5-h), equation 8.
    """
    check_choice("retnet_decay", kind, DECAYS)
    if kind == "paper":
        forgetting = 2.0 ** (-5.0 - torch.arange(num_heads, dtype=torch.float64))
    else:
        forgetting = torch.linspace(math.log(1 / 32), math.log(1 / 512), num_heads, dtype=torch.float64).exp()
    return torch.log1p(-forgetting)


class Retention(Mixer):
    """W_o( silu(W_g x) * headRMSNorm(retention(q, k, v)) )."""

    carries_position = True
    scans = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        value_factor: int = 1,
        rotary: bool = True,
        rope_theta: float = 1e4,
        decay: str = "linspace",
        chunk_size: int = 64,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.key_width = hidden_size // num_heads
        self.rope_theta = rope_theta if rotary else None
        self.decay = decay
        self.chunk_size = chunk_size
        value_size = value_factor * hidden_size
        self.q_proj = linear(hidden_size, hidden_size, bias=use_bias)
        self.k_proj = linear(hidden_size, hidden_size, bias=use_bias)
        self.v_proj = linear(hidden_size, value_size, bias=use_bias)
        self.g_proj = linear(hidden_size, value_size, bias=use_bias)
        self.o_proj = ends_branch(linear(value_size, hidden_size, bias=use_bias))

    @classmethod
    def options(cls, config) -> dict:
        return {
            "hidden_size": config.hidden_size,
            "num_heads": config.retention_heads,
            "value_factor": config.retnet_value_factor,
            "rotary": config.retnet_rotary,
            "rope_theta": config.rope_theta,
            "decay": config.retnet_decay,
            "chunk_size": config.chunk_size,
            "use_bias": config.use_bias,
            "linear": linear_factory(config, config.use_bitnet),
        }

    def heads(self, x, context):
        """Return q, k (B, L, H, K) and v (B, L, H, V) in at least float32; keys are zero at pads."""
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = at_least_float32(q), at_least_float32(k) * self.key_width**-0.5, at_least_float32(v)
        if self.rope_theta is not None:
            cos, sin = shared_rotary_tables(context, self.key_width, self.rope_theta, q.dtype)
            tables = cos.transpose(1, 2), sin.transpose(1, 2)
            q, k = apply_rotary(q, tables), apply_rotary(k, tables)
        return q, context.zero_pads(k), v

    def log_decay(self, context, like: torch.Tensor) -> torch.Tensor:
        """Return (B or 1, L, H) log gamma, 0 at pads: the identity step."""
        key = ("log gamma", self.num_heads, self.decay, like.dtype)
        log_gamma = context.shared(key, lambda: retention_log_decay(self.num_heads, self.decay).to(like))
        if context.mask is None:
            return log_gamma.expand(1, context.position_ids.shape[1], self.num_heads)
        return context.zero_pads(log_gamma.expand(*context.mask.shape, self.num_heads))

    def retain(self, q, k, v, context, state: LayerState | None) -> torch.Tensor:
        """Return (B, L, H, V), in either direction, at linear cost; `state` is read and brought up to date."""
        log_decay = self.log_decay(context, q)
        before = None if state is None else state.tensors.get("retained")
        forward, after = linear_scan_chunked(
            q, k, v, log_decay, self.chunk_size, before, may_reuse(before), context.document_ids, context.scan_backend
        )
        if state is not None:
            state.tensors["retained"] = after
        if context.is_causal:
            return forward
        flipped = (t.flip(1) for t in (q, k, v, log_decay))
        backward, _ = linear_scan_chunked(
            *flipped, self.chunk_size, None, False, context.reversed_document_ids, context.scan_backend
        )
        # both scans hold the token's own term (q_t k_t) v_t, which counts once
        return forward + backward.flip(1) - (q * k).sum(-1, keepdim=True) * v

    def forward(self, x, context, logical_layer_idx):
        q, k, v = self.heads(x, context)
        with full_precision(x.device.type):
            retained = self.retain(q, k, v, context, context.state(logical_layer_idx))
        retained = rms_normalize(retained).flatten(2).to(x.dtype)  # each head by itself, then (B, L, H V)
        return self.o_proj(F.silu(self.g_proj(x)) * retained), None
