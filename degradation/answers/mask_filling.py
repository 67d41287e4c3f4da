"""Masked language models (BERT and its kin): a text is read with one token masked at a time, and each is filled in.

That is all such a model can say of a text, one token for each of its own: the "answer" to a prompt is the prompt as the
model would write it, and the product of the true tokens' probabilities is the pseudo-likelihood of Salazar et al. 2020,
"Masked Language Model Scoring", arXiv:1910.14659.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..offloaded import input_device
from .rendering import Rendered, Rendering, count_tokens
from .requests import Answer, BatchLimit, DecoderSettings, Request, RowInFlight, is_out_of_memory
from .sampling import Choice


def surroundings(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before and behind a text, such as [CLS] and [SEP]."""
    text = "word 7"
    bare, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])


def render_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> Rendering:
    """Render texts as a masked model reads them: alone, between the tokenizer's special tokens.

    Raises:
        ValueError: the tokenizer has no mask token, or a text is empty or longer than `max_length` tokens.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("the tokenizer has no mask token, which a masked language model needs.")
    before, behind = surroundings(tokenizer)
    rendered = []
    for text in texts:
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ValueError(f"a prompt has no tokens: {text[:60]!r}.")
        rendered.append(Rendered((*before, *ids, *behind), count_tokens(tokenizer, text)))
        if len(rendered[-1].ids) > max_length:
            raise ValueError(
                f"a prompt has {len(rendered[-1].ids)} tokens, more than max_seq_length={max_length}: {text[:60]!r}. "
                "Raise max_seq_length or shorten the prompt; prompts are never cut."
            )
    return Rendering(tuple(rendered), prefix=())


def masked_copies(ids: Sequence[int], places: Sequence[int], mask_id: int) -> torch.Tensor:
    """Return one copy of `ids` for each place, with that place masked, int64 [places, tokens]."""
    copies = torch.tensor(ids).repeat(len(places), 1)
    copies[torch.arange(len(places)), torch.tensor(places)] = mask_id
    return copies


def masked_logits(model: PreTrainedModel, copies: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Return what the model makes of the masked place of each copy, [copies, vocabulary]."""
    logits = model(input_ids=copies.to(input_device(model))).logits
    return logits[torch.arange(len(places), device=logits.device), torch.tensor(places, device=logits.device)]


class MaskDecoder:
    """Fills in every token of every prompt, each from all the others.

    The copies of a prompt share calls among themselves only, so a row's text cannot depend on other rows; the batch
    size decides how many of them share one.
    """

    name = "masks"

    def __init__(self, model: PreTrainedModel, rendering: Rendering, settings: DecoderSettings, tokenizer: Any):
        self.model, self.rendering, self.settings = model, rendering, settings
        self.mask_id = tokenizer.mask_token_id
        before, behind = surroundings(tokenizer)
        self.before, self.behind = len(before), len(behind)

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], limit: BatchLimit) -> Iterator[list[Answer]]:
        for request in requests:
            answer = self._fill(request, limit)
            if answer is not None:
                yield [answer]

    def _fill(self, request: Request, limit: BatchLimit) -> Answer | None:
        """Return a row, or None where `limit` gives it up."""
        ids = self.rendering.prompts[request.index].ids
        places = list(range(self.before, len(ids) - self.behind))
        started = time.perf_counter()
        size = self._copies(limit(), len(places))
        row = RowInFlight(request, size, (size, len(ids)), started, 0.0)
        done, reason = 0, None
        while reason is None:
            chunk, choice = places[done : done + limit()], None
            try:
                choice = self._choose(request, ids, chunk, done, self._copies(limit(), len(chunk)))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if choice is not None:
                done += len(chunk)
                reason = self._take(row, choice, len(chunk), complete=done == len(places))
            # behind the handler, as in row_decoder.py; what the limit counts here are the copies
            elif not limit.out_of_memory([request] * self._copies(limit(), len(chunk))):
                return None
        now = time.perf_counter()
        return row.answer(reason, now, now - started)

    def _choose(self, request: Request, ids: Sequence[int], chunk: list[int], done: int, size: int) -> Choice:
        """Choose the tokens of some places, `done` of which went before, in a call of `size` copies."""
        padded = chunk + [chunk[0]] * (size - len(chunk))
        logits = masked_logits(self.model, masked_copies(ids, padded, self.mask_id), padded)[: len(chunk)]
        keys = np.repeat(np.array([request.key], dtype=np.uint32), len(chunk), axis=0)
        return self.settings.sampler.choose(logits, keys, np.arange(done, done + len(chunk)))

    def _copies(self, limit: int, places: int) -> int:
        """Return how many copies a call has that is for so many places; in fixed shapes, as many as any other."""
        return limit if self.settings.fixed_shape else min(limit, places)

    @staticmethod
    def _take(row: RowInFlight, choice: Choice, count: int, complete: bool) -> str | None:
        """Add the chosen tokens; return why the row ends with them, or None."""
        for place in range(count):
            if not choice.finite[place]:
                return "nan"
            row.tokens.append(int(choice.tokens[place]))
            row.logprob += float(choice.logprobs[place])
            row.entropy += float(choice.entropies[place])
        return "filled" if complete else None
