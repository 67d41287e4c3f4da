"""The memory branch of Titan attention: per head a matrix of associations, written and read by every token.

Titans (arXiv:2501.00663) with a linear memory and without momentum, combined as a gate ("memory as gate"). Memory and
attention share queries, keys and values. Shapes: B batch, H heads, L length, K head width, D hidden.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .cache import LayerState
from .context import SequenceContext
from .full_linear import FullPrecisionLinear
from .norms import at_least_float32, full_precision, rms_normalize
from .scan_delta import delta_scan_chunked

KEY_EPS = 1e-6
FORGETTING = (0.02, 0.001)  # 1 - alpha of the first and the last head at init
WRITE_BIAS = -2.0
READ_BIAS = -1.0


def forgetting_bias(num_heads: int) -> list[float]:
    """Return b_a per head: forgetting runs from 0.02 to 0.001 in even steps of its logarithm."""
    first, last = (math.log(share) for share in FORGETTING)
    steps = (first + (last - first) * head / max(num_heads - 1, 1) for head in range(num_heads))
    return [math.log(math.exp(-step) - 1) for step in steps]  # sigmoid of it is 1 - forgetting


class Gate(FullPrecisionLinear):
    """One gate per head, (B, L, D) -> (B, L, H), before its sigmoid; its biases start where they are told.

    In at least float32, also under autocast: an alpha of 0.999 lies within bfloat16's rounding of 1.
    """

    def __init__(self, hidden_size: int, initial_bias: list[float]):
        super().__init__(hidden_size, len(initial_bias))
        self.initial_bias = initial_bias
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        init.copy_(self.bias, torch.tensor(self.initial_bias))


class DeltaMemory(nn.Module):
    """sigmoid(W_m x + b_m) * RMSNorm(M_t q_t), to be added to the heads of the attention.

    alpha = sigmoid(W_a x + b_a) forgets, eta = sigmoid(W_e x + b_e) writes; q and k are scaled to length 1.
    A fresh read gate is sigmoid(-1) = 0.27, which makes the branch about fifteen times as loud as the attention that it
    is added to (measured at width 128, init 0.02: rms 0.269 beside 0.018); -4 makes it 0.018, as loud as that.
    A token reads after it has written. Both directions: the mean of a forward and a backward scan, weights shared.

    Args:
        chunk_size: tokens per chunk of the scan. 64 in place of 32 takes 1.0 to 1.3 of its time forward; with the
            backward pass 0.9 to 1.1, less with more threads. 16 and 128 are slower (`scripts/bench/mixers.py`).
        read_bias: b_m at the start.
    """

    scans = True

    def __init__(self, hidden_size: int, num_heads: int, chunk_size: int = 32, read_bias: float = READ_BIAS):
        super().__init__()
        self.chunk_size = chunk_size
        self.forget_proj = Gate(hidden_size, forgetting_bias(num_heads))
        self.write_proj = Gate(hidden_size, [WRITE_BIAS] * num_heads)
        self.read_proj = Gate(hidden_size, [read_bias] * num_heads)

    def gates(self, x: torch.Tensor, context: SequenceContext) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log alpha and eta, (B, H, L), both 0 at pads, and the read gate (B, H, L, 1)."""
        forget, write, read = (
            at_least_float32(gate(x)) for gate in (self.forget_proj, self.write_proj, self.read_proj)
        )
        log_alpha = context.zero_pads(F.logsigmoid(forget)).transpose(1, 2)
        eta = context.zero_pads(write.sigmoid()).transpose(1, 2)
        return log_alpha, eta, read.sigmoid().transpose(1, 2)[..., None]

    def recall(self, q, k, v, log_alpha, eta, context: SequenceContext, state: LayerState | None) -> torch.Tensor:
        """Return M_t q_t, (B, H, L, K), for unit queries and keys; `state` is read and brought up to date."""
        before = None if state is None else state.tensors.get("memory")
        forward, after = delta_scan_chunked(
            q, k, v, log_alpha, eta, self.chunk_size, before, context.document_ids, context.scan_backend
        )
        if state is not None:
            state.tensors["memory"] = after
        if context.is_causal:
            return forward
        backward, _ = delta_scan_chunked(
            *(t.flip(2) for t in (q, k, v, log_alpha, eta)),
            self.chunk_size,
            document_ids=context.reversed_document_ids,
            backend=context.scan_backend,
        )
        return 0.5 * (forward + backward.flip(2))

    def forward(self, x, q, k, v, context: SequenceContext, state: LayerState | None) -> torch.Tensor:
        """Map the normalised stream x (B, L, D) and the heads q, k, v (B, H, L, K) to what the heads recall."""
        log_alpha, eta, gate = self.gates(x, context)
        with full_precision(x.device.type):
            q, k = (F.normalize(at_least_float32(heads), dim=-1, eps=KEY_EPS) for heads in (q, k))
            recalled = self.recall(q, k, at_least_float32(v), log_alpha, eta, context, state)
            return (gate * rms_normalize(recalled)).to(v.dtype)
