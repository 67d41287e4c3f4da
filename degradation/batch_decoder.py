"""The library's `generate` in batches, for models whose cache cannot be edited row by row.

Same noise, same text: only slots wait for the slowest row of their batch.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from .decoding import Answer, BatchLimit, DecoderSettings, Request, RowInFlight, full_ids, is_out_of_memory
from .rendering import Rendering
from .sampling import RowSampling


class BatchDecoder:
    """Writes rows with `model.generate`, left-padded, `limit()` at a time."""

    name = "batches"

    def __init__(self, model: PreTrainedModel, rendering: Rendering, settings: DecoderSettings):
        self.model, self.rendering, self.settings = model, rendering, settings
        self.fixed_length = max(len(row.ids) for row in rendering.prompts) if settings.fixed_shape else 0

    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        waiting = sorted(requests, key=lambda request: -request.expected_tokens)
        while waiting:
            size = limit()
            batch, waiting = waiting[:size], waiting[size:]
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
                input_ids=ids.to(self.model.device),
                attention_mask=mask.long().to(self.model.device),
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
            laid_out[name] = rows.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
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
