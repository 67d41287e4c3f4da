"""Training of ternary weights without master weights: two optimizers that move codes, not real numbers.

`SignLegacy` is the published rule of the C project Legacy-1bit-LLM (tmlcs, C99), for reproduction only: it snaps every
weight it touches and, with the published sign, climbs the loss. `SignAccum` is this project's proposal: a weight moves
one level when the evidence for it, a moving average of its gradients, stands out.

Both serve layers that quantise their own weight (BitLinear, BitEmbedding). The weight tensor holds no more than a code
in {-1, 0, 1} and a scale that is fixed when training starts: it is written so that the layer's quantiser reads exactly
these codes, and the forward pass sees codes * scale, up to rounding (`held_weight`). Codes are read back as the
weight's sign, so what a run needs besides the model is one bfloat16 average per weight (SignAccum), or nothing.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from frankenlm.modeling.checks import check_choice
from frankenlm.modeling.column_groups import map_groups
from frankenlm.modeling.ternary import quantize_weight

from ..ternary_stats import low_bit_layers

# Schemes that read codes back from a weight of any density: the median of a sparse one is 0, and the others have no 0.
SCHEMES = ("ternary_absmean", "ternary_twn")


def held_weight(codes: torch.Tensor, scale: torch.Tensor, scheme: str, group_size: int | None = None) -> torch.Tensor:
    """Return the weight (O, I) that `scheme` quantises to codes * scale; scale is (1, 1), (O, 1), or (O, G) of groups.

    ternary_twn takes the mean magnitude of the weights it keeps for the scale: the weight is codes * scale itself.
    ternary_absmean takes the mean over all, zeros included, so the others are held larger by the share of non-zeros.
    """
    if group_size is not None:
        return map_groups(lambda *rows: (held_weight(*rows, scheme),), group_size, codes, scale)[0]
    if scheme == "ternary_twn":
        return codes * scale
    per_row = scale.shape[0] > 1
    magnitude = codes.abs()
    density = magnitude.mean(1, keepdim=True) if per_row else magnitude.mean().reshape(1, 1)
    return codes * (scale / density.clamp_min(1.0 / codes.numel()))


def sign_legacy(codes: torch.Tensor, gradient: torch.Tensor, sign: int) -> torch.Tensor:
    """Return the codes after a step of the published rule: sign where g > 0, -sign where g < 0, as it was where g = 0.

    sign=+1 is what the C project does, with g = dL/dw: gradient ascent. sign=-1 descends.
    """
    return torch.where(gradient == 0, codes, sign * gradient.sign())


def sign_accum(
    codes: torch.Tensor, average: torch.Tensor, gradient: torch.Tensor, *, beta: float, tau: float, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and average after one step.

    average <- beta average + (1 - beta) gradient. Where its magnitude exceeds tau times its mean magnitude, the code
    moves one level against it, through 0 and within [-1, 1], and the average starts again at 0. At most `share` of the
    weights qualify in a step, those of the largest magnitude.

    Args:
        codes, average, gradient: of one shape, floating point.
    """
    average = torch.lerp(gradient, average, beta)
    magnitude = average.abs()
    chosen = magnitude > tau * magnitude.mean()
    most = int(share * codes.numel())
    if int(chosen.sum()) > most:
        chosen = torch.zeros_like(chosen)
        chosen.view(-1)[magnitude.flatten().topk(most).indices] = True
    moved = (codes - average.sign()).clamp(-1, 1)
    return torch.where(chosen, moved, codes), average.masked_fill(chosen, 0)


class _CodeOptimizer(Optimizer):
    """What the two share: weights as codes, a fixed scale in the state.

    Groups come from `code_groups`; each carries the scheme and the scale axis of its layers.
    """

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

    def _move(self, weight, group):
        state = self.state[weight]
        if not state:
            codes, scale = quantize_weight(weight, group["scheme"], group["scale_axis"], group["group_size"])
            if not codes.any():
                raise ValueError(
                    f"a ternary weight of shape {tuple(weight.shape)} is all zero: it has no scale to keep."
                )
            # to bfloat16 and back: a scale that any precision holds comes out of a checkpoint as it went in
            state["scale"] = scale.bfloat16().float()
        else:
            codes = weight.float().sign()
        codes = self._moved(codes, weight.grad.float(), state, group)
        weight.copy_(held_weight(codes, state["scale"].float(), group["scheme"], group["group_size"]))

    def _moved(self, codes, gradient, state, group):
        """Return the next codes, of the shape of `codes`, each -1, 0 or 1."""
        raise NotImplementedError(f"{type(self).__name__} must say how codes move")


class SignLegacy(_CodeOptimizer):
    """The rule of `sign_legacy` for all weights at once; it knows no rate, so the groups' lr is without effect.

    Args:
        groups: from `code_groups`.
        sign: +1, as published, or -1.

    Raises:
        ValueError: another sign.
    """

    def __init__(self, groups: Iterable[dict], sign: int = 1):
        if sign not in (-1, 1):
            raise ValueError(f"sign={sign} must be 1, the published rule, or -1, which descends.")
        super().__init__(groups, {"lr": 0.0, "sign": sign})

    def _moved(self, codes, gradient, state, group):
        return sign_legacy(codes, gradient, group["sign"])


class SignAccum(_CodeOptimizer):
    """The rule of `sign_accum`.

    Args:
        groups: from `code_groups`.
        lr: the largest share of a tensor's weights that one step may move. A schedule of the learning rate anneals it.
        beta, tau: see `sign_accum`.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, groups: Iterable[dict], lr: float = 0.01, beta: float = 0.98, tau: float = 4.0):
        if not 0 < lr <= 1:
            raise ValueError(f"lr={lr} must lie in (0, 1]: it is the share of weights that one step may move.")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta} must lie in [0, 1).")
        if tau < 0:
            raise ValueError(f"tau={tau} must not be negative.")
        super().__init__(groups, {"lr": lr, "beta": beta, "tau": tau})

    def _moved(self, codes, gradient, state, group):
        average = state["average"].float() if "average" in state else torch.zeros_like(gradient)
        options = {"beta": group["beta"], "tau": group["tau"], "share": group["lr"]}
        codes, average = sign_accum(codes, average, gradient, **options)
        state["average"] = average.bfloat16()
        return codes


def code_groups(model: nn.Module) -> list[dict]:
    """Return parameter groups of the trainable weights of all layers that quantise their own, one per kind.

    Raises:
        ValueError: there is none, or one has a scheme that does not read codes back.
    """
    groups: dict[tuple, dict] = {}
    seen: set[int] = set()
    for name, layer in low_bit_layers(model).items():
        if not layer.weight.requires_grad or id(layer.weight) in seen:
            continue
        if layer.scheme not in SCHEMES:
            raise ValueError(
                f"{name} has w_scheme={layer.scheme!r}; training on codes needs one of {', '.join(SCHEMES)}, which "
                "read the codes back from the weight that holds them. Or train with --ternary_training ste."
            )
        seen.add(id(layer.weight))
        kind = {"scheme": layer.scheme, "scale_axis": layer.scale_axis, "group_size": layer.group_size}
        group = groups.setdefault(tuple(kind.values()), {"params": [], **kind})
        group["params"].append(layer.weight)
    if not groups:
        raise ValueError("the model has no ternary weights to train: set use_bitnet=True, or --ternary_training ste.")
    return list(groups.values())


class SideBySide(Optimizer):
    """Several optimizers over disjoint parameters, as one: schedulers and checkpoints see all their groups."""

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # loading replaces the groups, and a scheduler must reach the ones in use
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


TERNARY_TRAINING = {"sign_legacy": SignLegacy, "sign_accum": SignAccum}


def build_code_optimizer(name: str, model: nn.Module, **options) -> Optimizer:
    """Return the optimizer of the ternary weights by name, "sign_legacy" or "sign_accum"; options are the class's."""
    check_choice("ternary_training", name, TERNARY_TRAINING)
    return TERNARY_TRAINING[name](code_groups(model), **options)


@contextlib.contextmanager
def without_gradient(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Take parameters out of what counts as trainable, so that an optimizer made meanwhile leaves them alone."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
