"""One answer of a causal model, piece by piece, as its text becomes final.

`stream` lets transformers' generate() write one answer in a thread of its own. `Writing` turns tokens into pieces, and
says when the answer ends; the server, which decodes several answers together, uses it as well, so that both give the
same text for the same prompt, options and seed.
"""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from frankenlm.trainer_ext.common.checkpoints import check_vocabulary, position_limit
from frankenlm.trainer_ext.common.cli import Failed, UserError
from frankenlm.trainer_ext.generation.generate import end_ids, prompt_ids, trim
from frankenlm.trainer_ext.generation.streaming import TextStream, continuation_text

from .choosing import ChosenToken, TokenChoice, processors
from .options import Options, check_answer_seed, check_stops


@dataclass(frozen=True)
class TokenReport:
    """A token of an answer, in words. alternatives: (token, text, logprob), likeliest first.

    text: what it adds to the text before it. start: characters of the answer before it. logprob: in nats; None of a
        first token of all, which nothing was known before.
    """

    token: int
    text: str
    logprob: float | None
    start: int
    alternatives: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class AnswerPiece:
    """Text that will not change any more, and how many tokens have come since the last piece.

    finish_reason: None but in the last piece: "stop" (the model's end token or a stop string), "length" or "cancelled".
    logprobs: of the tokens of this text, where asked for; of a stop string's and the end token none are told.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    logprobs: tuple[TokenReport, ...] = ()


def room_for(model: PreTrainedModel, ids: Sequence[int], wanted: int) -> int:
    """Return how many of the wanted tokens fit behind a prompt.

    Raises:
        UserError: none does, or an id is beyond the model's vocabulary.
    """
    check_vocabulary(ids, model.config.get_text_config().vocab_size)
    limit = position_limit(model.config.get_text_config())
    if limit is None:
        return wanted
    if len(ids) >= limit:
        raise UserError(
            f"the prompt has {len(ids):,} tokens, and the model has positions for {limit:,}, answer included: "
            "shorten it."
        )
    return min(wanted, limit - len(ids))


class Writing:
    """One answer while it is written: tokens go in, pieces come out. `finished` is its finish reason, once it has one.

    Args:
        prompt: the ids before it. most: tokens it may have. ends: tokens that end it and are not written.
        logprobs: whether to tell what the model thought of each token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        most: int,
        ends: set[int],
        stop: Sequence[str] = (),
        *,
        logprobs: bool = False,
    ):
        self.tokenizer, self.prompt, self.most, self.ends, self.logprobs = tokenizer, prompt, most, ends, logprobs
        self.finished: str | None = None
        self._fresh: list[str] = []
        self._stream = TextStream(tokenizer, prompt, self._fresh.append, tuple(stop))
        self._stream.prompt_is_next = False
        self._count = self._told = 0
        self._reports: list[TokenReport] = []  # of tokens whose text is held back

    @property
    def tokens(self) -> list[int]:
        """The tokens of the answer so far, without an end token."""
        return self._stream.tokens

    def take(self, chosen: ChosenToken) -> AnswerPiece | None:
        """Add a token; return the piece that became final with it, if any."""
        self._count += 1
        if chosen.token in self.ends:
            return self._end("stop")
        if self.logprobs:
            self._reports.append(self._report(chosen))
        self._stream.put(torch.tensor([chosen.token]))
        if self._stream.stop and self._stream.stopped():
            return self._end("stop")
        if self._count >= self.most:
            return self._end("length")
        return self._piece() if self._fresh else None

    def cancel(self) -> AnswerPiece:
        """End the answer where it is."""
        return self._end("cancelled")

    def _end(self, reason: str) -> AnswerPiece:
        self.finished = reason
        text = self._stream.finish(keep_halves=False)
        if reason == "stop":
            # those of a stop string belong to no text
            self._reports = [report for report in self._reports if report.start < len(text)]
        return self._piece()

    def _piece(self) -> AnswerPiece:
        piece = AnswerPiece("".join(self._fresh), self._count - self._told, self.finished, tuple(self._reports))
        self._told = self._count
        self._fresh.clear()
        self._reports = []
        return piece

    def _report(self, chosen: ChosenToken) -> TokenReport:
        before = [*self.prompt[-8:], *self.tokens[-8:]]
        return TokenReport(
            chosen.token,
            token_text(self.tokenizer, before, chosen.token),
            chosen.logprob,
            len(self._stream.text()),
            tuple((each, token_text(self.tokenizer, before, each), value) for each, value in chosen.alternatives),
        )


def token_text(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], token: int) -> str:
    """Return what a token adds to the text of those before it; of a special token its name."""
    if token in tokenizer.all_special_ids:
        return tokenizer.convert_ids_to_tokens(token)
    return continuation_text(tokenizer, before, [token])


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[int],
    options: Options,
    stop: Sequence[str] = (),
    seed: int = 0,
    cancelled: threading.Event | None = None,
) -> Iterator[AnswerPiece]:
    """Return the pieces of one answer; the last one has a finish reason.

    The same model, prompt, options and seed give the same text, whatever else runs beside it. Closing the iterator, or
    setting `cancelled`, ends the generation at the next token. A search (num_beams) gives all of its text at its end.

    Args:
        model: one opened by live/models.py, whose generation config holds token ids alone.
        cancelled: set from another thread; the last piece then says so.

    Raises:
        BadOption: options, stop strings or a seed out of range; at once, as are:
        UserError: a prompt without room for an answer, or one that is no text.
        Failed: the model's logits are no numbers; while pieces are read, as is whatever the model raises.
    """
    options.check()
    check_stops(stop)
    check_answer_seed(seed)
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    options = dataclasses.replace(options, max_new_tokens=room_for(model, ids, options.max_new_tokens))
    return _pieces(_Generation(model, tokenizer, ids, options, tuple(stop), seed, cancelled or threading.Event()))


class _Generation(StoppingCriteria):
    """One call of generate(): its last processor chooses the token, and its stopping criterion takes it from there."""

    def __init__(self, model, tokenizer, ids, options, stop, seed, cancelled: threading.Event):
        self.model, self.ids, self.options = model, ids, options
        self.cancelled, self.abandoned = cancelled, threading.Event()
        ends = end_ids(model.generation_config)
        asks = options.logprobs is not None
        self.writing = Writing(tokenizer, ids, options.max_new_tokens, ends, stop, logprobs=asks)
        self.choice = TokenChoice(options, seed, len(ids))
        self.deliver: Callable[[AnswerPiece], None] | None = None

    def run(self, deliver: Callable[[AnswerPiece], None]) -> None:
        """Write the answer; the pieces go to `deliver`."""
        self.deliver = deliver
        input_ids = torch.tensor([self.ids], device=self.model.device)
        searches = self.options.num_beams > 1
        chooses = processors(self.options, len(self.ids)) if searches else LogitsProcessorList([self.choice])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                num_beams=self.options.num_beams,
                max_new_tokens=self.options.max_new_tokens,
                logits_processor=chooses,
                stopping_criteria=StoppingCriteriaList([self]),
            )
        if searches:
            self._deliver_found(output[0, len(self.ids) :].tolist())

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """Return (rows,): whether the answer ends with the last token of input_ids (rows, L)."""
        ends = self.cancelled.is_set() or self.abandoned.is_set()
        if self.options.num_beams == 1:
            piece = self.writing.take(self.choice.chosen)
            if ends and self.writing.finished is None:
                self._deliver(piece)
                piece = self.writing.cancel()
            self._deliver(piece)
            ends = self.writing.finished is not None
        return torch.full((len(input_ids),), ends, dtype=torch.bool, device=input_ids.device)

    def _deliver(self, piece: AnswerPiece | None) -> None:
        if piece is not None:
            self.deliver(piece)

    def _deliver_found(self, row: list[int]) -> None:
        """Deliver what a search found."""
        for token in trim(row, self.model.generation_config):
            if self.writing.finished is None:
                self._deliver(self.writing.take(ChosenToken(token)))
        if self.writing.finished is None:
            self._deliver(self.writing.cancel())


def _pieces(generation: _Generation) -> Iterator[AnswerPiece]:
    """Run a generation in a thread of its own, and yield its pieces here."""
    arrived: queue.SimpleQueue[AnswerPiece | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            generation.run(arrived.put)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001  it is raised again where the pieces are read
            arrived.put(error)

    worker = threading.Thread(target=work, name="answer", daemon=True)
    worker.start()
    with contextlib.ExitStack() as at_end:
        at_end.callback(worker.join)
        at_end.callback(generation.abandoned.set)
        while (piece := arrived.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if piece.finish_reason is not None:
                return
    raise Failed("the model ended an answer without a reason.")
