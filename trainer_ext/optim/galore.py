"""GaLore: AdamW whose moments live in a low-rank projection of the gradient (Zhao et al. 2024, arXiv:2403.03507).

For the gradient G (m, n) of a matrix, every `update_gap` steps P holds its leading singular vectors: the left ones
(m, r) where m <= n, the right ones (n, r) elsewhere. Adam runs on R = P^T G (or G P), and the weight moves by
lr * scale * P N (or N P^T), N being Adam's normalised step (algorithm 2). Weight decay is decoupled, as in AdamW.
The state holds nothing but tensors. What is no matrix has torch's AdamW beside it (`beside_adamw`).
"""

import logging
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers.pytorch_utils import Conv1D

from frankenlm.modeling.checks import check_choice
from frankenlm.modeling.embeddings import FactorizedEmbedding
from frankenlm.modeling.full_linear import FullPrecisionLinear

from ..common.cli import Failed, UserError
from .eight_bits import keep, recalled
from .sign_training import SideBySide

logger = logging.getLogger("frankenlm.galore")

MATRIX_OPTIMIZERS = ("same", "galore", "muon")
# std: the side with fewer rows or columns is projected; reverse_std: the other; left, right: always this one.
PROJECTIONS = ("std", "reverse_std", "left", "right")


class GaLoreAdamW(Optimizer):
    """See the module.

    Args:
        params: matrices, or groups of them as of any optimizer.
        rank: of the projected gradient; a matrix with a shorter side has that side's. update_gap: steps between two
            projections. scale: of the projected step (0.25 in the paper). projection: one of PROJECTIONS.
        bits: of an element of the moments, 32 (their own dtype) or 8 (`eight_bits.py`).

    Raises:
        ValueError: numbers out of range, or a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int,
        update_gap: int = 200,
        scale: float = 0.25,
        projection: str = "std",
        bits: int = 32,
    ):
        shared = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        own = {"rank": rank, "update_gap": update_gap, "scale": scale, "projection": projection, "bits": bits}
        super().__init__(params, {**shared, **own})
        for group in self.param_groups:
            _check_group(group)
        sides = [min(weight.shape) for group in self.param_groups for weight in group["params"]]
        if min(sides) < rank:
            shorter = sum(side < rank for side in sides)
            logger.info("rank %d: %d of %d matrices have a shorter side, and get that", rank, shorter, len(sides))

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def _move(self, weight: torch.Tensor, group: dict) -> None:
        state, gradient = self.state[weight], weight.grad
        if not state:
            state["step"] = torch.tensor(0.0)
        left = projects_left(gradient, group["projection"])
        if int(state["step"]) % group["update_gap"] == 0:
            state["projector"] = leading_vectors(gradient, group["rank"], left)
        projector = state["projector"]
        gradient = projector.T @ gradient if left else gradient @ projector  # (r, n) or (m, r)
        state["step"] += 1
        moments = recalled(state, gradient) if group["bits"] == 8 else state
        if "exp_avg" not in moments:
            moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        move = adam_step(gradient, moments, group["betas"], group["eps"])
        if group["bits"] == 8:
            keep(state, moments)
        move = group["scale"] * (projector @ move if left else move @ projector.T)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(group["lr"] * move)


def adam_step(gradient: torch.Tensor, state: dict, betas: tuple[float, float], eps: float) -> torch.Tensor:
    """Update the moments and return Adam's step, m_hat / (sqrt(v_hat) + eps) (Kingma and Ba 2015)."""
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    step = float(state["step"])
    mean = state["exp_avg"] / (1 - betas[0] ** step)
    return mean / ((state["exp_avg_sq"] / (1 - betas[1] ** step)).sqrt() + eps)


def projects_left(gradient: torch.Tensor, projection: str) -> bool:
    """Whether the rows of a gradient (m, n) are projected, from m to the rank."""
    if projection in ("left", "right"):
        return projection == "left"
    return (gradient.shape[0] <= gradient.shape[1]) is (projection == "std")


def leading_vectors(gradient: torch.Tensor, rank: int, left: bool) -> torch.Tensor:
    """Return the leading left (m, r) or right (n, r) singular vectors of a gradient (m, n), at least in float32.

    Raises:
        Failed: the gradient is not finite.
    """
    if not gradient.isfinite().all():
        raise Failed("GaLore cannot project a gradient with NaN or Inf: leave out --no_gradient_guard.")
    full = gradient if gradient.dtype == torch.float64 else gradient.float()
    u, _, vh = torch.linalg.svd(full, full_matrices=False)
    vectors = u[:, :rank] if left else vh[:rank].T
    return vectors.to(gradient.dtype).contiguous()


def _check_group(group: dict) -> None:
    check_choice("projection", group["projection"], PROJECTIONS)
    for name in ("rank", "update_gap"):
        if type(group[name]) is not int or group[name] < 1:
            raise ValueError(f"{name}={group[name]!r} must be a whole number of at least 1.")
    if group["bits"] not in (8, 32):
        raise ValueError(f"bits={group['bits']!r} must be 8 or 32.")
    if not group["scale"] > 0:
        raise ValueError(f"scale={group['scale']!r} must be positive.")
    for weight in group["params"]:
        if weight.ndim != 2:
            raise ValueError(f"a parameter of shape {tuple(weight.shape)} has no rank: GaLore takes matrices.")


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights that GaLore and Muon are for: of linear layers (BitLinear, Conv1D too) inside the stack.

    Embeddings, heads, norms, routers and gates (layers that compute in full precision) are left out.

    Raises:
        UserError: the model has none.
    """
    stack = model.base_model if hasattr(model, "base_model") else model
    ends = [module for module in stack.modules() if isinstance(module, FactorizedEmbedding)]
    outside = {id(module) for end in ends for module in end.modules()}
    inside = {
        id(module.weight)
        for module in stack.modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and not isinstance(module, FullPrecisionLinear)
        and id(module) not in outside
    }
    found = {name for name, weight in model.named_parameters() if id(weight) in inside}
    if not found:
        raise UserError("--matrix_optimizer: this model has no linear layers inside its stack; leave it out.")
    return found


def beside_adamw(
    groups: list[dict], matrices: set[int], make: Callable[[list[dict]], Optimizer], **adamw
) -> SideBySide:
    """Return torch's AdamW, and beside it what `make` makes of the parameters whose id is in `matrices`.

    Args:
        groups: params and weight_decay, as a Trainer makes them. adamw: lr, betas and eps.
    """

    def part(inside: bool) -> list[dict]:
        parts = []
        for group in groups:
            chosen = [weight for weight in group["params"] if (id(weight) in matrices) is inside]
            parts += [{**group, "params": chosen}] if chosen else []
        return parts

    return SideBySide(AdamW(part(False), **adamw), make(part(True)))


def muon(groups: list[dict], lr: float) -> torch.optim.Muon:
    """Return Muon with its step brought to AdamW's size, so that one rate serves both (Liu et al. 2025,
    arXiv:2502.16982).
    """
    return torch.optim.Muon(groups, lr=lr, adjust_lr_fn="match_rms_adamw")
