"""How many rows are in flight, as the estimate, the memory policy, rows without room and signals decide."""

import logging
import signal
from collections import Counter
from collections.abc import Sequence
from types import FrameType

from frankenlm.trainer_ext.common.cli import Interrupted
from frankenlm.trainer_ext.common.signals import CaughtSignals

from ..answers.requests import Request
from ..errors import MemoryStop
from ..weights.loading import Loaded
from ..weights.memory import GpuReader, HostReader, MemoryPolicy
from .estimate import estimate_run
from .plan import Experiment

logger = logging.getLogger(__name__)

TRIES_ALONE = 2
FAILED_ROWS = 3


def make_policy(experiment: Experiment, loaded: Loaded) -> MemoryPolicy:
    """Return the memory policy of an experiment on a loaded model; its first batch is what the estimate leaves room
    for."""
    config = experiment.config
    estimate = estimate_run(experiment, loaded)
    if estimate.largest_batch == 0:
        logger.warning("by estimate, memory does not even hold one answer: %s", estimate.summary)
    on_gpu = loaded.device.type == "cuda"
    gpus = {parameter.device.index for parameter in loaded.model.parameters() if parameter.is_cuda}
    return MemoryPolicy(
        1 if config.invariance == "single" else config.max_batch_size,
        estimate.batch_size,
        GpuReader(gpus) if on_gpu else HostReader(),
        read_host=HostReader() if on_gpu else None,
        ceiling=max(1, estimate.largest_batch),
        grows=config.invariance == "rng",
    )


class RunLimit:
    """The limit of one run; also the place where a signal ends it, between two tokens and never inside a write.

    Attributes:
        failed: requests of the current cell that found no room even alone, to be recorded as such.
    """

    def __init__(self, policy: MemoryPolicy, signals: "Signals"):
        self.policy, self.signals = policy, signals
        self.failed: list[Request] = []
        self.failures = 0
        self._alone: Counter[Request] = Counter()

    def __call__(self) -> int:
        self.signals.check()
        return self.policy.batch_size

    def out_of_memory(self, rows: Sequence[Request]) -> list[Request]:
        """Halve the limit; a row that fails alone twice is given up, and the third such row ends the run.

        Raises:
            MemoryStop: that was the third.
        """
        if len(rows) > 1:
            self.policy.out_of_memory(len(rows))
            return list(rows)
        (row,) = rows
        self._alone[row] += 1
        if self._alone[row] < TRIES_ALONE:
            self.policy.out_of_memory(1)
            return [row]
        self.failed.append(row)
        self.failures += 1
        if self.failures == FAILED_ROWS:
            raise MemoryStop(
                f"{FAILED_ROWS} rows found no memory even alone: shorten max_new_tokens or max_seq_length, "
                "or take a smaller dtype or load_4bit. Finished rows are safe."
            )
        return []

    def begin_cell(self) -> None:
        self.failed.clear()
        self._alone.clear()


class Signals:
    """While entered, the first SIGTERM or SIGINT asks for an orderly end; the second ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._caught = CaughtSignals((signal.SIGTERM, signal.SIGINT), self._note)

    def __enter__(self) -> "Signals":
        self._caught.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._caught.let_go()

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise Interrupted(self.received, f"{name}: finished rows are saved; the same command goes on from here.")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._caught.let_go()
