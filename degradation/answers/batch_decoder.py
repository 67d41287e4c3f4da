"""The library's `generate` in batches, for models whose cache cannot be edited row by row.

Same noise, same text: only slots wait for the slowest row of their batch.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from ..offloaded import input_device
from .rendering import Rendering
from .requests import (
    PROBE_TOLERANCE,
    Answer,
    BatchLimit,
    DecoderSettings,
    Request,
    RowInFlight,
    full_ids,
    is_out_of_memory,
    relative_error,
)
from .sampling import RowSampling

logger = logging.getLogger(__name__)

PROBE_LENGTH = 5  # tokens of the probe, and pads before them


class BatchDecoder:
    """Writes rows with `model.generate`, left-padded, `limit()` at a time."""

    name = "batches"

    def __init__(self, model: PreTrainedModel, rendering: Rendering, settings: DecoderSettings):
        self.model, self.rendering, self.settings = model, rendering, settings
        self.hides_pads = bool(rendering.inputs) or self._probe_error() <= PROBE_TOLERANCE[model.dtype]
        if not self.hides_pads:
            logger.info("this model reads pads as tokens: only prompts of equal length are written together")
        fixed = settings.fixed_shape and self.hides_pads
        self.fixed_length = max(len(row.ids) for row in rendering.prompts) if fixed else 0

    @torch.inference_mode()
    def _probe_error(self) -> float:
        """Return how far the logits of a row that is padded are from those that it gets alone."""
        ids = self.rendering.prompts[0].ids
        row = torch.tensor([[ids[i % len(ids)] for i in range(PROBE_LENGTH)]])
        padded = torch.cat([torch.full((1, PROBE_LENGTH), self.settings.pad_id), row], dim=1)
        found = []
        for each in (row, padded):
            mask = torch.ones_like(each)
            mask[:, : each.shape[1] - PROBE_LENGTH] = 0
            with self._own_settings():
                output = self.model.generate(
                    input_ids=each.to(input_device(self.model)),
                    attention_mask=mask.to(input_device(self.model)),
                    max_new_tokens=1,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            found.append(output.logits[0])
        return relative_error(found[1], found[0])

    def _next_batch(self, waiting: Sequence[Request], size: int) -> list[Request]:
        """Return the rows that are begun together: the first ones, of those that share a length where pads show."""
        if self.hides_pads:
            return list(waiting[:size])
        length = len(self.rendering.prompts[waiting[0].index].ids)
        return [each for each in waiting if len(self.rendering.prompts[each.index].ids) == length][:size]

    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        waiting = sorted(requests, key=lambda request: -request.expected_tokens)
        while waiting:
            size = limit()
            batch = self._next_batch(waiting, size)
            waiting = [request for request in waiting if request not in batch]
            answers = None
            try:
                answers = self._generate(batch, size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if answers is None:
                # behind the handler, where no traceback holds on to what the batch took
                waiting = [*limit.out_of_memory(batch), *waiting]
            else:
                yield answers

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], size: int) -> list[Answer]:
        started = time.perf_counter()
        prompts = full_ids(self.rendering, requests)
        if self.settings.fixed_shape:
            prompts = prompts + [prompts[0]] * (size - len(prompts))
        length = max(self.fixed_length, *map(len, prompts))
        pads = [length - len(ids) for ids in prompts]
        ids = torch.tensor([[self.settings.pad_id] * pad + list(row) for pad, row in zip(pads, prompts, strict=True)])
        mask = torch.arange(length)[None] >= torch.tensor(pads)[:, None]
        keys = np.array([request.key for request in requests], dtype=np.uint32)
        keys = np.concatenate([keys, np.repeat(keys[:1], len(prompts) - len(requests), axis=0)])
        lengths = [len(row) for row in prompts]
        sampling = RowSampling(self.settings.sampler, keys, lengths, length, min(self.settings.stop_ids))
        with self._own_settings():
            self.model.generate(
                input_ids=ids.to(input_device(self.model)),
                attention_mask=mask.long().to(input_device(self.model)),
                logits_processor=[sampling],
                **self._picture_inputs(pads, length),
            )
        return self._read(requests, sampling, (len(prompts), length), started)

    @contextlib.contextmanager
    def _own_settings(self) -> Iterator[None]:
        """Generate by the experiment's settings alone: what they leave open, generate() takes from the model's own."""
        its_own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=sorted(self.settings.stop_ids),
            pad_token_id=self.settings.pad_id,
        )
        try:
            yield
        finally:
            self.model.generation_config = its_own

    def _picture_inputs(self, pads: Sequence[int], length: int) -> dict[str, torch.Tensor]:
        """The inputs that come with the picture, for every row; those along the tokens are laid out like the ids."""
        laid_out, shared = {}, len(self.rendering.prefix)
        for name, value in self.rendering.inputs.items():
            rows = value.expand(len(pads), *value.shape[1:])
            if value.shape[:2] == (1, shared):
                rows = value.new_zeros(len(pads), length, *value.shape[2:])
                for row, pad in zip(rows, pads, strict=True):
                    row[pad : pad + shared] = value[0]
            laid_out[name] = rows.to(input_device(self.model), self.model.dtype if value.is_floating_point() else None)
        return laid_out

    def _read(self, requests, sampling: RowSampling, shape: tuple[int, int], started: float) -> list[Answer]:
        now = time.perf_counter()
        answers = []
        for place, request in enumerate(requests):
            row = RowInFlight(request, len(requests), shape, started, 0.0)
            reason = None
            for choice in sampling.choices:
                reason = row.take(choice, place, self.settings)
                if reason is not None:
                    break
            answers.append(row.answer(reason, now, (now - started) / len(requests)))
        return answers
