"""What a damaged masked model makes of a fixed text: pseudo-perplexity, and the distance of its predictions."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .mask_filling import masked_copies, masked_logits, surroundings
from .text_probe import KEPT_POSITIONS, TextScore, divergence, finite_or_none

# Each token takes a pass over its window: their cost grows with the square of the window's length.
WINDOW = 64
COPIES = 16  # of a window in one call; divides WINDOW


class MaskedTextProbe:
    """Scores one text in windows of 64 tokens, each token masked in turn, by the mean of -log p(token | the others).

    That is the pseudo-log-likelihood of Salazar et al. 2020, arXiv:1910.14659, by token; `perplexity` is its
    exponential.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, text: str):
        self.model, self.mask_id = model, tokenizer.mask_token_id
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.before, self.behind = surroundings(tokenizer)
        self.kept_every = max(1, len(self.ids) // KEPT_POSITIONS)
        self.undamaged: torch.Tensor | None = None

    def remember(self) -> TextScore:
        """Measure the undamaged model and keep its predictions to compare with."""
        score, self.undamaged = self._measure(None)
        return score

    def measure(self) -> TextScore:
        """Measure the model as it is now."""
        return self._measure(self.undamaged)[0]

    @torch.inference_mode()
    def _measure(self, undamaged: torch.Tensor | None) -> tuple[TextScore, torch.Tensor]:
        loss, kept = 0.0, []
        for start in range(0, len(self.ids), COPIES):
            predictions = self._predictions(start)
            targets = torch.tensor(self.ids[start : start + COPIES], device=predictions.device)
            loss -= predictions.gather(1, targets[:, None]).double().sum().item()
            kept.append(predictions[-start % self.kept_every :: self.kept_every].to("cpu", copy=True))
        found = torch.cat(kept)
        kl = None if undamaged is None else finite_or_none(divergence(undamaged, found).double().mean().item())
        return TextScore(finite_or_none(loss / len(self.ids)), kl), found

    def _predictions(self, start: int) -> torch.Tensor:
        """Return the log-probabilities at up to COPIES masked places from token `start` on, [places, vocabulary].

        A window holds a whole number of calls, so a call never spans two.
        """
        first = start - start % WINDOW
        window = self.ids[first : first + WINDOW]
        places = [len(self.before) + place for place in range(start - first, min(start - first + COPIES, len(window)))]
        copies = masked_copies([*self.before, *window, *self.behind], places, self.mask_id)
        return F.log_softmax(masked_logits(self.model, copies, places).float(), dim=-1)
