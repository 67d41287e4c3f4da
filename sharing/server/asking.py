"""From a request to jobs for an engine, and from their pieces to a reply."""

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from frankenlm.sharing.live.answers import AnswerPiece
from frankenlm.trainer_ext.common.checkpoints import check_vocabulary
from frankenlm.trainer_ext.common.cli import UserError, one_line
from frankenlm.trainer_ext.generation.generate import chat_ids, derive_seed, prompt_ids, require_text

from .engine import AnswerJob, Engine
from .errors import bad_value
from .replies import ChatReply, CompletionReply, ReplyChoice, usage
from .requests import CompletionRequest

DEFAULT_TOKENS = 16  # of /v1/completions, as the OpenAI API has it; a chat's answer ends by itself


class Asked:
    """The jobs of one request, and the shapes of its reply.

    The answers are numbered prompt by prompt. The first answer to each prompt has the request's seed, as if it had been
    asked for alone; further ones (n > 1) have seeds made of it.
    """

    def __init__(self, request: CompletionRequest, jobs: list[AnswerJob], prompt_tokens: int):
        self.request, self.jobs, self.prompt_tokens = request, jobs, prompt_tokens
        kind = ChatReply if request.is_chat else CompletionReply
        self.reply = kind(request.model, request.options.logprobs is not None)
        self.choices = [ReplyChoice() for _ in jobs]

    async def whole(self, pieces: AsyncIterator[tuple[int, AnswerPiece]]) -> dict[str, Any]:
        """Return the reply, once all answers are finished."""
        async with contextlib.aclosing(pieces):
            async for index, piece in pieces:
                self._add(index, piece)
        return self.reply.answer(self.choices, self._usage())

    async def chunks(self, pieces: AsyncIterator[tuple[int, AnswerPiece]]) -> AsyncIterator[dict[str, Any]]:
        """Yield the reply in chunks."""
        async with contextlib.aclosing(pieces):
            begun = False
            async for index, piece in pieces:
                if not begun:  # only now, so that an error before it has a status of its own
                    begun = True
                    for chunk in self.reply.first_chunks(len(self.jobs)):
                        yield chunk
                for chunk in self.reply.piece(index, self._add(index, piece)):
                    yield chunk
        if self.request.with_usage:
            yield self.reply.usage_chunk(self._usage())

    def _add(self, index: int, piece: AnswerPiece) -> AnswerPiece:
        """Take a piece; return it with its tokens' places counted from the start of an echoed prompt."""
        if piece.tokens:
            echoed = len(self.jobs[index].echo or "")
            moved = tuple(dataclasses.replace(each, start=each.start + echoed) for each in piece.logprobs)
            piece = dataclasses.replace(piece, logprobs=moved)
        self.choices[index].add(piece)
        return piece

    def _usage(self) -> dict[str, int]:
        return usage(self.prompt_tokens, self.choices)


def ask(engine: Engine, request: CompletionRequest, deliver: Callable[[int, object], None]) -> Asked:
    """Return the jobs of a request; tokenizing may take a while, so this is called in a thread of its own.

    Args:
        deliver: takes the number of an answer and a piece of it, or an error.

    Raises:
        ApiError: a prompt without room for the answer, a chat without a template, or too many answers.
    """
    answers = request.n * (1 if request.is_chat else len(request.prompts))
    if answers > engine.most:
        raise bad_value("n", f"n x prompts: {answers} answers; this server takes {engine.most}.")
    _check_characters(engine, request)
    with engine.tokenizing:
        prompts = _prompt_ids(engine, request)
    vocabulary = engine.loaded.model.config.get_text_config().vocab_size
    beyond = [token for token in request.options.logit_bias if token >= vocabulary]
    if beyond:
        raise bad_value("logit_bias", f"logit_bias: token {beyond[0]} is beyond the vocabulary of {vocabulary}.")
    jobs = []
    for prompt, ids in zip(request.prompts or [None], prompts, strict=True):
        if not isinstance(prompt, str | None) and max(ids, default=0) >= vocabulary:
            raise bad_value("prompt", f"prompt: token {max(ids)} is beyond the vocabulary of {vocabulary:,}.")
        with _of_field(_prompt_field(request)):
            check_vocabulary(ids, vocabulary)
        room = _room(engine, request, ids)
        for number in range(request.n):
            jobs.append(
                AnswerJob(
                    ids=ids,
                    options=dataclasses.replace(request.options, max_new_tokens=max(1, room)),
                    seed=derive_seed(request.seed % 2**64, number) if number else request.seed,
                    deliver=functools.partial(deliver, len(jobs)),
                    stop=request.stop,
                    echo=_echoed(engine, prompt, ids) if request.echo else None,
                    echo_alone=room == 0,
                )
            )
    return Asked(request, jobs, sum(map(len, prompts)))


def _check_characters(engine: Engine, request: CompletionRequest) -> None:
    """Raises ApiError for a text that is too long whatever its tokens are, before it is tokenized."""
    texts = [sum(len(each["content"]) for each in request.messages)] if request.is_chat else []
    texts += [len(each) for each in request.prompts or () if isinstance(each, str)]
    longest = max(texts, default=0)
    if longest > engine.most_characters:
        raise bad_value(
            _prompt_field(request),
            f"the prompt has {longest:,} characters, and the model reads {engine.context:,} tokens here: shorten it.",
            "context_length_exceeded",
        )


def _prompt_ids(engine: Engine, request: CompletionRequest) -> list[list[int]]:
    tokenizer = engine.loaded.tokenizer
    if not request.is_chat:
        with _of_field("prompt"):
            return [prompt_ids(tokenizer, each) if isinstance(each, str) else list(each) for each in request.prompts]
    if tokenizer.chat_template is None:
        raise bad_value(
            "messages",
            f"the tokenizer of {engine.loaded.name} has no chat template, so it cannot chat: use /v1/completions.",
            "no_chat_template",
        )
    with _of_field("messages"):
        for message in request.messages:
            require_text(message["content"])
        return [chat_ids(engine.loaded, list(request.messages))]


def _prompt_field(request: CompletionRequest) -> str:
    return "messages" if request.is_chat else "prompt"


@contextlib.contextmanager
def _of_field(name: str) -> Iterator[None]:
    """Say which field a mistake is in."""
    try:
        yield
    except UserError as error:
        raise bad_value(name, one_line(error)) from error


def _room(engine: Engine, request: CompletionRequest, ids: list[int]) -> int:
    """Return how many tokens an answer may have.

    Raises:
        ApiError: as many as were asked for are not allowed, or do not fit.
    """
    most, wanted = engine.limits.max_tokens, request.max_tokens
    if wanted is not None and wanted > most:
        raise bad_value("max_tokens", f"max_tokens: must be at most {most} on this server.")
    room = engine.context - len(ids)
    if room < (1 if wanted is None else wanted):
        asked = "" if wanted is None else f" and max_tokens={wanted}"
        raise bad_value(
            _prompt_field(request),
            f"the prompt has {len(ids):,} tokens{asked}, and the model reads {engine.context:,} here, answer included: "
            "shorten it.",
            "context_length_exceeded",
        )
    if wanted is None:
        return min(room, most if request.is_chat else DEFAULT_TOKENS)
    return wanted


def _echoed(engine: Engine, prompt: str | tuple[int, ...], ids: list[int]) -> str:
    return prompt if isinstance(prompt, str) else engine.loaded.tokenizer.decode(ids)
