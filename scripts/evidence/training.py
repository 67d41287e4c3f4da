"""One run of the memory evidence: train a model on rows in a seeded order, and score held-out rows.

The same seed gives every model the same rows in the same order. The loss is the mean cross-entropy of the next token.
Speed is counted in CPU seconds, so that neither another process nor a pause falsifies it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from frankenlm.modeling.outputs import IGNORED_LABEL
from frankenlm.scripts.evidence.data import Corpus, HeldOut
from frankenlm.scripts.evidence.models import Variant
from frankenlm.trainer_ext.metrics.language import perplexity_report


@dataclass(frozen=True)
class Recipe:
    """What every run of a table does alike.

    tokens: to train on, rounded down to whole steps. warmup: share of the steps in which the rate rises; then it
    falls to 0 as a cosine. eval_rows: rows scored at once. bf16: autocast to bfloat16.
    """

    tokens: int
    length: int
    batch_rows: int
    eval_rows: int
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = False

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_rows * self.length)

    def rate_factor(self, step: int) -> float:
        """Return the learning rate of a step (0, 1, ...) as a share of its peak."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "steps": self.steps, "optimizer": "AdamW", "schedule": "linear warm-up, cosine to 0"}


@dataclass(frozen=True)
class Trained:
    """A trained model, the parameters that got a gradient, its curve [[step, mean loss since the last], ...]."""

    model: PreTrainedModel
    trained_parameters: int
    curve: list[list[float]]
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Score:
    """Held-out nats: their sum, the tokens, the mean at each position of a row, and memory statistics if any."""

    nats: float
    tokens: int
    by_position: list[float]
    memory: dict[str, float]


def build(variant: Variant, corpus: Corpus, config, seed: int) -> PreTrainedModel:
    """The model with the fresh weights of a seed, and its output bias at the unigram distribution if it has one."""
    if variant.explores:
        config = copy.deepcopy(config)
        config.exploration_seed = seed
    torch.manual_seed(seed)
    model = variant.model_class(config)
    if variant.unigram_bias:
        model.set_unigram_bias(corpus.counts)
    return model


def row_order(rows: int, needed: int, seed: int) -> torch.Tensor:
    """Return `needed` row numbers: all rows in a seeded order, then all again in another, and so on."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(rows, generator=generator) for _ in range(-(-needed // rows))]
    return torch.cat(epochs)[:needed]


def train(
    variant: Variant,
    model: PreTrainedModel,
    rows: torch.Tensor,
    recipe: Recipe,
    *,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int], None],
) -> Trained:
    """Train a model; `on_step` is told the tokens of each step.

    Raises:
        FloatingPointError: the loss is not a number any more: the rate is too high for this model.
    """
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=learning_rate)
    order = row_order(len(rows), recipe.steps * recipe.batch_rows, seed)
    losses, trained_parameters = [], 0
    start, cpu_start = time.perf_counter(), time.process_time()
    for step, numbers in enumerate(order.split(recipe.batch_rows)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * recipe.rate_factor(step)
        if variant.explores:
            model.set_exploration(step / recipe.steps)
        ids = rows[numbers]
        logits = predict(variant, model, ids, recipe.bf16).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        if step == 0:
            trained_parameters = sum(p.numel() for p in model.parameters() if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{variant.name}, learning rate {learning_rate:g}: the loss of step {step} is {losses[-1]}."
            )
        on_step(ids.numel())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Trained(model, trained_parameters, thin_out(losses), seconds, cpu_seconds)


def predict(variant: Variant, model: PreTrainedModel, ids: torch.Tensor, bf16: bool, **more):
    """The model's output for rows of ids."""
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    with precision:
        return model(input_ids=ids, use_cache=False, **variant.forward, **more)


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Matrices and embeddings decay, vectors and scalars do not, nor what the model exempts by name."""
    exempt = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    if hasattr(model, "no_weight_decay_names"):
        exempt |= model.no_weight_decay_names()
    named = list(model.named_parameters())
    return [
        {"params": [parameter for name, parameter in named if name not in exempt], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in exempt], "weight_decay": 0.0},
    ]


def thin_out(losses: list[float], points: int = 40) -> list[list[float]]:
    """Return at most about `points` pairs [step, mean loss of the steps since the last pair]."""
    size = max(1, len(losses) // points)
    return [
        [min(start + size, len(losses)), round(sum(part) / len(part), 5)]
        for start, part in ((start, losses[start : start + size]) for start in range(0, len(losses), size))
    ]


@torch.inference_mode()
def score(variant: Variant, model: PreTrainedModel, held_out: HeldOut, recipe: Recipe, **more) -> Score:
    """Score all held-out rows; `more` are further arguments of the forward call."""
    model.eval()
    width = held_out.rows.shape[1] - 1
    nats, counts = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    statistics = []
    for ids, labels in _scored_batches(held_out, recipe.eval_rows):
        output = predict(variant, model, ids, recipe.bf16, **more)
        logits = output.logits[:, :-1].float().transpose(1, 2)
        losses = F.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORED_LABEL, reduction="none")
        nats += losses.double().sum(0)
        counts += (labels[:, 1:] != IGNORED_LABEL).sum(0)
        if variant.has_memory:
            statistics.append(output.memory_stats)
    by_position = (nats / counts.clamp(min=1)).tolist()
    return Score(float(nats.sum()), int(counts.sum()), by_position, _mean_statistics(statistics))


def _scored_batches(held_out: HeldOut, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in held_out.batches(size):
        yield held_out.rows[batch], held_out.labels[batch]


def _mean_statistics(batches: list[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Mean over rows of each statistic; batches are dicts of [B] tensors."""
    if not batches:
        return {}
    return {name: float(torch.cat([batch[name].float() for batch in batches]).mean()) for name in batches[0]}


def loss_facts(result: Score, held_out: HeldOut) -> dict[str, Any]:
    """Loss, perplexity and bits per byte; the bytes of the scored tokens are their share of the split's."""
    utf8_bytes = max(1, round(held_out.utf8_bytes * result.tokens / held_out.tokens))
    report = perplexity_report(result.nats, result.tokens, utf8_bytes)
    report["loss"] = report.pop("loss_nats")
    return report
