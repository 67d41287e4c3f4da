"""What a damaged masked model makes of a fixed text: pseudo-perplexity, and the distance of its predictions."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .mask_filling import masked_copies, masked_logits, surroundings
from .text_probe import KEPT_POSITIONS, Probe, TextScore, divergence, finite_or_none, window_of

WINDOW = 64
# Every scored token takes a pass over its window, so only one of four is; the same ones at every level.
SCORED_EVERY = 4


class MaskedTextProbe(Probe):
    """Scores one text in windows of 64 tokens by the mean of -log p(token | the others of its window).

    That is the pseudo-log-likelihood of Salazar et al. 2020, arXiv:1910.14659, by token, of every fourth token, each
    masked alone; `perplexity` is its exponential. Windows are shorter where the model has fewer positions.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, text: str, positions: int | None = None):
        self.model, self.mask_id = model, tokenizer.mask_token_id
        self.ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.before, self.behind = surroundings(tokenizer)
        self.window = window_of(WINDOW, positions, len(self.before) + len(self.behind))
        self.kept_every = max(1, len(self.ids) // SCORED_EVERY // KEPT_POSITIONS)

    @torch.inference_mode()
    def _measure(self, undamaged: torch.Tensor | None) -> tuple[TextScore, torch.Tensor]:
        loss, scored, kept = 0.0, 0, []
        for start in range(0, len(self.ids), self.window):
            window = self.ids[start : start + self.window]
            places = range(0, len(window), SCORED_EVERY)
            predictions = self._predictions(window, places)
            targets = torch.tensor([window[place] for place in places], device=predictions.device)
            loss -= predictions.gather(1, targets[:, None]).double().sum().item()
            kept.append(predictions[-scored % self.kept_every :: self.kept_every].to("cpu", copy=True))
            scored += len(places)
        found = torch.cat(kept)
        kl = None if undamaged is None else finite_or_none(divergence(undamaged, found).double().mean().item())
        return TextScore(finite_or_none(loss / scored), kl), found

    def _predictions(self, window: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Return the log-probabilities at some places of a window, each masked alone, [places, vocabulary]."""
        places = [len(self.before) + place for place in places]
        copies = masked_copies([*self.before, *window, *self.behind], places, self.mask_id)
        return F.log_softmax(masked_logits(self.model, copies, places).float(), dim=-1)
