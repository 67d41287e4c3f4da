"""Answers of a model on the shelf, as the page shows them: the text so far, and how fast it comes.

The generation runs in a thread of its own, which holds the model's lock. Whoever reads gets something every BEAT
seconds, also while nothing is written, so that a visitor who left is noticed; closing the iterator ends the generation
at its next token.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.generation.generate import prompt_ids

from ..live.answers import AnswerPiece, stream
from ..live.options import BadOption, Options
from .limits import Limits
from .shelf import Opened

BEAT = 0.1  # seconds between two states of an answer at most, and at least while text comes
ENDS = {"stop": "ended by itself or at a stop string", "length": "as long as asked for", "cancelled": "stopped"}
WRITING = " ..."  # at the end of what stands below an answer that is being written


@dataclass(frozen=True)
class AnswerState:
    """An answer so far. finished: None while it is written. seconds: since its model began to read the prompt."""

    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finished: str | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def words(self) -> str:
        """What stands below the text."""
        if not self.seconds:
            return "waiting for the model" + WRITING
        how = f"{self.tokens} tokens in {self.seconds:.1f} s, {self.tokens_per_second:.0f} tokens/s"
        return f"{how}; {ENDS[self.finished]}" if self.finished else how + WRITING


def answer(
    opened: Opened,
    prompt: str,
    options: Options,
    *,
    stop: Sequence[str] = (),
    seed: int = 0,
    limits: Limits,
    model: PreTrainedModel | None = None,
) -> Iterator[AnswerState]:
    """Return the states of one answer; the last one is finished. See live/answers.py for what it depends on.

    Args:
        model: another form of the opened one, such as its packed twin.

    Raises:
        BadOption, UserError: at once, as live/answers.py says, and for what is beyond the limits.
        Failed: while states are read; as is whatever the model raises.
    """
    if len(stop) > limits.stop_strings:
        raise BadOption("stop", f"stop: {len(stop)} strings; at most {limits.stop_strings} here.")
    ids = prompt_ids(opened.tokenizer, prompt)
    if len(ids) > limits.prompt_tokens:
        raise UserError(f"the text is {len(ids):,} tokens long; this page takes at most {limits.prompt_tokens:,}.")
    cancelled = threading.Event()
    pieces = stream(model or opened.model, opened.tokenizer, ids, options, stop, seed, cancelled)
    return _states(_Pump(opened.lock, pieces, cancelled))


class _Pump:
    """Takes the pieces of an answer as they come, under the model's lock; `arrived` then holds (seconds, piece)."""

    def __init__(self, lock: threading.Lock, pieces: Iterator[AnswerPiece], cancelled: threading.Event):
        self.lock, self.pieces, self.cancelled = lock, pieces, cancelled
        self.arrived: queue.SimpleQueue[tuple[float, AnswerPiece | BaseException]] = queue.SimpleQueue()
        self.began: float | None = None

    @property
    def seconds(self) -> float:
        return 0.0 if self.began is None else time.perf_counter() - self.began

    def run(self) -> None:
        try:
            with self.lock:
                self.began = time.perf_counter()
                for piece in self.pieces if not self.cancelled.is_set() else ():
                    self.arrived.put((self.seconds, piece))
                    if not threading.main_thread().is_alive():  # the process ends, and waits for this thread
                        self.cancelled.set()
        except BaseException as error:  # noqa: BLE001  it is raised again where the states are read
            self.arrived.put((self.seconds, error))


def _states(pump: _Pump) -> Iterator[AnswerState]:
    state, shown = AnswerState(), 0.0
    threading.Thread(target=pump.run, name="page answer").start()
    try:
        while state.finished is None:
            try:
                seconds, piece = pump.arrived.get(timeout=BEAT)
            except queue.Empty:
                shown = time.monotonic()
                yield dataclasses.replace(state, seconds=pump.seconds)
                continue
            if isinstance(piece, BaseException):
                raise piece
            state = AnswerState(state.text + piece.text, state.tokens + piece.tokens, seconds, piece.finish_reason)
            if state.finished is not None or time.monotonic() - shown >= BEAT:
                shown = time.monotonic()
                yield state
    finally:
        pump.cancelled.set()
