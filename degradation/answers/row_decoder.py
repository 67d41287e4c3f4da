"""The decode loop: finished rows leave the batch, waiting rows take their slots.

Since a row's noise does not depend on its company, a slot need not wait for the slowest row of its batch. The beginning
that all prompts share (template, system message, picture) is read once per cell, and only then are rows added. The
picture's own features are computed once per run where damage does not reach what makes them.
"""

import inspect
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

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
    forward_logits,
    is_out_of_memory,
    relative_error,
)
from .row_cache import SlotCache, additive_mask, sequence_places, shared_beginning, visible_columns

# A prefill call costs about as much as a token for a batch, whatever its rows: waiting until this share of the slots is
# free takes fewest calls for answers of some 60 tokens (the best share is about sqrt(2 / tokens)).
ADMIT_SHARE = 6
PROBE_LENGTHS = (3, 7)
# inputs with a picture that need no others to be turned into features
PLAIN = {"pixel_values", "token_type_ids", "mm_token_type_ids"}


class Masks:
    """Builds the masks of a model: one for all layers, or one for each of its attention types."""

    def __init__(self, model: PreTrainedModel, by_type: bool):
        layers = DynamicCache(config=model.config).layers
        others = {type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
        if others or not layers:
            raise RowsUnsupported(f"its cache has layers other than attention: {', '.join(sorted(others)) or 'none'}")
        windows = [layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in layers]
        self.windows: dict[str, int | None] = {}
        if by_type:
            types = model.config.get_text_config(decoder=True).layer_types
            self.windows = dict(zip(types, windows, strict=False))
        elif len(set(windows)) > 1:
            raise RowsUnsupported("its layers see different windows, and it takes one mask for all")
        self.window = windows[0]
        self.dtype = model.dtype

    def __call__(self, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """positions [b, queries], columns [b or 1, columns] (see `visible_columns`) -> what the model takes."""
        if not self.windows:
            return additive_mask(visible_columns(positions, columns, self.window), self.dtype)
        made: dict[int | None, torch.Tensor] = {}
        for window in self.windows.values():
            if window not in made:
                made[window] = additive_mask(visible_columns(positions, columns, window), self.dtype)
        return {name: made[window] for name, window in self.windows.items()}


class RowDecoder:
    """Writes rows with a causal model whose cache is keys and values.

    Raises (at construction):
        RowsUnsupported: the model works otherwise, or two rows together do not get the logits they get alone.
    """

    name = "rows"

    def __init__(self, model: PreTrainedModel, rendering: Rendering, settings: DecoderSettings):
        self.model, self.rendering, self.settings = model, rendering, settings
        self.device = input_device(model)
        takes = inspect.signature(model.forward).parameters
        self.keep_last = "logits_to_keep" in takes
        self.keep_picture = (
            settings.picture_intact and "mm_encoder_outputs" in takes and rendering.inputs.keys() <= PLAIN
        )
        self._picture: Any = None
        self.columns = max(len(row.ids) for row in rendering.prompts) + settings.max_new_tokens
        self.longest_suffix = max(len(rendering.suffix(i)) for i in range(len(rendering.prompts)))
        self.masks = self._probe()

    # --- the model, checked once

    def _probe(self) -> Masks:
        """Return the first way of masking with which rows of unequal length get the logits they get alone."""
        has_types = hasattr(self.model.config.get_text_config(decoder=True), "layer_types")
        reasons = []
        for by_type in (True, False) if has_types else (False,):
            try:
                self.masks = Masks(self.model, by_type)
                error = self._probe_error()
            except (
                RowsUnsupported,
                TypeError,
                ValueError,
                AttributeError,
                KeyError,
                IndexError,
                RuntimeError,
            ) as problem:
                if is_out_of_memory(problem):
                    raise
                reasons.append(f"{type(problem).__name__}: {problem}")
                continue
            if error <= PROBE_TOLERANCE[self.model.dtype]:
                return self.masks
            reasons.append(f"logits differ by {error:.2g} when rows of unequal length share a batch")
        raise RowsUnsupported("; ".join(" ".join(reason.split())[:200] for reason in reasons))

    @torch.inference_mode()
    def _probe_error(self) -> float:
        """Return the largest relative error of the logits of a prefill and a step over those of a plain forward."""
        ids = self.rendering.prompts[0].ids
        tokens = [ids[i % len(ids)] for i in range(sum(PROBE_LENGTHS) + len(PROBE_LENGTHS))]
        rows = [tokens[:3], tokens[3:10]]
        following = tokens[10:12]
        cache = SlotCache(len(rows), self.columns, self.device)
        first = self.prefill(cache, DynamicCache(), 0, rows, list(range(len(rows))))
        second = self.forward_step(cache, following)
        worst = 0.0
        for place, row in enumerate(rows):
            alone = torch.tensor([[*row, following[place]]], device=self.device)
            expected = self.model(input_ids=alone).logits[0, -2:]
            worst = max(worst, relative_error(torch.stack([first[place], second[place]]), expected))
        return worst

    # --- rows

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        # prompts that are read together should be about as long as each other: the difference is read as pads
        suffix = self.rendering.suffix
        waiting = deque(sorted(requests, key=lambda each: (-each.expected_tokens, -len(suffix(each.index)))))
        batch = _RowBatch(self, limit())
        while waiting or batch.rows():
            finished = lost = None
            try:
                finished = batch.advance(waiting, limit())
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # whoever took part in the call that failed: the rows in flight, and those about to join them
                lost = [row.request for row in batch.rows()] + [waiting.popleft() for _ in batch.joining]
            if lost is not None:
                # behind the handler, where no traceback holds on to the cache: it goes before anything new is tried
                batch = None
                waiting.extendleft(reversed(limit.out_of_memory(lost)))
                batch = _RowBatch(self, limit())
            elif finished:
                yield finished

    def read_prefix(self) -> DynamicCache:
        """Read what all prompts begin with, the picture included."""
        cache = DynamicCache()
        if self.rendering.prefix:
            ids = torch.tensor([self.rendering.prefix], device=self.device)
            inputs = {
                name: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
                for name, value in self.rendering.inputs.items()
            }
            if self.keep_picture and "pixel_values" in inputs:
                inputs["mm_encoder_outputs"] = {"image": self._picture_features(inputs.pop("pixel_values"))}
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), cache=cache, use_cache=True, **inputs)
        return cache

    def _picture_features(self, pixels: torch.Tensor) -> Any:
        """Return what the picture's tower and projector make of it, computed once a run."""
        if self._picture is None:
            self._picture = self.model.get_image_features(pixels, return_dict=True)
        return self._picture

    def prefill(
        self, cache: SlotCache, prefix: DynamicCache, shared: int, suffixes: Sequence[Sequence[int]], slots: list[int]
    ) -> torch.Tensor:
        """Read rows behind the `shared` tokens of `prefix` into slots; return their last logits, [rows, vocabulary]."""
        rows, length = len(suffixes), max(map(len, suffixes))
        if self.settings.fixed_shape:
            length, rows = max(self.longest_suffix, length), cache.slots
        padded = [list(suffix) for suffix in suffixes] + [[self.settings.pad_id]] * (rows - len(suffixes))
        ids = torch.tensor([[self.settings.pad_id] * (length - len(row)) + row for row in padded], device=self.device)
        places = sequence_places([len(row) for row in padded], length, shared, self.device)
        columns = torch.cat([torch.arange(shared, device=self.device).expand(rows, -1), places], dim=1)
        past = shared_beginning(prefix, rows)
        logits = forward_logits(
            self.model,
            self.keep_last,
            input_ids=ids,
            position_ids=places.clamp(min=0),
            attention_mask=self.masks(places, columns),
            cache=past,
        )
        for row, slot in enumerate(slots):
            cache.take(slot, past, row, shared, shared + len(padded[row]))
        return logits[: len(suffixes)]

    def forward_step(self, cache: SlotCache, tokens: Sequence[int]) -> torch.Tensor:
        """Read one token a slot, of slots 0, 1, ...; return logits [slots, vocabulary]."""
        cache.begin_step(len(tokens), cache.capacity if self.settings.fixed_shape else None)
        positions = cache.table.lengths[: len(tokens), None]
        logits = forward_logits(
            self.model,
            self.keep_last,
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            position_ids=positions,
            attention_mask=self.masks(positions, torch.arange(cache.table.columns, device=self.device)[None]),
            cache=cache,
        )
        cache.end_step()
        return logits


class _RowBatch:
    """The rows in flight of one cell."""

    def __init__(self, decoder: RowDecoder, slots: int):
        self.decoder, self.settings, self.rendering = decoder, decoder.settings, decoder.rendering
        self.cache = SlotCache(slots, decoder.columns, decoder.device)
        self.slots: list[RowInFlight | None] = [None] * slots
        self.prefix: DynamicCache | None = None
        self.joining: list[Request] = []  # still at the head of the queue, until they have been read
        self.share = 0.0  # seconds, each divided by the rows in flight

    def rows(self) -> list[RowInFlight]:
        return [row for row in self.slots if row is not None]

    def advance(self, waiting: deque[Request], limit: int) -> list[Answer]:
        """Admit rows where enough slots are free, and add a token to every row; return the rows that are finished."""
        started = time.perf_counter()
        present = len(self.rows())
        free = min(limit, len(self.slots)) - present
        if waiting and free > 0 and (not present or free >= min(len(waiting), max(1, limit // ADMIT_SHARE))):
            ended = self._admit(waiting, free, started)
        else:
            ended = self._step()
        now = time.perf_counter()
        self.share += (now - started) / max(1, len(self.rows()))
        return self._retire(ended, now)

    def _admit(self, waiting: deque[Request], free: int, started: float) -> dict[int, str]:
        requests = self.joining = [waiting[i] for i in range(min(free, len(waiting)))]
        if self.prefix is None:
            self.prefix = self.decoder.read_prefix()
        slots = [slot for slot, row in enumerate(self.slots) if row is None][: len(requests)]
        suffixes = [self.rendering.suffix(request.index) for request in requests]
        logits = self.decoder.prefill(self.cache, self.prefix, len(self.rendering.prefix), suffixes, slots)
        size = len(self.rows()) + len(requests)
        shape = (len(self.slots), self.cache.capacity) if self.settings.fixed_shape else (size, max(map(len, suffixes)))
        for slot, request in zip(slots, requests, strict=True):
            waiting.popleft()
            self.slots[slot] = RowInFlight(request, size, shape, started, self.share)
        self.joining = []
        return self._choose(logits, slots)

    def _step(self) -> dict[int, str]:
        fixed = self.settings.fixed_shape
        occupied = [slot for slot, row in enumerate(self.slots) if row is not None]
        slots = range(len(self.slots)) if fixed else occupied  # without holes: see _retire
        tokens = [self.settings.pad_id if self.slots[slot] is None else self.slots[slot].tokens[-1] for slot in slots]
        logits = self.decoder.forward_step(self.cache, tokens)
        if fixed:
            empty = [slot for slot in slots if self.slots[slot] is None]
            self.cache.table.lengths[empty] = 0
            logits = logits[occupied]
        return self._choose(logits, occupied)

    def _choose(self, logits: torch.Tensor, slots: Sequence[int]) -> dict[int, str]:
        """Choose the next token of the rows in `slots`; return which of them end, and why."""
        rows = [self.slots[slot] for slot in slots]
        reasons = zip(slots, choose_tokens(logits, rows, self.rendering, self.settings), strict=True)
        return {slot: reason for slot, reason in reasons if reason is not None}

    def _retire(self, ended: dict[int, str], now: float) -> list[Answer]:
        answers = [self.slots[slot].answer(reason, now, self.share) for slot, reason in ended.items()]
        for slot, reason in ended.items():
            self.slots[slot] = None
            self.cache.table.lengths[slot] = 0
            if reason == "nan":
                self.cache.wipe(slot)
        if not self.settings.fixed_shape:
            self._close_ranks()
        return answers

    def _close_ranks(self) -> None:
        """Move the last rows into empty slots, so that the rows in flight are the first ones."""
        count = len(self.rows())
        holes = [slot for slot in range(count) if self.slots[slot] is None]
        behind = [slot for slot in range(count, len(self.slots)) if self.slots[slot] is not None]
        for hole, source in zip(holes, behind, strict=True):
            self.cache.move(source, hole)
            self.slots[hole], self.slots[source] = self.slots[source], None
