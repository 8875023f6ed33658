import signal
import subprocess
import sys

import pytest

SECOND_INTERRUPT = """
with shutdown.stop_requests() as request:
    assert request.signal is None
    os.kill(os.getpid(), signal.SIGINT)
    assert request.signal == "SIGINT"
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.signal == "SIGINT"
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
BEFORE_AND_AFTER = """
shutdown.note()
os.kill(os.getpid(), signal.SIGUSR1)
with shutdown.stop_requests() as request:
    print(request.signal)
os.kill(os.getpid(), signal.SIGUSR1)
shutdown.note(on=False)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("code", "end", "shown"),
    [(SECOND_INTERRUPT, signal.SIGINT, ""), (BEFORE_AND_AFTER, signal.SIGTERM, "SIGUSR1\n")],
    ids=["a second interrupt ends at once", "kept before the run, ignored after it"],
)
def test_signals(code: str, end: int, shown: str) -> None:
    words = ["-c", f"import os, signal\nfrom medclip_oc.runtime import shutdown\n{code}"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-end, shown, "")
