"""The one thread that runs a model: requests wait in a queue, and answers are decoded together.

What an answer says depends on its prompt, options and seed alone (live/choosing.py); who stands beside it changes the
rounding of the logits and nothing else.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from frankenlm.degradation.answers.requests import is_out_of_memory
from frankenlm.sharing.live.answers import AnswerPiece, TokenReport, Writing, stream, token_text
from frankenlm.sharing.live.choosing import TokenChoice
from frankenlm.sharing.live.models import LoadedModel
from frankenlm.sharing.live.options import Options
from frankenlm.trainer_ext.common.cli import Failed
from frankenlm.trainer_ext.generation.generate import end_ids

from .rows import GroupMaker, RowGroup

logger = logging.getLogger("frankenlm.serving")

GATHERING = 0.005  # seconds that an idle engine waits for others before it begins a group
FIRST_GUESS = 1.0  # seconds an answer takes, until one has been written
LONGEST_WAIT = 60  # seconds that a client is asked to stay away at most


@dataclass(frozen=True)
class EngineLimits:
    """What a model may be asked for.

    slots: answers in flight at most; 1 writes them one at a time, as generate() does, to the last bit.
    queue: answers that may wait for a slot. context: tokens of prompt and answer together, where the model has more
    positions. max_tokens: tokens of an answer.
    """

    slots: int = 8
    queue: int = 64
    context: int = 2048
    max_tokens: int = 1024


class Overloaded(Exception):
    """There is no room in the queue; `retry_after` says in how many seconds there may be."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} answers are waiting already: try again in about {retry_after} s.")
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine takes no more answers."""


@dataclass(eq=False)
class AnswerJob:
    """One answer to write.

    deliver: takes its pieces, the last of which has a finish reason, or an error; called in the engine's thread.
    echo: a text to deliver first, as a piece without tokens, with the log-probabilities of the prompt's tokens where
        any are asked for; None: no such piece. echo_alone: nothing else is wanted.
    """

    ids: Sequence[int]
    options: Options
    seed: int
    deliver: Callable[[AnswerPiece | Exception], None]
    stop: tuple[str, ...] = ()
    echo: str | None = None
    echo_alone: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Row:
    """An answer in flight."""

    def __init__(self, job: AnswerJob, loaded: LoadedModel):
        self.job, self.started = job, time.monotonic()
        asks = job.options.logprobs is not None
        ends = end_ids(loaded.model.generation_config)
        self.writing = Writing(loaded.tokenizer, job.ids, job.options.max_new_tokens, ends, job.stop, logprobs=asks)
        self.choice = TokenChoice(job.options, job.seed, len(job.ids))
        self.ids = list(job.ids)
        self._outgoing: list[AnswerPiece | Exception] = []

    def take(self, logits: torch.Tensor) -> bool:
        """Choose the next token from logits [vocabulary]; return whether the answer goes on."""
        try:
            chosen = self.choice.choose(torch.tensor([self.ids], device=logits.device), logits[None])
            self.ids.append(chosen.token)
            piece = self.writing.take(chosen)
        except Exception as error:  # noqa: BLE001  of this answer: the others go on
            self._outgoing.append(error)
            return False
        if piece is not None:
            self._outgoing.append(piece)
        return self.writing.finished is None

    def left(self) -> bool:
        """Whether the client has left; the answer then ends."""
        if self.job.cancelled.is_set():
            self._outgoing.append(self.writing.cancel())
        return self.writing.finished is not None

    def send(self) -> None:
        """Deliver what has come."""
        for each in self._outgoing:
            self.job.deliver(each)
        self._outgoing.clear()


class _Flight:
    """Rows that go through the model together."""

    def __init__(self, group: RowGroup):
        self.group = group
        self.rows: list[_Row] = []


class Engine:
    """Writes the answers of one model. `context`: tokens that it reads, prompt and answer together."""

    def __init__(self, loaded: LoadedModel, limits: EngineLimits):
        self.loaded, self.limits = loaded, limits
        self.context = min(limits.context, loaded.positions or limits.context)
        # no text of more characters fits, however well it is put into tokens; tokenizing one of megabytes takes seconds
        self.most_characters = self.context * max(map(len, loaded.tokenizer.get_vocab()))
        self.maker = GroupMaker(loaded.model, limits.slots, self.context)
        self.slots = 1 if self.maker.kind == "alone" else limits.slots
        self.tokenizing = threading.Lock()  # tokenizers are not made for several threads
        self._waiting: deque[AnswerJob] = deque()
        self._flights: list[_Flight] = []
        self._in_flight = 0
        self._change = threading.Condition()
        self._stopping = False
        self._seconds = FIRST_GUESS
        self._thread = threading.Thread(target=self._run, name=f"engine of {loaded.name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        """Answers in flight and waiting."""
        return self._in_flight + len(self._waiting)

    @property
    def most(self) -> int:
        """Answers that one request may ask for: more could never be taken."""
        return self.slots + self.limits.queue

    def submit(self, jobs: Sequence[AnswerJob]) -> None:
        """Take all jobs of a request, or none.

        Raises:
            Overloaded: there is no room for all of them now.
            EngineClosed: there never will be.
        """
        with self._change:
            if self._stopping:
                raise EngineClosed
            if self.busy + len(jobs) > self.most:
                turns = self.busy / self.slots
                raise Overloaded(len(self._waiting), int(min(LONGEST_WAIT, max(1, turns * self._seconds))))
            self._waiting.extend(jobs)
            self._change.notify()

    def close(self, timeout: float | None = None) -> None:
        """End every answer where it is, and the thread."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(timeout)

    # --- the thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._work(self._take_jobs())
        except Exception as error:  # noqa: BLE001  of our own making; clients must not wait for ever
            logger.error("the engine of %s ended: %s", self.loaded.name, type(error).__name__)
        finally:
            self._end_all()

    def _work(self, jobs: list[AnswerJob]) -> None:
        if self.maker.kind == "alone":
            for job in jobs:
                self._write_alone(job)
            return
        self._admit(jobs)
        for flight in list(self._flights):
            self._step(flight)
        self._count()

    def _wait_for_work(self) -> bool:
        with self._change:
            idle = not (self._waiting or self._flights or self._stopping)
            while not (self._waiting or self._flights or self._stopping):
                self._change.wait()
        if idle and self.maker.kind == "groups":
            time.sleep(GATHERING)
        return not self._stopping

    def _take_jobs(self) -> list[AnswerJob]:
        """The next jobs that there are slots for; those whose client has left go without a word."""
        with self._change:
            self._waiting = deque(job for job in self._waiting if not job.cancelled.is_set())
            free = self.slots - self._in_flight
            if free < min(len(self._waiting), self.maker.admitted_together):
                return []
            jobs = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._in_flight += len(jobs)
        return jobs

    def _count(self) -> None:
        with self._change:
            self._in_flight = sum(len(flight.rows) for flight in self._flights)

    def _admit(self, jobs: list[AnswerJob]) -> None:
        rows = [_Row(job, self.loaded) for job in jobs if self._answer_echo(job)]
        if not rows:
            return
        joins = self.maker.joins and self._flights
        flight = self._flights[0] if joins else _Flight(self.maker.make())
        if not joins:
            self._flights.append(flight)
        before = len(flight.rows)
        flight.rows += rows
        logits = self._computed(flight, lambda: flight.group.begin([row.ids for row in rows]))
        if logits is not None:
            going = [row.take(each) for row, each in zip(rows, logits, strict=True)]
            self._retire(flight, [True] * before + going)

    def _step(self, flight: _Flight) -> None:
        self._retire(flight, [not row.left() for row in flight.rows])
        if flight.rows:
            logits = self._computed(flight, lambda: flight.group.step([row.ids[-1] for row in flight.rows]))
            if logits is not None:
                self._retire(flight, [row.take(each) for row, each in zip(flight.rows, logits, strict=True)])

    def _computed(self, flight: _Flight, compute: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Run the model; where it fails, all rows of the flight learn why, and the engine goes on without them."""
        try:
            return compute()
        except Exception as error:  # noqa: BLE001  whatever a model may raise
            failure = error
            logger.error("the model %s failed: %s", self.loaded.name, type(error).__name__)
        if is_out_of_memory(failure):
            failure = Failed("the memory does not suffice for this answer beside the others: ask for fewer tokens.")
        self._flights.remove(flight)
        self.maker.forget()
        self._count()
        for row in flight.rows:
            row.job.deliver(failure)
        flight.rows = []
        return None

    def _retire(self, flight: _Flight, going: Sequence[bool]) -> None:
        """Let the rows go that are finished; then send, so that who has an answer finds its slot free."""
        rows = flight.rows
        if not all(going):
            now = time.monotonic()
            for row in itertools.compress(rows, (not each for each in going)):
                self._seconds += 0.1 * (now - row.started - self._seconds)
            places = [place for place, each in enumerate(going) if each]
            flight.rows = [rows[place] for place in flight.group.keep(places)]
            if not flight.rows:
                self._flights.remove(flight)
            self._count()
        for row in rows:
            row.send()

    def _end_all(self) -> None:
        with self._change:
            self._stopping = True
            left, self._waiting = list(self._waiting), deque()
        for row in itertools.chain.from_iterable(flight.rows for flight in self._flights):
            row.job.deliver(row.writing.cancel())
        for job in left:
            job.deliver(AnswerPiece("", 0, "cancelled"))

    # --- answers that are not decoded together

    def _write_alone(self, job: AnswerJob) -> None:
        started = time.monotonic()
        try:
            if self._answer_echo(job):
                self._stream(job)
        except Exception as error:  # noqa: BLE001  of this answer: the engine goes on
            job.deliver(error)
        self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
        with self._change:
            self._in_flight = 0

    def _stream(self, job: AnswerJob) -> None:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        for piece in stream(model, tokenizer, job.ids, job.options, job.stop, job.seed, job.cancelled):
            if self._stopping:
                job.cancelled.set()
            job.deliver(piece)

    def _answer_echo(self, job: AnswerJob) -> bool:
        """Deliver the prompt where that is asked for; return whether there is more to write."""
        if job.echo is None:
            return True
        try:
            reports = () if job.options.logprobs is None else self._prompt_reports(job)
        except Exception as error:  # noqa: BLE001  of this answer: the engine goes on
            job.deliver(error)
            return False
        job.deliver(AnswerPiece(job.echo, 0, "length" if job.echo_alone else None, reports))
        return not job.echo_alone

    def _prompt_reports(self, job: AnswerJob) -> tuple[TokenReport, ...]:
        """What the model thought of each token of the prompt but the first, which nothing stands before."""
        ids, tokenizer = list(job.ids), self.loaded.tokenizer
        logits = self.loaded.model(input_ids=torch.tensor([ids], device=self.loaded.model.device)).logits[0]
        reports, start = [], 0
        for place, token in enumerate(ids):
            before = ids[max(0, place - 8) : place]
            text = token_text(tokenizer, before, token)
            logprob, alternatives = None, ()
            if place:
                logprobs = logits[place - 1].float().log_softmax(-1)
                logprob = float(logprobs[token])
                values, tokens = logprobs.topk(min(job.options.logprobs, len(logprobs)))
                named = ((each, token_text(tokenizer, before, each)) for each in tokens.tolist())
                alternatives = tuple((*each, value) for each, value in zip(named, values.tolist(), strict=True))
            reports.append(TokenReport(token, text, logprob, start, alternatives))
            start += len(text)
        return tuple(reports)
