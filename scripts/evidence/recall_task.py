"""A synthetic task that needs a memory: key-value pairs first, a stretch of filler, then the keys again.

    k3 v7 k0 v2 ... | filler filler ... | k0 v2 k3 v7 ...

Every key is asked for once; only the values of the second pass are scored. A model whose attention cannot reach back
over the filler, and which remembers nothing else, can do no better than 1 / values. (Associative recall, as in
arXiv:2212.14052 and arXiv:2312.04927; the filler is what makes it a test of memory beyond a window.)
"""

from dataclasses import dataclass

import torch

from frankenlm.modeling.outputs import IGNORED_LABEL


@dataclass(frozen=True)
class RecallTask:
    """The sizes of the task; token ids are keys first, then values, then filler."""

    pairs: int = 8
    keys: int = 16
    values: int = 16
    filler_length: int = 64
    filler_kinds: int = 8

    def __post_init__(self):
        if not 1 <= self.pairs <= self.keys:
            raise ValueError(f"pairs={self.pairs} must lie in 1..keys = {self.keys}: every key is given one value.")
        for field in ("values", "filler_kinds"):
            if self.__dict__[field] < 1:
                raise ValueError(f"{field}={self.__dict__[field]} must be at least 1.")
        if self.filler_length < 0:
            raise ValueError(f"filler_length={self.filler_length} must not be negative.")

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + self.filler_kinds

    @property
    def length(self) -> int:
        """Tokens of one sequence."""
        return 4 * self.pairs + self.filler_length

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.values

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `size` sequences.

        Returns:
            input_ids (B, L), and labels (B, L): the ids at the scored values, -100 elsewhere.
        """
        order = torch.rand(size, self.keys, generator=generator).argsort(1)[:, : self.pairs]
        values = self.keys + torch.randint(self.values, (size, self.pairs), generator=generator)
        again = torch.rand(size, self.pairs, generator=generator).argsort(1)
        filler = torch.randint(self.filler_kinds, (size, self.filler_length), generator=generator)
        told = torch.stack([order, values], dim=2).flatten(1)
        asked = torch.stack([order.gather(1, again), values.gather(1, again)], dim=2).flatten(1)
        input_ids = torch.cat([told, self.keys + self.values + filler, asked], dim=1)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        labels[:, -2 * self.pairs + 1 :: 2] = input_ids[:, -2 * self.pairs + 1 :: 2]
        return input_ids, labels


@torch.no_grad()
def recall_accuracy(model, task: RecallTask, *, sequences: int = 256, seed: int = 0) -> float:
    """Return the share of asked values that a causal model puts first, over freshly drawn sequences."""
    input_ids, labels = task.batch(sequences, torch.Generator().manual_seed(seed))
    guesses = model(input_ids, use_cache=False).logits[:, :-1].argmax(-1)
    scored = labels[:, 1:] != IGNORED_LABEL
    return (guesses == labels[:, 1:])[scored].float().mean().item()


def train_recall(model, task: RecallTask, *, steps: int, batch_size: int, learning_rate: float, seed: int = 0):
    """Train a causal model on freshly drawn sequences with AdamW, warm-up over a tenth and linear decay; return it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    model.train()
    for _ in range(steps):
        input_ids, labels = task.batch(batch_size, generator)
        loss = model(input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()
