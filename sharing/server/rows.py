"""Answers of one model that are decoded together, whichever way the model allows.

The lab's decoders do the work (degradation/answers/row_decoder.py and state_decoder.py), which find out at the start,
by trying, whether rows of unequal length get the logits they get alone:

slots   models whose cache is keys and values: a new answer joins those in flight, and a finished one leaves at once.
groups  models with other caches, ours among them: answers that arrive together are read together and leave one by one;
        those that arrive later are a group of their own, and groups take turns.

A model that allows neither is given to transformers' generate(), one answer at a time (engine.py).
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from frankenlm.degradation.answers.rendering import Rendered, Rendering
from frankenlm.degradation.answers.requests import DecoderSettings, RowsUnsupported
from frankenlm.degradation.answers.row_cache import SlotCache
from frankenlm.degradation.answers.row_decoder import RowDecoder
from frankenlm.degradation.answers.sampling import Sampler, SamplingSettings
from frankenlm.degradation.answers.state_decoder import State, StateDecoder

logger = logging.getLogger("frankenlm.serving")

PROBED_TOKENS = 16


class RowGroup(Protocol):
    """Rows that go through the model together."""

    def begin(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read new rows, behind those that are there; return their last logits, [new rows, vocabulary]."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one token a row; return logits [rows, vocabulary]."""

    def keep(self, places: Sequence[int]) -> list[int]:
        """Let all rows but these go; return the places in the order in which the rows now stand."""


class SlotRows:
    """Rows that come and go, each in a slot of its own."""

    def __init__(self, decoder: RowDecoder, slots: int):
        self.decoder = decoder
        self.cache = SlotCache(slots, decoder.columns, decoder.device)
        self.count = 0

    def begin(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        slots = list(range(self.count, self.count + len(rows)))
        logits = self.decoder.prefill(self.cache, DynamicCache(), 0, rows, slots)
        self.count += len(rows)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.decoder.forward_step(self.cache, tokens)

    def keep(self, places: Sequence[int]) -> list[int]:
        """The last rows move into the slots of those that left."""
        order = [place for place in places if place < len(places)]
        holes = sorted(set(range(len(places))) - set(order))
        behind = [place for place in places if place >= len(places)]
        placed = dict(zip(order, order, strict=True))
        for hole, source in zip(holes, behind, strict=True):
            self.cache.move(source, hole)
            placed[hole] = source
        for slot in range(len(places), self.count):
            self._empty(slot)
        self.count = len(places)
        return [placed[slot] for slot in range(self.count)]

    def _empty(self, slot: int) -> None:
        """A mask hides stale numbers from the next row, but not NaN."""
        length = int(self.cache.table.lengths[slot])
        for layer in self.cache.layers:
            layer.keys[slot, :, :length], layer.values[slot, :, :length] = 0, 0
        self.cache.table.lengths[slot] = 0


class GroupRows:
    """Rows that were begun together."""

    def __init__(self, decoder: StateDecoder):
        self.decoder = decoder
        self.state: State | None = None

    def begin(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        logits, self.state = self.decoder.begin(rows)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.decoder.step(self.state, tokens)

    def keep(self, places: Sequence[int]) -> list[int]:
        if places:
            self.state.keep(places)
        return list(places)


class GroupMaker:
    """Makes the groups of a model. kind: "slots", "groups" or "alone"; of the last none can be made.

    Args:
        slots: rows in flight at most. context: tokens that a row may have, prompt and answer together.
    """

    def __init__(self, model: PreTrainedModel, slots: int, context: int):
        self.slots, self.kind, self.decoder = slots, "alone", None
        self._kept: SlotRows | None = None
        if slots == 1:
            return  # as generate() does it, to the last bit
        settings = DecoderSettings(
            sampler=Sampler(SamplingSettings(False, 1.0, 0, 1.0, None, 1.0)),  # not used: choosing.py chooses
            stop_ids=frozenset(),
            pad_id=model.generation_config.pad_token_id or 0,
            max_new_tokens=max(1, context - PROBED_TOKENS),
        )
        vocabulary = model.config.get_text_config().vocab_size
        probed = Rendered(tuple(index % vocabulary for index in range(PROBED_TOKENS)), PROBED_TOKENS)
        reasons = []
        for kind, decoder in (("slots", RowDecoder), ("groups", StateDecoder)):
            try:
                self.decoder = decoder(model, Rendering((probed,), ()), settings)
                self.kind = kind
                return
            except RowsUnsupported as reason:
                reasons.append(str(reason))
        logger.info("answers are written one at a time, not together: %s", "; ".join(reasons))

    @property
    def joins(self) -> bool:
        """Whether new rows can join a group that is in flight."""
        return self.kind == "slots"

    @property
    def admitted_together(self) -> int:
        """How many slots must be free before rows are begun, where more are waiting than there are free ones.

        A group goes through the model by itself: begun one by one, rows would gain nothing by standing together.
        """
        return max(1, self.slots // 2) if self.kind == "groups" else 1

    def make(self) -> RowGroup:
        """Return a group without rows; slots are laid out once and used again."""
        if not self.joins:
            return GroupRows(self.decoder)
        if self._kept is None:
            self._kept = SlotRows(self.decoder, self.slots)
        return self._kept

    def forget(self) -> None:
        """Give up the slots: a failure has left them in an unknown state."""
        self._kept = None
