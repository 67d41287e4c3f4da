"""What a decoder is asked and what it answers, whichever way it works."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from .rendering import Rendering
from .sampling import Choice, Sampler


@dataclass(frozen=True)
class Request:
    """One row to write. `index` is the prompt's place in the rendering, `key` that of its noise."""

    index: int
    key: tuple[int, int]
    expected_tokens: int = 0  # longer ones are begun first, so that none is left over alone at the end


@dataclass(frozen=True)
class Answer:
    """One finished row.

    finish_reason: eos, length, filled or nan. logprob and entropy are means over its tokens, in nats; None without any.
    batch_size, batch_shape: rows in flight at its first token, and [rows, columns] as the kernels saw them.
    duration: seconds, its share of the time it was in flight.
    """

    index: int
    tokens: tuple[int, ...]
    finish_reason: str
    logprob: float | None
    entropy: float | None
    batch_size: int
    batch_shape: tuple[int, int]
    duration: float
    batch_duration: float


@dataclass(frozen=True)
class DecoderSettings:
    """What is the same for all rows of an experiment."""

    sampler: Sampler
    stop_ids: frozenset[int]
    pad_id: int
    max_new_tokens: int
    fixed_shape: bool = False
    picture_intact: bool = False  # what reads the picture is not damaged


class BatchLimit(Protocol):
    """How many rows may be in flight, and what becomes of rows that memory had no room for."""

    def __call__(self) -> int: ...

    def out_of_memory(self, rows: Sequence[Request]) -> list[Request]:
        """Lower the limit; return those of `rows` that are to be tried again."""


class Decoder(Protocol):
    name: str  # as in the rows: rows, batches or masks

    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        """Write all requested rows; yield them in groups as they are finished."""


@dataclass
class RowInFlight:
    """A row while it is written."""

    request: Request
    batch_size: int
    batch_shape: tuple[int, int]
    started: float
    share_started: float
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    entropy: float = 0.0

    def take(self, choice: Choice, place: int, settings: DecoderSettings) -> str | None:
        """Add the next token; return why the row ends with it, or None."""
        if not choice.finite[place]:
            return "nan"
        token = int(choice.tokens[place])
        self.logprob += float(choice.logprobs[place])
        self.entropy += float(choice.entropies[place])
        if token in settings.stop_ids:
            return "eos"
        self.tokens.append(token)
        return "length" if len(self.tokens) == settings.max_new_tokens else None

    def answer(self, reason: str, now: float, share: float) -> Answer:
        # the stop token was chosen too: it counts in the means, not in the text
        chosen = len(self.tokens) + (reason == "eos")
        return Answer(
            index=self.request.index,
            tokens=tuple(self.tokens),
            finish_reason=reason,
            logprob=self.logprob / chosen if chosen else None,
            entropy=self.entropy / chosen if chosen else None,
            batch_size=self.batch_size,
            batch_shape=self.batch_shape,
            duration=share - self.share_started,
            batch_duration=now - self.started,
        )


def choose_tokens(
    logits: torch.Tensor, rows: Sequence[RowInFlight], rendering: Rendering, settings: DecoderSettings
) -> list[str | None]:
    """Choose the next token of each row from logits [rows, vocabulary]; return why each ends with it, or None."""
    keys = np.array([row.request.key for row in rows], dtype=np.uint32)
    positions = np.array([len(row.tokens) for row in rows])
    seen = None
    if settings.sampler.settings.repetition_penalty != 1:
        seen = [(*rendering.prompts[row.request.index].ids, *row.tokens) for row in rows]
    choice = settings.sampler.choose(logits, keys, positions, seen)
    return [row.take(choice, place, settings) for place, row in enumerate(rows)]


# relative error that rounding may cause between two ways of computing the same logits
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far logits are from what they should be; infinite where either is no number."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    return error if math.isfinite(error) else math.inf


class RowsUnsupported(Exception):
    """The model's cache or masks cannot be edited row by row; the message says why."""


# of the CPU's allocator, the CUDA driver, and cuBLAS and its kin
OUT_OF_MEMORY_TEXTS = ("not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that something found no room, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def forward_logits(model: PreTrainedModel, keep_last: bool, **inputs) -> torch.Tensor:
    """Return the logits of the last position, [b, vocabulary]."""
    if keep_last:
        inputs["logits_to_keep"] = 1
    return model(use_cache=True, **inputs).logits[:, -1]


def full_ids(rendering: Rendering, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    return [rendering.prompts[request.index].ids for request in requests]
