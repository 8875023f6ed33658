"""A call in a process of its own: damaged input makes some libraries hang, or abort the process."""

import faulthandler
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


def call_isolated(function: Callable[[], R], seconds: int) -> R:
    """Run a function in a fork of this process, silently, and return what it returns.

    The fork takes some milliseconds. What the function changes, this process doesn't see; what it
    returns is pickled. RuntimeError: it raised something; the message is the same.
    ChildProcessError: the process died, or took longer; names the signal.
    """
    reader, writer = os.pipe()
    # Python 3.12 warns where there are other threads; the fork waits for none of them
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()
    if not child:
        _run_in_fork(function, seconds, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        reason = f"took over {seconds} s" if name == "SIGALRM" else name
        raise ChildProcessError(f"the decoder died: {reason}")
    succeeded, result = pickle.loads(answer)
    if not succeeded:
        raise RuntimeError(result)
    return result


def _run_in_fork(function: Callable[[], Any], seconds: int, writer: int) -> None:
    """The fork's part; doesn't return, and closes or flushes nothing of its parent's."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)  # ends the process, in C code as well
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        faulthandler.disable()  # it may report a crash on another descriptor
        try:
            answer = pickle.dumps((True, function()))
        except Exception as error:
            answer = pickle.dumps((False, str(error) or type(error).__name__))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)
