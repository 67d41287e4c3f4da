"""One run through the promises: the model, the rows, and what is computed with gradients."""

from dataclasses import dataclass, replace

import torch

from .rows import Rows
from .subject import CannotBeTold, ModelUnderTest, readable


@dataclass(frozen=True)
class Trial:
    """A model and the rows that it is tried on."""

    subject: ModelUnderTest
    rows: Rows

    def on_other_rows(self, which: int) -> "Trial":
        """Return the same model on other rows."""
        return Trial(self.subject, replace(self.rows, seed=self.rows.seed + 100 * which))

    def gradient(self, subject: ModelUnderTest, ids: torch.Tensor, place: slice, **inputs) -> torch.Tensor:
        """Return (B, L, C) float64: the gradient, at each token's embedding, of what is said of the tokens in `place`.

        Raises:
            CannotBeTold: no gradient comes back, as from a model that is made for inference.
        """
        leaves: list[torch.Tensor] = []

        def cut(embedded: torch.Tensor) -> torch.Tensor:
            leaves.append(embedded.detach().requires_grad_(True))
            return leaves[-1].clone()  # which a model may change in place

        with torch.enable_grad(), subject.embedded(cut):
            said = readable(subject.call(ids, **inputs))[:, place].double()
            if not said.requires_grad or not leaves:
                raise CannotBeTold("no gradient reaches the embeddings")
            weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(5), dtype=said.dtype)
            (gradient,) = torch.autograd.grad((said * weights.to(said.device)).sum(), leaves[0], allow_unused=True)
        if gradient is None or gradient.shape[:2] != ids.shape:
            raise CannotBeTold("no gradient reaches the embeddings")
        return gradient.double()
