"""One model trained on one task, and asked: a short loop of its own.

AdamW without weight decay, warm-up over a tenth of the steps, then linearly to nothing, gradients clipped at 1,
float32. Every training row is fresh, and none is a row of the test; the loss and the accuracy count the positions that
are asked for and no others.

No Trainer: an answer is not the next token, one task reads a row from its last state through a network of its own, and
a run of seconds has no checkpoints. (FrankenTrainer is no slower a step; it takes a third of a second to begin.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from frankenlm.modeling.outputs import IGNORED_LABEL

from ..common.cli import UserError
from .models import TaskModel, model_config
from .task import SyntheticRows, SyntheticTask

TRAIN, TEST = 0, 1  # streams of random numbers of one seed
DRAWS = 100  # batches without one training row after which there is taken to be none


@dataclass(frozen=True)
class SuiteRun:
    """What decides a run's result."""

    task: str
    mixer: str
    hidden_size: int
    mamba_state: int
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    test_rows: int


def train_and_ask(run: SuiteRun, task: SyntheticTask, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train the run's model and return what was measured: accuracy, loss, parameters, state, seconds of CPU time.

    Args:
        after_step: called after each step; what it raises ends the run.
    """
    start = time.process_time()
    test = task.draw(run.test_rows, stream(run.seed, TEST), is_test=True)
    torch.manual_seed(run.seed)
    model = TaskModel(model_config(run.mixer, task, run.hidden_size, run.mamba_state), task)
    train(model, run, task, set(test.keys()), after_step)
    accuracy, loss = ask(model.eval(), test, run.batch_size)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "chance": task.chance,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_size": model.state_size(test.inputs.shape[1]),
        "seconds": time.process_time() - start,
    }


def stream(seed: int, which: int) -> np.random.Generator:
    """Random numbers for the rows of a seed's training, or of its test."""
    return np.random.default_rng((seed, which))


def train(
    model: TaskModel, run: SuiteRun, task: SyntheticTask, taboo: set[bytes], after_step: Callable[[], None]
) -> None:
    """Train on fresh rows that are none of `taboo`."""
    rng = stream(run.seed, TRAIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.0)
    warmup = max(run.steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (run.steps - step) / max(run.steps - warmup, 1))
    )
    model.train()
    for _ in range(run.steps):
        logits, labels = answers(model, training_rows(task, run.batch_size, rng, taboo))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step()


def training_rows(task: SyntheticTask, rows: int, rng: np.random.Generator, taboo: set[bytes]) -> SyntheticRows:
    """Draw `rows` rows and keep those that are none of `taboo`, at least one: a batch of none is drawn again.

    Raises:
        UserError: nothing was left of `DRAWS` batches: the test has all rows that this task can have, or nearly.
    """
    for _ in range(DRAWS):
        kept = task.draw(rows, rng).apart_from(taboo)
        if len(kept):
            return kept
    raise UserError(
        f"{type(task).__name__} with length={task.length} has so few different rows that {len(taboo)} in the test "
        "leave none to train on: give the task larger sizes (--set), or fewer --test_rows."
    )


@torch.no_grad()
def ask(model: TaskModel, rows: SyntheticRows, batch_size: int) -> tuple[float, float]:
    """Return the share of answers that the model puts first, and its loss in nats, over all that is asked in `rows`."""
    right, loss, asked = 0, 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        logits, labels = answers(model, SyntheticRows(rows.inputs[part], rows.labels[part]))
        right += (logits.argmax(-1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        asked += len(labels)
    return right / asked, loss / asked


def answers(model: TaskModel, rows: SyntheticRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, V) and labels (N,) of the N positions that are asked for."""
    labels = torch.from_numpy(rows.labels)
    is_asked = labels != IGNORED_LABEL
    return model(torch.from_numpy(rows.inputs), is_asked), labels[is_asked]
