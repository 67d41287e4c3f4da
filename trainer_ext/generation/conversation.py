"""A conversation with a causal model that keeps its state from turn to turn: what `generate.py --interactive` runs.

The tokens of a window and the cache behind them are kept; a turn feeds the model only what is new (a model whose cache
generate() does not give back reads everything again). When the position table is full, a model with a slot memory
begins a new window and carries its memory over; any other model drops the oldest half of its window and reads the rest
again.
"""

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from ..common.checkpoints import Checkpoint
from ..common.cli import UserError, one_line
from .flags import CONVERSATION_HELP
from .generate import Text, chat_text, derive_seed, finish_reason, require_text, run_generate
from .sampling import Sampling
from .streaming import StopOnSignal, TextStream

# A line goes on from the text so far on a line of its own, as in a text.
TURN_SEPARATOR = "\n"
LONGEST_SEED = 19  # digits of 2^63


class Conversation:
    """The state of one conversation.

    Args:
        chat: put turns into the tokenizer's chat template; otherwise the model goes on with one running text.
        write: takes the pieces of the model's text. say: takes notes about the state.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        sampling: Sampling,
        *,
        chat: bool = False,
        write: Callable[[str], object],
        say: Callable[[str], object],
    ):
        self.model, self.checkpoint, self.sampling = model, checkpoint, sampling
        self.chat, self.write, self.say = chat, write, say
        self.carries_memory = checkpoint.has_memory and sampling.use_memory is not False
        self.reset()

    def reset(self) -> None:
        """Forget everything said."""
        self.history: list[int] = []  # all tokens
        self.window: list[int] = []  # the last of them: those that positions are counted from
        self.cache: Any = None  # of the window, up to the last token or the one before
        self.memory: Any = None  # slot memory before the window
        self.messages: list[dict[str, str]] = []
        self.talk = ""  # with a chat template: the text of the history
        self.turn = 0

    def reseed(self, seed: int) -> None:
        """Take another seed; turns are counted anew, so that /reset and /seed N repeat a conversation."""
        sampling = dataclasses.replace(self.sampling, seed=seed)
        sampling.check()
        self.sampling, self.turn = sampling, 0

    def reply(self, text: str) -> Text:
        """Take a turn: read the text, write an answer, and return it.

        Raises:
            UserError: a text that does not fit the position table; the state is as before.
        """
        self._read(text)
        answer_start = len(self.window)
        seed = derive_seed(self.sampling.seed, self.turn)
        stream = TextStream(self.checkpoint.tokenizer, list(self.window), self.write, self.sampling.stop)
        interrupt, finished, start = StopOnSignal(), None, time.perf_counter()
        while finished is None:
            answer_start -= self._make_room(1)
            try:
                with interrupt.listening():
                    self._generate(stream, derive_seed(seed, len(stream.tokens)), interrupt, max(0, answer_start))
            except KeyboardInterrupt:
                # the model was stopped at work: what it had written counts, its half-made state does not
                self._take_over(stream, None)
                interrupt.asked = True
            finished = self._finish_reason(stream, interrupt)
        answer = stream.finish()
        self.messages.append({"role": "assistant", "content": answer})
        self.talk += self.checkpoint.tokenizer.decode(stream.tokens, clean_up_tokenization_spaces=False)
        self.turn += 1
        return Text(stream.tokens, answer, finished, time.perf_counter() - start, seed)

    def _read(self, text: str) -> None:
        """Put the tokens of a turn behind the window."""
        require_text(text)
        if self.chat:
            self._read_turn(text)
            return
        separator = TURN_SEPARATOR if self.history else ""
        new = self._tokenize(separator + text, begins=not self.history)
        self._check_length(new)
        self._append(new)

    def _read_turn(self, text: str) -> None:
        """Put a user's turn, in the chat template, behind the window.

        Where the template goes on from the very text so far, only the rest is read; where it writes earlier turns in
        another way than they were generated, the talk is read anew, without its oldest turns if they do not fit.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        talk = chat_text(self.checkpoint, messages)
        goes_on = bool(self.history) and talk.startswith(self.talk)
        new = self._tokenize(talk[len(self.talk) :] if goes_on else talk, begins=False)
        while not goes_on and len(messages) > 1 and not self._fits(new):
            messages = messages[2:]
            talk = chat_text(self.checkpoint, messages)
            new = self._tokenize(talk, begins=False)
        self._check_length(new)
        if not goes_on:
            if len(messages) <= len(self.messages):
                self.say("the oldest turns are dropped, the rest is read again")
            self.history, self.window, self.cache, self.memory = [], [], None, None
        self._append(new)
        self.messages, self.talk = messages, talk

    def _tokenize(self, text: str, *, begins: bool) -> list[int]:
        return self.checkpoint.tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"]

    def _fits(self, new: list[int]) -> bool:
        # one position goes to a token kept from the window before, one to the answer
        return self.checkpoint.limit is None or len(new) + 2 <= self.checkpoint.limit

    def _check_length(self, new: list[int]) -> None:
        if not self._fits(new):
            limit = self.checkpoint.limit
            raise UserError(f"that is {len(new)} tokens, and the model has positions for {limit}, answer included.")

    def _append(self, new: list[int]) -> None:
        self._make_room(len(new) + 1)
        self.history += new
        self.window += new

    def _make_room(self, needed: int) -> int:
        """Begin a new window where `needed` more tokens do not fit; return by how many tokens it was moved on."""
        limit, before = self.checkpoint.limit, len(self.window)
        if limit is None or before + needed <= limit:
            return 0
        if self.carries_memory:
            self._carry_memory()
            self.say(f"the {limit} positions are full: a new window begins, the memory is carried over")
        else:
            keep = min(limit // 2, limit - needed)
            self.window = self.window[before - keep :]
            self.say(
                f"the {limit} positions are full: the oldest {before - keep} tokens are dropped, the rest is read again"
            )
        self.cache = None
        return before - len(self.window)

    @torch.no_grad()
    def _carry_memory(self) -> None:
        """Take the memory after the window, but for its last token, which begins the next one."""
        if len(self.window) > 1:
            ids = torch.tensor([self.window[:-1]], device=self.model.device)
            self.memory = self.model(input_ids=ids, memory_state=self.memory, use_cache=False).memory_state
        self.window = self.window[-1:]

    def _generate(self, stream: TextStream, seed: int, interrupt: StopOnSignal, answer_start: int) -> None:
        limit, left = self.checkpoint.limit, self.sampling.max_new_tokens - len(stream.tokens)
        room = left if limit is None else min(left, limit - len(self.window))
        stream.expect_prompt()
        # the cache holds the memory of a window that has begun
        carried = {"memory_state": self.memory} if self.memory is not None and self.cache is None else {}
        result = run_generate(
            self.model,
            self.window,
            dataclasses.replace(self.sampling, max_new_tokens=room),
            tokenizer=self.checkpoint.tokenizer,
            seed=seed,
            stream=stream,
            criteria=[interrupt],
            cache=self.cache,
            prompt_length=answer_start,
            **carried,
        )
        self._take_over(stream, result.cache)

    def _take_over(self, stream: TextStream, cache: Any) -> None:
        """Put what the stream has got since the last time behind the window."""
        new = stream.take_new()
        self.history += new
        self.window += new
        self.cache = cache if self.sampling.use_cache else None

    def _finish_reason(self, stream: TextStream, interrupt: StopOnSignal) -> str | None:
        """Why the answer ends; None where only the window was full."""
        by_itself = finish_reason(self.model, stream.tokens, stopped=stream.stopped())
        if by_itself is not None or not interrupt.asked:
            full = len(stream.tokens) >= self.sampling.max_new_tokens
            return by_itself or ("length" if full else None)
        return "interrupted"


def converse(
    conversation: Conversation, lines: Iterable[str], *, say: Callable[[str], object]
) -> Iterator[tuple[str, Text]]:
    """Answer lines until they end or /quit; commands begin with a slash. Yield the lines with their answers.

    Mistakes in a line are said, and the conversation goes on.
    """
    for line in lines:
        line = line.rstrip("\n")
        try:
            if line.startswith("/"):
                if not run_line_command(conversation, line, say):
                    break
            elif line.strip():
                answer = conversation.reply(line)
                conversation.write("\n")
                if answer.finished == "interrupted":
                    say("stopped; the text so far is kept")
                yield line, answer
        except UserError as error:
            say(f"error: {one_line(error)}")


def run_line_command(conversation: Conversation, line: str, say: Callable[[str], object]) -> bool:
    """Run /reset, /seed N, /help or /quit; return whether the conversation goes on."""
    name, *words = line[1:].split() or [""]
    if name == "quit" and not words:
        return False
    if name == "reset" and not words:
        conversation.reset()
        say("everything is forgotten")
    elif name == "seed" and len(words) == 1 and words[0].isdecimal() and len(words[0]) <= LONGEST_SEED:
        conversation.reseed(int(words[0]))
        say(f"seed {int(words[0])}")
    elif name == "help":
        say(CONVERSATION_HELP)
    else:
        raise UserError(f"unknown command {line!r}: {CONVERSATION_HELP}.")
    return True


def typed_lines(say: Callable[[str], object]) -> Iterator[str]:
    """Yield the lines of standard input, with a prompt at a terminal; Ctrl-C at the prompt takes nothing with it.

    Bytes that are no text come as lone surrogates, which `require_text` refuses: the line is lost, not the talk.
    """
    if sys.stdin is None:  # started without one
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    interactive = sys.stdin.isatty()
    while True:
        try:
            if interactive:
                yield input("> ")
            else:
                line = sys.stdin.readline()
                if not line:
                    return
                yield line
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("/quit ends")
