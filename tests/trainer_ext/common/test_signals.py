"""Signals go to a handler for as long as it is asked for, and to whoever had them before afterwards."""

import os
import signal
import threading

from frankenlm.trainer_ext.common.signals import CaughtSignals


def test_handlers_of_before_come_back():
    before, received = signal.getsignal(signal.SIGTERM), []
    with CaughtSignals((signal.SIGTERM,), lambda number, frame: received.append(number)) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is not before
        caught.let_go()
        assert signal.getsignal(signal.SIGTERM) is before
        caught.let_go()
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_them_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with CaughtSignals((signal.SIGINT,), print):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
