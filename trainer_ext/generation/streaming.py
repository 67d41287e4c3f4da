"""Text as it is generated: from token ids to characters that will not change any more, and reasons to stop early."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation import BaseStreamer

from ..common.signals import CaughtSignals
from ..data.tokenizers import special_token_ids

# Tokenizers that mark the start of a word drop a leading space; with a few tokens before them, texts keep it.
CONTEXT_TOKENS = 4
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to
LONGEST_CHARACTER = 4  # bytes in UTF-8
DECODED_AGAIN = 32  # tokens; with all of them decoded at each step, long texts would slow down


def continuation_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that `new` tokens add to those of the prompt, special tokens left out."""
    before = list(prompt[-CONTEXT_TOKENS:])
    start, whole = _decode(tokenizer, before), _decode(tokenizer, [*before, *new])
    # a prompt that ends within a character has no text to take away
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, new)


def _decode(tokenizer, ids, *, special: bool = False) -> str:
    return tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)


def special_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings that hold a special token, such as <|im_end|>: no text shows it, and yet it ends one."""
    special = tokenizer.convert_ids_to_tokens(special_token_ids(tokenizer))
    return tuple(string for string in stop if any(token in string for token in special))


def holds_special_stop(tokenizer: PreTrainedTokenizerBase, row: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether new tokens hold a stop string that has special tokens in it."""
    wanted = special_stops(tokenizer, stop)
    return bool(wanted) and any(string in _decode(tokenizer, row, special=True) for string in wanted)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop strings in it."""
    places = [text.find(string) for string in stop if string in text]
    return text[: min(places)] if places else text


class TextStream(BaseStreamer):
    """What `generate(streamer=...)` feeds: keeps the tokens, and writes their text as soon as it is settled.

    Bytes of an unfinished character are held back, and so is what may become a stop string.

    Args:
        prompt: ids before the text; generate() hands them over first, and they are not written again.
        write: takes each piece of text.
        stop: strings that end the text; they and what follows are not written.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        write: Callable[[str], object],
        stop: Sequence[str] = (),
    ):
        self.tokenizer, self.prompt, self.write, self.stop = tokenizer, prompt, write, stop
        self.tokens: list[int] = []
        self.shown = 0
        self.taken = 0
        self.settled, self.settled_text = 0, ""
        self.prompt_is_next = True

    def expect_prompt(self) -> None:
        """Say that another generate() goes on with the same text, and will hand over what it starts from."""
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        self.tokens += value.reshape(-1).tolist()
        if len(self.tokens) - self.settled > DECODED_AGAIN and not self._whole().endswith(UNFINISHED):
            self.settled_text, self.settled = self._whole(), len(self.tokens)
        text = self.text()
        self._show(text[: len(text) - self._unsettled(text)])

    def end(self) -> None:
        """generate() is through; more may follow, so the rest waits for `finish`."""

    def finish(self, *, keep_halves: bool = True) -> str:
        """Write what was held back; return the whole text.

        Args:
            keep_halves: write a mark for the first bytes of a character at the end, too.
        """
        text = self.text()
        if not keep_halves and not self.stopped():
            text = text[: len(text) - _unfinished(text)]
        self._show(text)
        return text

    def take_new(self) -> list[int]:
        """Return the tokens that have come since the last call."""
        new = self.tokens[self.taken :]
        self.taken = len(self.tokens)
        return new

    def stopped(self) -> bool:
        """Whether a stop string has come."""
        whole = self._whole()
        return any(string in whole for string in self.stop) or holds_special_stop(
            self.tokenizer, self.tokens, self.stop
        )

    def text(self) -> str:
        """The text so far, up to a stop string."""
        return cut_at_stop(self._whole(), self.stop)

    def _whole(self) -> str:
        before = [*self.prompt[-CONTEXT_TOKENS:], *self.tokens[max(0, self.settled - CONTEXT_TOKENS) : self.settled]]
        return self.settled_text + continuation_text(self.tokenizer, before, self.tokens[self.settled :])

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.write(text[self.shown :])
            self.shown = len(text)

    def _unsettled(self, text: str) -> int:
        """How many characters at the end may still change or belong to a stop string."""
        unfinished = _unfinished(text)
        # the unfinished character may be the next one of a stop string, so what stands before it is looked at as well
        settled = text[: len(text) - unfinished]
        starts = [size for string in self.stop for size in range(1, len(string)) if settled.endswith(string[:size])]
        return unfinished + max([0, *starts])


def _unfinished(text: str) -> int:
    """How many marks at the end of a text may be the first bytes of one character."""
    return min(len(text) - len(text.rstrip(UNFINISHED)), LONGEST_CHARACTER - 1)


class StopAtText(StoppingCriteria):
    """Ends each row whose new text holds one of the strings, however they were split into tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int, stop: Sequence[str]):
        self.tokenizer, self.prompt_length, self.stop = tokenizer, prompt_length, stop
        self.special = special_stops(tokenizer, stop)
        # a token is a byte at least, so a string can only end in the last few tokens
        self.reach = CONTEXT_TOKENS + LONGEST_CHARACTER * max(len(string) for string in stop)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        """Return (rows,) for input_ids (rows, L)."""
        start = max(self.prompt_length, input_ids.shape[1] - self.reach)
        offset = max(0, start - CONTEXT_TOKENS)
        found = [self._ends(row, start - offset) for row in input_ids[:, offset:].tolist()]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)

    def _ends(self, row: list[int], start: int) -> bool:
        # behind the tokens before them, or the first one may lose its leading space
        text = continuation_text(self.tokenizer, row[:start], row[start:])
        if any(string in text for string in self.stop):
            return True
        return bool(self.special) and any(
            string in _decode(self.tokenizer, row[start:], special=True) for string in self.special
        )


class StopOnSignal(StoppingCriteria):
    """Ends generation at the next token after Ctrl-C, so that cache and text stay in step."""

    def __init__(self):
        self.asked = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.asked, dtype=torch.bool, device=input_ids.device)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first SIGINT within the block; a second one is a KeyboardInterrupt as usual."""

        def ask(signum, frame):
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        with CaughtSignals((signal.SIGINT,), ask):
            yield
