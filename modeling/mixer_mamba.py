"""Mamba-2: a selective state-space model in its dual, attention-like form.

Paper: Dao & Gu 2024, "Transformers are SSMs", arXiv:2405.21060; one group.
Both directions: convolution and scan run on the sequence and on its reverse with the same weights, and the two are
averaged before gate, norm and output projection.
Shapes: B batch, L length, D hidden, I = expand * D inner, H heads of width V = I/H, N state.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .bitlinear import LinearFactory, linear_factory
from .cache import LayerState, slide_window
from .context import zero_pads
from .documents import Documents
from .full_linear import UnroundedLinear
from .mixer_base import Mixer, ends_branch
from .norms import RMSNorm, at_least_float32, full_precision
from .scan_linear import linear_scan_chunked, may_reuse

A_RANGE = (1.0, 16.0)
DT_RANGE = (1e-3, 0.1)
DT_FLOOR = 1e-4  # at init only: in the forward pass pads need dt = 0


class DepthwiseConv(nn.Conv1d):
    """A convolution of each channel by itself, (B, C, T) -> (B, C, T - kernel + 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] != self.kernel_size[0]:
            return super().forward(x)
        # Over one place, as in decoding, a product and a sum take less time than a convolution.
        inputs = x.transpose(1, 2)
        taps = self.weight.squeeze(1).transpose(0, 1).to(x.dtype)
        return ((inputs * taps).sum(1, keepdim=True) + self.bias.to(x.dtype)).transpose(1, 2)


class Mamba2(Mixer):
    """z, xBC, dt = W_in u;  x, B, C = silu(conv(xBC));  y = SSM(x, B, C, dt) + D x;  W_out RMSNorm(y silu(z))."""

    carries_position = True
    scans = True

    def __init__(
        self,
        hidden_size: int,
        *,
        expand: int = 2,
        head_dim: int = 64,
        state_size: int = 64,
        conv_kernel: int = 4,
        chunk_size: int = 64,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.inner_size = expand * hidden_size
        self.num_heads = self.inner_size // head_dim
        self.state_size = state_size
        self.chunk_size = chunk_size
        conv_size = self.inner_size + 2 * state_size
        # Rounding errors of step sizes add up along the sequence: no 4 or 8 bits here, as for transformers' Jamba.
        linear = UnroundedLinear if linear is nn.Linear else linear
        self.in_proj = linear(hidden_size, self.inner_size + conv_size + self.num_heads, bias=use_bias)
        self.conv1d = DepthwiseConv(conv_size, conv_size, conv_kernel, groups=conv_size)
        # Exponents and step sizes stay in float32 (or more) however the model is made: `_keep_in_fp32_modules_strict`.
        scalars = {"dtype": torch.promote_types(torch.get_default_dtype(), torch.float32)}
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, **scalars))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, **scalars))
        self.D = nn.Parameter(torch.empty(self.num_heads, **scalars))
        self.norm = RMSNorm(self.inner_size)
        self.out_proj = ends_branch(linear(self.inner_size, hidden_size, bias=use_bias))
        self.initialize_parameters()

    @classmethod
    def options(cls, config) -> dict:
        return {
            "hidden_size": config.hidden_size,
            "expand": config.mamba_expand,
            "head_dim": config.mamba_head_dim,
            "state_size": config.mamba_state,
            "conv_kernel": config.mamba_conv,
            "chunk_size": config.chunk_size,
            "use_bias": config.use_bias,
            "linear": linear_factory(config, config.use_bitnet),
        }

    def initialize_parameters(self) -> None:
        bound = self.conv1d.kernel_size[0] ** -0.5
        init.uniform_(self.conv1d.weight, -bound, bound)
        init.zeros_(self.conv1d.bias)
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(*A_RANGE).log())
        low, high = (math.log(limit) for limit in DT_RANGE)
        dt = torch.empty_like(self.dt_bias).uniform_(low, high).exp().clamp_min(DT_FLOOR)
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        init.ones_(self.D)

    def convolve(self, xBC, mask, documents: Documents | None, state: LayerState | None):
        """Return silu(causal depthwise convolution), (B, L, I+2N); pads are zero before and after."""
        width = self.conv1d.kernel_size[0] - 1
        window = None if state is None else state.tensors.get("conv")
        ids = None if documents is None else documents.ids
        inputs, window = slide_window(zero_pads(xBC, mask), window, width, mask, ids)
        if state is not None:
            state.tensors["conv"] = window
        if documents is None:
            convolved = self.conv1d(inputs.transpose(1, 2)).transpose(1, 2)
        else:
            convolved = documents.convolve(self.conv1d, inputs, width)
        return zero_pads(F.silu(convolved), mask)

    def scan(self, xBC, dt, documents: Documents | None, state: LayerState | None, backend: str):
        """Return the state-space output with its skip, (B, L, H, V), for convolved inputs and step sizes (B, L, H)."""
        x, B, C = xBC.split([self.inner_size, self.state_size, self.state_size], dim=-1)
        x = x.unflatten(-1, (self.num_heads, -1))  # (B, L, H, V)
        # the linear scan with q = C, k = B, shared by all heads (one group), v = dt x, and log a = -dt exp(A_log)
        log_decay = -dt * at_least_float32(self.A_log).exp()
        before = None if state is None else state.tensors.get("scan")
        ids = None if documents is None else documents.ids
        inputs = C.unsqueeze(2), B.unsqueeze(2), dt.unsqueeze(-1) * x, log_decay
        y, after = linear_scan_chunked(*inputs, self.chunk_size, before, may_reuse(before), ids, backend)
        if state is not None:
            state.tensors["scan"] = after
        return torch.addcmul(y, at_least_float32(self.D)[:, None], x)

    def one_direction(self, xBC, dt, mask, documents: Documents | None, state: LayerState | None, backend: str):
        convolved = self.convolve(xBC, mask, documents, state)
        with full_precision(xBC.device.type):
            return self.scan(at_least_float32(convolved), dt, documents, state, backend)

    def forward(self, x, context, logical_layer_idx):
        # (B, L, D) -> z (B, L, I), xBC (B, L, I + 2N), dt (B, L, H); a step of size 0, at pads, leaves the state alone
        z, xBC, dt = self.in_proj(x).split([self.inner_size, self.conv1d.in_channels, self.num_heads], dim=-1)
        dt = context.zero_pads(F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias)))
        state, backend = context.state(logical_layer_idx), context.scan_backend
        y = self.one_direction(xBC, dt, context.mask, context.documents, state, backend)
        if not context.is_causal:
            # the same weights over the row read backwards; both directions count half
            mask = None if context.mask is None else context.mask.flip(1)
            documents = None if context.documents is None else context.documents.reversed()
            backward = self.one_direction(xBC.flip(1), dt.flip(1), mask, documents, None, backend)
            y = 0.5 * (y + backward.flip(1))
        gated = y.flatten(2) * F.silu(at_least_float32(z))
        return self.out_proj(self.norm(gated).to(x.dtype)), None
