"""Feed-forward blocks: dense, and a dropless mixture of experts.

swiglu: Shazeer 2020, arXiv:2002.05202.  relu2: So et al. 2021, arXiv:2109.08668.
Mixture: Shazeer et al. 2017, arXiv:1701.06538, top-k without capacity limit, so a token never depends on other ones;
balancing loss as in Switch (Fedus et al. 2021, arXiv:2101.03961, eq. 4); z-loss as in ST-MoE (arXiv:2202.08906).
Shapes: B batch, L length, T real tokens, D hidden, F intermediate, E experts, k experts per token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .bitlinear import BitLinear, LinearFactory, apply_together
from .checks import check_choice
from .full_linear import FullPrecisionLinear
from .mixer_base import ends_branch
from .norms import at_least_float32
from .outputs import IGNORED_LABEL
from .packed_linear import PackedBitLinear


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    positive = F.relu(x)
    return positive.square() if torch.is_grad_enabled() else positive.mul_(positive)


ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "relu2": squared_relu, "swiglu": F.silu}


# Layers known to run on no tokens at all; bitsandbytes' 4-bit product on a CPU, say, ends the process.
TAKE_NO_TOKENS = (nn.Linear, BitLinear, PackedBitLinear)


class RouterStatistics(NamedTuple):
    """What one logical layer's router did with the real tokens of a batch.

    load: (E,) assignments over tokens, sums to k, without gradient. balance_loss: k when uniform, E when k experts
    take all. z_loss: mean squared logsumexp of the logits.
    """

    load: torch.Tensor
    balance_loss: torch.Tensor
    z_loss: torch.Tensor


class FeedForward(nn.Module):
    """W2 act(W1 x), or W2 (silu(W_gate x) * W1 x) for swiglu."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        *,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        check_choice("hidden_act", activation, ACTIVATIONS)
        self.activation = ACTIVATIONS[activation]
        self.up_proj = linear(hidden_size, intermediate_size, bias=use_bias)
        self.gate_proj = linear(hidden_size, intermediate_size, bias=use_bias) if activation == "swiglu" else None
        self.down_proj = ends_branch(linear(intermediate_size, hidden_size, bias=use_bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        up, gate = apply_together(x, self.up_proj, self.gate_proj)
        return self.down_proj(self.activation(gate) * up)


class MixtureOfExperts(nn.Module):
    """Each token goes through its k most probable experts, weighted by their renormalised probabilities."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        num_experts: int,
        top_k: int,
        use_bias: bool = False,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.top_k = top_k
        self.router = FullPrecisionLinear(hidden_size, num_experts, bias=False)  # it decides, it does not compute
        self.experts = nn.ModuleList(
            FeedForward(hidden_size, intermediate_size, activation, use_bias=use_bias, linear=linear)
            for _ in range(num_experts)
        )

    def route(
        self, tokens: torch.Tensor, real: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, RouterStatistics]:
        """Return the chosen experts (T, k) int64, their weights (T, k) and the statistics, for tokens (T, D).

        The statistics are of all tokens, or of those where `real` (T,) bool is True.
        """
        logits = at_least_float32(self.router(tokens))
        probabilities = logits.softmax(-1)
        chosen = self.choose(probabilities.detach())
        weights = probabilities.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        if torch.compiler.is_compiling():
            return chosen, weights, router_statistics_of(logits, probabilities, chosen, real)
        return chosen, weights, router_statistics(logits, probabilities, chosen)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, RouterStatistics]:
        """Map x (B, L, D) with mask (B, L) bool; pads are neither routed nor counted, and come out as zeros."""
        flat = x.flatten(0, 1)
        if torch.compiler.is_compiling():
            return self.forward_densely(flat, None if mask is None else mask.flatten(), x.shape)
        real = None if mask is None else mask.flatten().nonzero().squeeze(1)
        tokens = flat if real is None else flat[real]
        chosen, weights, statistics = self.route(tokens)
        mixed = self.run_experts(tokens, chosen, weights)
        if real is not None:
            mixed = torch.zeros_like(flat, dtype=mixed.dtype).index_copy(0, real, mixed)
        return mixed.view_as(x), statistics

    def choose(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return (T, k) int64, the most probable experts first, at ties the lower index: topk does not promise it."""
        if not torch.compiler.is_exporting():
            return probabilities.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]
        chosen = []  # ONNX has no stable sort
        for _ in range(self.top_k):
            chosen.append(probabilities.argmax(-1, keepdim=True))
            probabilities = probabilities.scatter(1, chosen[-1], -1.0)
        return torch.cat(chosen, dim=1)

    def forward_densely(self, tokens, real, shape):
        """As `forward`, for tokens (T, D) and real (T,) bool or None: every expert takes every token, and a token takes
        from those that it chose. How many choose an expert depends on the data, and a compiled graph may not."""
        chosen, weights, statistics = self.route(tokens, real)
        shares = torch.zeros_like(tokens[:, :1], dtype=weights.dtype).expand(-1, len(self.experts))
        shares = shares.scatter(1, chosen, weights)  # (T, E)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            output = expert(tokens)
            mixed = mixed + output * shares[:, index : index + 1].to(output.dtype)
        if real is not None:
            mixed = torch.where(real[:, None], mixed, 0.0)
        return mixed.view(shape), statistics

    def run_experts(self, tokens, chosen, weights):
        """Sort the assignments by expert and give each expert its tokens in one piece."""
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        rows = order // self.top_k
        pieces = tokens[rows].split(counts)
        # An expert without tokens runs too, on nothing: its gradient is then zero, not missing, as DDP needs.
        outputs = torch.cat([_run_expert(expert, piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        outputs = outputs * weights.flatten()[order].unsqueeze(1).to(outputs.dtype)
        return torch.zeros_like(tokens, dtype=outputs.dtype).index_add(0, rows, outputs)


def _run_expert(expert: FeedForward, tokens: torch.Tensor) -> torch.Tensor:
    if len(tokens) or all(type(layer) in TAKE_NO_TOKENS for layer in expert.children()):
        return expert(tokens)
    return expert(tokens.new_zeros(1, tokens.shape[1]))[:0]


def router_statistics(logits: torch.Tensor, probabilities: torch.Tensor, chosen: torch.Tensor) -> RouterStatistics:
    """Summarise one router over its T tokens; all zeros when there are none.

    Args:
        logits, probabilities: (T, E) float32.
        chosen: (T, k) int64.
    """
    tokens, experts = probabilities.shape
    load = chosen.flatten().bincount(minlength=experts).to(probabilities.dtype) / max(tokens, 1)
    importance = probabilities.sum(0) / max(tokens, 1)
    z_loss = logits.logsumexp(-1).square().sum() / max(tokens, 1)
    return RouterStatistics(load, experts * (load * importance).sum(), z_loss)


def router_statistics_of(
    logits: torch.Tensor, probabilities: torch.Tensor, chosen: torch.Tensor, real: torch.Tensor | None
) -> RouterStatistics:
    """As `router_statistics`, of the tokens where real (T,) bool is True, by sums alone; None takes all."""
    experts = torch.arange(probabilities.shape[1], device=chosen.device)
    counts = (chosen[..., None] == experts).sum(1).to(probabilities.dtype)  # (T, E), 1 where a token goes
    weight = torch.ones_like(probabilities[:, 0]) if real is None else real.to(probabilities.dtype)
    total = weight.sum().clamp_min(1)
    load = (counts * weight[:, None]).sum(0) / total
    importance = (probabilities * weight[:, None]).sum(0) / total
    z_loss = (logits.logsumexp(-1).square() * weight).sum() / total
    return RouterStatistics(load, len(experts) * (load * importance).sum(), z_loss)


def summarize_routers(routers: list[RouterStatistics]) -> dict[str, torch.Tensor]:
    """Return what the routers of all logical layers come to, as fields of FrankensteinModelOutput; {} without any.

    They lie on the first one's device.
    """
    if not routers:
        return {}
    place = routers[0].load.device
    return {
        "aux_loss": torch.stack([router.balance_loss.to(place) for router in routers]).mean(),
        "router_z_loss": torch.stack([router.z_loss.to(place) for router in routers]).mean(),
        "expert_load": torch.stack([router.load.to(place) for router in routers]),
    }


def weighted_router_loss(config, outputs, labels: torch.Tensor, num_items_in_batch) -> torch.Tensor:
    """Return the router losses as they enter the loss of a batch with these labels.

    With gradient accumulation the Trainer sums the micro-batches' losses, each already divided by the labels of all of
    them (`num_items_in_batch`); the router losses, means over tokens, get this micro-batch's share of it.
    """
    loss = config.router_aux_loss_coef * outputs.aux_loss + config.router_z_loss_coef * outputs.router_z_loss
    return loss if num_items_in_batch is None else (labels != IGNORED_LABEL).sum() / num_items_in_batch * loss
