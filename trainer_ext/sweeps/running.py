"""The runs of a sweep, each a process of its own: one that crashes takes no other with it."""

import collections
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.cli import EXIT_SIGNAL_BASE
from ..common.redaction import redact
from ..common.signals import CaughtSignals
from .run_folder import CONSOLE, PlannedRun

TRAIN = (sys.executable, "-m", "frankenlm.scripts.train")
PAUSE = 0.05  # seconds between two looks at the processes
STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Ending:
    """How a run's process ended. status: finished, failed or interrupted; message: its last line."""

    status: str
    message: str = ""


class RunProcesses:
    """Runs train.py for one planned run after the other; a signal goes on to them, and nothing new is begun then.

    Args:
        jobs: how many run at once. lock: descriptor of the sweep's lock, which the processes hold too: should this
            one be killed, no other sweep begins while they still train.
    """

    def __init__(self, jobs: int, lock: int | None):
        self.jobs, self.lock = jobs, lock
        self.signum: int | None = None
        self._running: dict[subprocess.Popen, PlannedRun] = {}

    def run(
        self,
        plan: Sequence[PlannedRun],
        begins: Callable[[PlannedRun], None],
        ends: Callable[[PlannedRun, Ending], None],
    ) -> None:
        """Run all of a plan, telling when each begins and ends."""
        waiting = collections.deque(plan)
        with CaughtSignals(STOPPING, self._receive):
            try:
                while (waiting and self.signum is None) or self._running:
                    while waiting and len(self._running) < self.jobs and self.signum is None:
                        begins(waiting[0])
                        self._start(waiting.popleft())
                    for process in [process for process in self._running if process.poll() is not None]:
                        planned = self._running.pop(process)
                        ends(planned, self._ending(planned, process.returncode))
                    time.sleep(PAUSE)
            finally:
                for process in self._running:  # only where we fail ourselves
                    process.kill()

    def _start(self, planned: PlannedRun) -> None:
        command = [*TRAIN, *planned.words()]
        inherited = {} if self.lock is None else {"pass_fds": (self.lock,)}
        with (planned.folder / CONSOLE).open("wb") as console:
            # in a session of its own: Ctrl-C reaches us alone, and we tell it once
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **inherited,
            )
        self._running[process] = planned
        if self.signum is not None:  # it came while the process was being made
            process.send_signal(signal.SIGTERM)

    def _receive(self, signum, frame) -> None:
        self.signum = self.signum or signum
        for process in self._running:
            process.send_signal(signal.SIGTERM)  # a run leaves a checkpoint after its step, or ends at the second one

    def _ending(self, planned: PlannedRun, code: int) -> Ending:
        if code == 0:
            return Ending("finished")
        by_signal = code < 0 or code in [EXIT_SIGNAL_BASE + number for number in STOPPING]
        if self.signum is not None and by_signal:
            return Ending("interrupted")
        said = last_line(planned.folder / CONSOLE)
        if code < 0:
            return Ending("failed", f"killed by {signal.Signals(-code).name}" + (f" after: {said}" if said else ""))
        return Ending("failed", said or f"exit code {code}")


def last_line(path: Path, most: int = 300) -> str:
    """The last line with something in it, without secrets."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        file.seek(max(0, size - 20_000))
        lines = re.split(r"[\r\n]", file.read().decode("utf-8", "replace"))
    said = [line.strip() for line in lines if line.strip()]
    return redact(said[-1])[:most] if said else ""
