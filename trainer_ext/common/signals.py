"""Signals caught for as long as a piece of work takes."""

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType


class CaughtSignals:
    """While entered, signals go to `handler`; what stood there before comes back at the end.

    Python lets only the main thread handle signals; entered in another one, they stay with whoever runs that one.

    Args:
        numbers: of the signals, such as signal.SIGTERM.
        handler: called with the number of a signal and the frame it interrupts.
    """

    def __init__(self, numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]):
        self.numbers, self.handler = numbers, handler
        self._before: dict[int, object] = {}

    def __enter__(self) -> "CaughtSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                self._before[number] = signal.signal(number, self.handler)
        return self

    def __exit__(self, *error) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Put the handlers of before back, from which on a signal does what it did; doing so twice is allowed."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
