"""The decode loop of models whose cache is more than keys and values: finished rows leave the batch.

Such a cache (that of our own models, modeling/cache.py; those of hybrids and recurrent models) holds recurrent states
and convolution windows too. It can let rows go, but not take one in. So rows are begun together, left-padded under a
mask, and each leaves with its last token; the next batch is begun when the last one has left. Rows that are expected to
be equally long are begun together, longest first.
"""

import inspect
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ..offloaded import input_device
from .rendering import Rendering
from .requests import (
    PROBE_TOLERANCE,
    Answer,
    BatchLimit,
    DecoderSettings,
    Request,
    RowInFlight,
    RowsUnsupported,
    choose_tokens,
    is_out_of_memory,
    relative_error,
)

PROBE_LENGTHS = (7, 3, 5)  # rows of the probe; the middle one leaves behind the first step


class StateDecoder:
    """Writes rows with a causal model whose cache can let rows go.

    Raises (at construction):
        RowsUnsupported: it cannot, a picture is shown, shapes are to be fixed, or rows together do not get the logits
            they get alone.
    """

    name = "rows"

    def __init__(self, model: PreTrainedModel, rendering: Rendering, settings: DecoderSettings):
        self.model, self.rendering, self.settings = model, rendering, settings
        if settings.fixed_shape or rendering.inputs:
            raise RowsUnsupported("shapes are fixed, or a picture is shown")
        self.takes = inspect.signature(model.forward).parameters.keys()
        try:
            error = self._probe_error()
        except (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, RuntimeError) as problem:
            if is_out_of_memory(problem):
                raise
            raise RowsUnsupported(" ".join(f"{type(problem).__name__}: {problem}".split())[:200]) from problem
        if error > PROBE_TOLERANCE[model.dtype]:
            raise RowsUnsupported(f"logits differ by {error:.2g} when rows of unequal length share a batch")

    @torch.inference_mode()
    def _probe_error(self) -> float:
        """Return the largest relative error of the logits of a prefill and two steps over those of a plain forward."""
        ids = self.rendering.prompts[0].ids
        rows = [[ids[(start + i) % len(ids)] for i in range(n)] for start, n in enumerate(PROBE_LENGTHS)]
        logits, state = self.begin(rows)
        found = [[row] for row in logits]
        kept = list(range(len(rows)))
        for step in range(2):
            if step == 1:
                kept = [0, 2]
                state.keep(kept)
            following = [ids[(step + place) % len(ids)] for place in kept]
            logits = self.step(state, following)
            for place, token, scores in zip(kept, following, logits, strict=True):
                rows[place].append(token)
                found[place].append(scores)
        worst = 0.0
        for row, scores in zip(rows, found, strict=True):
            alone = self.model(input_ids=torch.tensor([row], device=input_device(self.model))).logits[0, -len(scores) :]
            worst = max(worst, relative_error(torch.stack(scores), alone))
        return worst

    def begin(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, "State"]:
        """Read rows, left-padded; return their last logits, [rows, vocabulary], and what is remembered of them."""
        length, device = max(map(len, rows)), input_device(self.model)
        ids = torch.tensor([[self.settings.pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
        starts = torch.tensor([length - len(row) for row in rows], device=device)
        mask = (torch.arange(length, device=device)[None] >= starts[:, None]).long()
        output = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), None)
        cache = output.cache if "cache" in output else None
        if not hasattr(cache, "batch_select_indices"):
            raise RowsUnsupported(f"its cache is a {type(cache).__name__}")
        return output.logits[:, -1], State(cache, mask)

    def step(self, state: "State", tokens: Sequence[int]) -> torch.Tensor:
        """Read one token a row; return logits [rows, vocabulary]."""
        ids = torch.tensor(tokens, device=input_device(self.model))[:, None]
        state.mask = torch.cat([state.mask, torch.ones_like(ids)], dim=1)
        output = self._forward(ids, state.mask, state.mask.sum(1, keepdim=True) - 1, state.cache)
        return output.logits[:, -1]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache | None) -> Any:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if cache is not None:
            inputs["cache"] = cache
        # our models count the real tokens themselves
        if "position_ids" in self.takes and not hasattr(self.model, "new_cache"):
            inputs["position_ids"] = positions
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        return self.model(**inputs)

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        waiting = sorted(requests, key=lambda request: -request.expected_tokens)
        while waiting:
            size = limit()
            batch, waiting = _StateBatch(self, waiting[:size]), waiting[size:]
            while batch is not None and batch.requests:
                lost = finished = None
                try:
                    finished = batch.advance()
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    lost = batch.requests
                if lost is not None:
                    # behind the handler, where no traceback holds on to the cache
                    batch = None
                    waiting = [*limit.out_of_memory(lost), *waiting]
                    continue
                limit()  # where a signal came, it ends the run here, between two tokens
                if finished:
                    yield finished


class State:
    """The cache of the rows in flight, and which columns of it are tokens: mask, int64 [rows, columns]."""

    def __init__(self, cache: Cache, mask: torch.Tensor):
        self.cache, self.mask = cache, mask

    def keep(self, rows: Sequence[int]) -> None:
        """Let all rows but these go."""
        places = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(places)
        self.mask = self.mask[places]


class _StateBatch:
    """The rows in flight."""

    def __init__(self, decoder: StateDecoder, requests: Sequence[Request]):
        self.decoder = decoder
        self.requests = list(requests)
        self.rows: list[RowInFlight] = []
        self.state: State | None = None
        self.share = 0.0  # seconds, each divided by the rows in flight

    def advance(self) -> list[Answer]:
        """Add a token to every row; return the rows that are finished."""
        started = time.perf_counter()
        if self.state is None:
            prompts = [self.decoder.rendering.prompts[request.index].ids for request in self.requests]
            logits, self.state = self.decoder.begin(prompts)
            shape = len(prompts), max(map(len, prompts))
            self.rows = [RowInFlight(request, len(prompts), shape, started, 0.0) for request in self.requests]
        else:
            logits = self.decoder.step(self.state, [row.tokens[-1] for row in self.rows])
        reasons = choose_tokens(logits, self.rows, self.decoder.rendering, self.decoder.settings)
        now = time.perf_counter()
        self.share += (now - started) / len(self.rows)
        return self._retire(reasons, now)

    def _retire(self, reasons: Sequence[str | None], now: float) -> list[Answer]:
        ended = [(row, reason) for row, reason in zip(self.rows, reasons, strict=True) if reason is not None]
        if not ended:
            return []
        kept = [place for place, reason in enumerate(reasons) if reason is None]
        self.rows = [self.rows[place] for place in kept]
        self.requests = [row.request for row in self.rows]
        if kept:
            self.state.keep(kept)
        return [row.answer(reason, now, self.share) for row, reason in ended]
