"""What a call in its own process returns, raises, and survives."""

import os
import time

import numpy as np
import pytest

from medclip_oc.runtime.crash_isolation import call_isolated


def test_returns_and_raises_what_the_function_does() -> None:
    found = call_isolated(lambda: (np.arange(10**6), os.getpid()), 60)  # far more than a pipe holds
    assert found[0].sum() == 10**6 * (10**6 - 1) // 2
    assert found[1] != os.getpid()
    with pytest.raises(RuntimeError, match="invalid literal for int"):
        call_isolated(lambda: int("x"), 60)


def test_survives_a_crash() -> None:
    with pytest.raises(ChildProcessError, match="died: SIGABRT"):
        call_isolated(lambda: os.kill(os.getpid(), 6), 60)


def test_gives_up_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match="took over 1 s"):
        call_isolated(lambda: time.sleep(60), 1)
    assert time.monotonic() - start < 30


def test_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_isolated(lambda: os.write(2, b"as a C library would"), 60) == 20
    assert capfd.readouterr() == ("", "")
