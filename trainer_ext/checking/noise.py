"""How far rounding alone moves what a model says, measured on the model itself.

Three kinds of computations that must agree but for rounding: a row alone and among copies; embeddings that are moved by
half a step of the number format; the same weights in a wider format. Each is done several times. A model that rounds on
purpose (ternary weights, activations of eight bits, a choice of experts) jumps where a value stands on the edge, so
that there are two answers: the calm one, without a jump, and the largest.

Rounding shrinks with the number format. What copies of a row do to it and does not shrink is a fault, and no noise: a
model whose rows see each other must not raise the tolerance that is to find it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .measure import distance
from .subject import CannotBeTold, ModelUnderTest
from .trial import Trial

LARGEST_TWIN = 200_000_000  # parameters of which a second, wider copy is made
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
TRIES = 4
LENGTH = 12  # of the rows, in which fewer values stand on an edge than in those of the promises
# In double precision too, many families compute norms, rotations and softmax in float32.
FINEST = 4 * torch.finfo(torch.float32).eps
ROUNDINGS = 16  # times the noise: two computations round in different ways, and neither is the one that was measured


@dataclass(frozen=True)
class Noise:
    """Relative differences that rounding makes: `calm` where nothing jumps, and the `largest` that was met."""

    calm: float
    largest: float


def wider(subject: ModelUnderTest) -> ModelUnderTest | None:
    """Return the model in the next wider format; None where there is none, it is too large, or it cannot compute so."""
    dtype = WIDER.get(subject.dtype)
    if dtype is None or sum(each.numel() for each in subject.model.parameters()) > LARGEST_TWIN:
        return None
    try:
        twin = subject.in_dtype(dtype)
        twin.outputs(torch.full((1, 2), min(5, subject.vocabulary - 1)))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # parts that know one format only
        return None
    return twin


def measure_noise(trial: Trial, twin: ModelUnderTest | None) -> Noise:
    """Return what rounding does to what the model says of rows like those of the check.

    Raises:
        ValueError: what it says is not finite.
    """
    copies = list(_among_copies(trial.subject, trial))
    finest = trial.subject if twin is None else twin
    shrunk = copies if twin is None else list(_among_copies(twin, trial))
    kinds = [list(_nudged(trial))]
    if not min(shrunk) > ROUNDINGS * step_of(finest.dtype):  # else the rows of a batch see each other
        kinds.append(copies)
    if twin is not None:
        kinds.append([distance(trial.subject.outputs(ids), twin.outputs(ids)) for ids in _rows(trial)])
    step = step_of(trial.subject.dtype)
    if not all(math.isfinite(each) for kind in kinds for each in kind):
        raise ValueError("it gives NaN or Inf for ordinary rows, with which nothing can be compared.")
    return Noise(max(step, *(min(kind) for kind in kinds)), max(step, *(max(kind) for kind in kinds)))


def step_of(dtype: torch.dtype) -> float:
    """Return the smallest relative difference that models of a format are held to."""
    return max(torch.finfo(dtype).eps, FINEST)


def _rows(trial: Trial) -> list[torch.Tensor]:
    return [trial.rows.draw(1, LENGTH, which=20 + index) for index in range(TRIES)]


def _among_copies(subject: ModelUnderTest, trial: Trial) -> Iterator[float]:
    for ids in _rows(trial):
        yield distance(subject.outputs(ids.expand(3, -1))[:1], subject.outputs(ids))


def _nudged(trial: Trial) -> Iterator[float]:
    subject = trial.subject
    step = torch.finfo(subject.dtype).eps
    for index, ids in enumerate(_rows(trial)):
        reference = subject.outputs(ids)
        generator = torch.Generator().manual_seed(index)

        def nudge(embedded: torch.Tensor, generator=generator) -> torch.Tensor:
            signs = torch.randint(2, embedded.shape, generator=generator) * 2 - 1
            return embedded * (1 + 0.5 * step * signs.to(embedded))

        try:
            with subject.embedded(nudge):
                yield distance(subject.outputs(ids), reference)
        except CannotBeTold:  # no embeddings to reach; the other kinds are left
            yield 0.0
