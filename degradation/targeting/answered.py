"""What importance is measured on: prompts, each with the answer that the undamaged model gives, and its loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..offloaded import input_device

ANSWER = 16  # tokens of an answer at most


@dataclass(frozen=True)
class Answered:
    """Token ids of a prompt and its answer, int64 [1, n]; the answer begins at `start`, and is never empty."""

    ids: torch.Tensor
    start: int


@torch.no_grad()
def answer_greedily(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], positions: int | None = None
) -> list[Answered]:
    """Return each prompt with the model's likeliest tokens behind it, up to ANSWER, a stop token among them.

    Args:
        positions: how many tokens the model has positions for, more than any prompt's; answers end there.
    """
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=input_device(model))
        end = len(prompt) + ANSWER if positions is None else min(len(prompt) + ANSWER, positions)
        while ids.shape[1] < end:
            token = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1).to(ids.device)
            ids = torch.cat([ids, token[:, None]], dim=1)
            if int(token) in stop_ids:
                break
        found.append(Answered(ids, len(prompt)))
    return found


def answer_loss(model: PreTrainedModel, answered: Answered) -> torch.Tensor:
    """Return the mean cross-entropy of the answer's tokens, a scalar."""
    logits = model(input_ids=answered.ids, use_cache=False).logits[0, answered.start - 1 : -1]
    return F.cross_entropy(logits.float(), answered.ids[0, answered.start :].to(logits.device))
