"""What a damaged model makes of a fixed text: perplexity, and the distance of its predictions from the undamaged ones.

Both need the model, so they are taken while the weights are damaged; everything else is measured from the rows.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..offloaded import input_device

CONTEXT = 512
SHORTEST = 2  # tokens of a window: one to read and one to predict
# positions whose undamaged distribution is kept, in float32: 134 MB for a vocabulary of 262,144
KEPT_POSITIONS = 128


@dataclass(frozen=True)
class TextScore:
    """log_perplexity: mean negative log-likelihood (nats per token). kl: mean over kept positions of
    KL(undamaged || damaged), nats; None before the undamaged model was measured. Either is None if not finite."""

    log_perplexity: float | None
    kl: float | None

    @property
    def perplexity(self) -> float | None:
        if self.log_perplexity is None or self.log_perplexity > 700:
            return None
        return math.exp(self.log_perplexity)


class Probe:
    """What scores a text before the damage and under it; how, and what it keeps between, says `_measure`."""

    undamaged: Any = None

    def remember(self) -> TextScore:
        """Measure the undamaged model and keep its predictions to compare with."""
        score, self.undamaged = self._measure(None)
        return score

    def measure(self) -> TextScore:
        """Measure the model as it is now."""
        return self._measure(self.undamaged)[0]

    def _measure(self, undamaged: Any) -> tuple[TextScore, Any]:
        """Return the score and the predictions, compared with those of the undamaged model unless they are None."""
        raise NotImplementedError


class TextProbe(Probe):
    """Scores one text with windows of 512 tokens that move on by 256; every token is scored once, BOS in front.

    Args:
        positions: how many tokens the model has positions for; where that is less, windows are as long as it is.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, text: str, positions: int | None = None):
        self.context = window_of(CONTEXT, positions)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        self.model, self.ids = model, torch.tensor(ids)
        self.kept_every = max(1, len(ids) // KEPT_POSITIONS)

    @torch.inference_mode()
    def _measure(self, undamaged: list[torch.Tensor] | None) -> tuple[TextScore, list[torch.Tensor]]:
        loss, tokens, distances, kept = 0.0, 0, [], []
        scored_to = 1  # the first token has nothing to be predicted from
        for window, start in enumerate(range(0, max(1, len(self.ids) - 1), self.context // 2)):
            end = min(start + self.context, len(self.ids))
            ids = self.ids[None, start:end].to(input_device(self.model))
            logits = self.model(input_ids=ids, use_cache=False).logits[0, scored_to - start - 1 : -1]
            predictions = F.log_softmax(logits.float(), dim=-1)
            targets = ids[0, scored_to - start :]
            loss -= predictions[torch.arange(len(targets)), targets].double().sum().item()
            tokens += len(targets)
            sample = predictions[:: self.kept_every]
            if undamaged is None:
                kept.append(sample.to("cpu", copy=True))  # a view would keep the whole window alive
            else:
                distances.append(divergence(undamaged[window].to(sample.device), sample).cpu())
            scored_to = end
            if end == len(self.ids):
                break
        kl = finite_or_none(torch.cat(distances).double().mean().item()) if distances else None
        return TextScore(finite_or_none(loss / tokens), kl), kept


def window_of(window: int, positions: int | None, special: int = 0) -> int:
    """Return how many tokens of a text are read at once: `window`, or what a model has positions for.

    Args:
        special: tokens that stand around the text.

    Raises:
        ValueError: that is too few to score any.
    """
    fitting = window if positions is None else min(window, positions - special)
    if fitting < SHORTEST:
        raise ValueError(f"perplexity needs {SHORTEST + special} positions, the model has {positions}: leave it out.")
    return fitting


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || other) of log-probabilities [..., vocabulary], in nats; the impossible adds nothing."""
    terms = reference.exp() * (reference - other)
    return torch.where(reference > -torch.inf, terms, 0).sum(-1)


def finite_or_none(value: float) -> float | None:
    """Return a number, or None for NaN and infinity."""
    return value if math.isfinite(value) else None
