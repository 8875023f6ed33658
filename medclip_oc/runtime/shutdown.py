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


_early = StopRequest()


def note(*, on: bool = True) -> None:
    """From now on SIGTERM and SIGUSR1 end nothing, and are kept for `stop_requests`; or they end
    the process again. A run needs seconds for its imports, and a signal may come before.
    """
    for number in SIGNALS[:2]:
        signal.signal(number, _keep if on else signal.SIG_DFL)


def _keep(number: int, _: FrameType | None) -> None:
    _early.signal = _early.signal or signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals, where this is the main thread; elsewhere none is ever received.

    A second SIGINT ends the process at once. After `Stopped`, and after `note`, the others are
    ignored in the end, since a launcher sends more of them to a process that is on its way out.
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
    request.signal = request.signal or _early.signal
    # in the end Python restores the default of any handler, but leaves ignored signals ignored
    before = {n: signal.SIG_IGN if handler is _keep else handler for n, handler in before.items()}
    try:
        yield request
    except Stopped:
        before = dict.fromkeys(SIGNALS[:2], signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait while loader processes are forked, in them until `outlive_signals`: a new
    process has torch's handlers at first, and SIGTERM would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(_: int = 0) -> None:
    """Let a loader process outlive a signal that is sent to all processes of a job or a terminal.

    It must still feed the steps until the training process has stopped, which alone may end it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in every thread from here on

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
