"""Signals that ask for an end: noticed now, obeyed between two steps, or batches.

A run that is told to stop (SIGTERM by a launcher, SIGUSR1 by Slurm before the time is up, SIGINT by
the user) finishes its step, saves, and ends with exit code 75.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ..errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class StopRequest:
    """The name of the first signal that asked this process to stop; None: nobody asked."""

    signal: str | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals, where this is the main thread; elsewhere none is ever received.

    A second SIGINT ends the process at once. After `Stopped` the signals stay noted and without
    effect, since a launcher sends more of them to a process that is on its way out.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    process = os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a fork of ours, before it has handlers of its own
            return
        request.signal = request.signal or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sys.stderr.isatty():
                os.write(2, b"\nstopping after this step, and saving; Ctrl-C again ends at once\n")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    except Stopped:
        before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlive_signals(_: int = 0) -> None:
    """Let a loader process outlive a signal that is sent to all processes of a job or a terminal.

    It must still feed the steps until the training process has stopped, which alone may end it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in every thread from here on

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
