"""One run through the promises: the model, the rows, and what is computed with gradients."""

from dataclasses import dataclass

import torch

from .rows import Rows
from .subject import CannotBeTold, ModelUnderTest, readable


@dataclass(frozen=True)
class Trial:
    """A model and the rows that it is tried on."""

    subject: ModelUnderTest
    rows: Rows

    def gradient(self, subject: ModelUnderTest, ids: torch.Tensor, place: slice, **inputs) -> torch.Tensor:
        """Return (B, L, C) float64: the gradient, at each token's embedding, of what is said of the tokens in `place`.

        Raises:
            CannotBeTold: no gradient comes back, as from a model that is made for inference.
        """
        with torch.enable_grad(), subject.embedded(lambda embedded: embedded.detach().requires_grad_(True)) as seen:
            said = readable(subject.call(ids, **inputs))[:, place].double()
            if not said.requires_grad or not seen:
                raise CannotBeTold("no gradient reaches the embeddings")
            weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(5), dtype=said.dtype)
            (gradient,) = torch.autograd.grad((said * weights.to(said.device)).sum(), seen[0], allow_unused=True)
        if gradient is None or gradient.shape[:2] != ids.shape:
            raise CannotBeTold("no gradient reaches the embeddings")
        return gradient.double()
