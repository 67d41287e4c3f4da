"""The exact loss of an evaluation: nats over all predicted tokens, of rows of two directions also for each apart."""

from collections.abc import Mapping
from typing import Any

import torch

PLAIN, MASKED = 0, 1  # rows of the table: those of one direction, or read left to right; those read both ways


class EvaluationSums:
    """Nats and predicted tokens of the batches so far.

    table: float64 (2, 2), the sums of each kind of rows.
    """

    def __init__(self, table: torch.Tensor | None = None):
        self.table = torch.zeros(2, 2, dtype=torch.float64) if table is None else table

    def add(self, row: int, nats: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add a batch of one kind of rows."""
        self.table[row] += torch.stack([nats.double(), tokens.double()]).cpu()

    def losses(self, causal_share: float) -> dict[str, float]:
        """Return the loss, in nats a token; {} where nothing was predicted.

        Where there are masked rows, also causal_loss and masked_loss; the loss is then that of training's mixture, in
        which `causal_share` of the rows are read left to right: a mean over the tokens that those and the others
        predict.
        """
        (nats, tokens), (masked_nats, masked_tokens) = self.table.tolist()
        if not masked_tokens:
            return {"loss": nats / tokens} if tokens else {}
        share = causal_share, 1 - causal_share
        mixed = share[0] * nats + share[1] * masked_nats
        loss = mixed / (share[0] * tokens + share[1] * masked_tokens)
        apart = {"causal_loss": nats / tokens if tokens else float("nan"), "masked_loss": masked_nats / masked_tokens}
        return {"loss": loss, **apart}


def rows_of_each_way(inputs: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the rows of a batch of two directions by kind, as batches of their own; kinds without rows are left out.

    Args:
        inputs: tensors with a row for each text, `causal_rows` (B,) bool among them.
    """
    causal = inputs["causal_rows"]
    kinds = {PLAIN: causal, MASKED: ~causal}
    return {
        kind: {name: value[rows] for name, value in inputs.items()} for kind, rows in kinds.items() if bool(rows.any())
    }
