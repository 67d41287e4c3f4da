"""Dynamic evaluation: a causal model goes on learning from the text that it is scored on, a window behind.

Krause et al. 2017, "Dynamic Evaluation of Neural Sequence Models", arXiv:1709.07432, section 3, with plain gradient
descent: every window is scored with the weights of before, and only then moves them by -rate times the gradient of its
mean loss. No token is ever predicted by weights that have seen it, but the figure is that of another model than the
saved one, and stands apart from it. (The paper's RMS scaling and decay towards the trained weights are left out.)
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from ..metrics.language import NATS, TOKENS, Scores, windows_of


def dynamic_scores(
    model: torch.nn.Module,
    sequences: Iterable[Sequence[int]],
    *,
    rate: float,
    context_length: int,
    stride: int,
    start_token_id: int | None = None,
) -> Scores:
    """Score sequences of token ids window by window, learning behind each; afterwards the weights are what they were.

    The windows are those of `causal_scores`, one at a time and in order; what was learned of a text is kept for the
    next one. Dropout stays off. Of the ranks nothing is counted: the columns behind the second are 0.

    Raises:
        ValueError: no weight of the model has a gradient, or they are no longer finite: the rate is too high.
    """
    start = [] if start_token_id is None else [start_token_id]
    table = []
    with own_weights(model) as weights:
        for sequence in sequences:
            row = np.zeros(5)
            for ids, first in windows_of([*start, *sequence], context_length, stride):
                nats, tokens = _learn_from(model, weights, ids, first, rate)
                row[[NATS, TOKENS]] += nats, tokens
            table.append(row)
    return Scores(np.array(table), context_length, stride)


def _learn_from(model, weights: list[torch.nn.Parameter], ids: Sequence[int], first: int, rate: float):
    """Score the tokens of a window from index `first` on, then move the weights; return nats and tokens."""
    row = torch.as_tensor([list(ids)], device=weights[0].device)
    logits = model(input_ids=row[:, :-1]).logits[0, first - 1 :].float()
    losses = F.cross_entropy(logits, row[0, first:], reduction="none")
    gradients = torch.autograd.grad(losses.mean(), weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.sub_(rate * gradient)
    nats = losses.detach().double().sum().item()
    if not np.isfinite(nats):
        raise ValueError(f"--dynamic_evaluation {rate}: the loss is no longer finite; lower the rate.")
    return nats, len(losses)


def check_can_learn(model: torch.nn.Module) -> None:
    """Raises ValueError where weights have no gradient: some matrices are packed or quantised, or there are none."""
    weights = list(model.parameters())
    is_whole = all(weight.is_floating_point() for weight in weights if weight.dim() > 1)
    if not weights or not is_whole or any(hasattr(module, "is_packed_layer") for module in model.modules()):
        raise ValueError(
            "--dynamic_evaluation: packed or quantised weights cannot learn; give the checkpoint they were made from."
        )


@contextmanager
def own_weights(model: torch.nn.Module) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the weights, in evaluation mode, with gradients and in float32; at the end they are what they were before.

    Half precision would lose most of a small step: a weight of 1 in bfloat16 moves by no less than 1/256.

    Raises:
        ValueError: see `check_can_learn`.
    """
    check_can_learn(model)
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    before = [(weight.data, weight.requires_grad) for weight in weights]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    was_training = model.training
    model.eval()
    for weight in weights:
        weight.data = weight.data.to(_wide(weight), copy=True)
        weight.requires_grad_(True)
    for module, owned in buffers:
        wide = {name: buffer.to(_wide(buffer)) for name, buffer in owned.items() if buffer is not None}
        module._buffers.update(wide)
    try:
        with torch.enable_grad():
            yield weights
    finally:
        model.train(was_training)
        for weight, (value, needed) in zip(weights, before, strict=True):
            weight.data = value
            weight.requires_grad_(needed)
        for module, owned in buffers:
            module._buffers.update(owned)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """Float32 for narrower floats; other tensors keep their dtype."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
