import signal
import subprocess
import sys

CODE = """
import os, signal
from medclip_oc.runtime import shutdown

with shutdown.stop_requests() as request:
    assert request.signal is None
    os.kill(os.getpid(), signal.SIGINT)
    assert request.signal == "SIGINT"
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.signal == "SIGINT"
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""


def test_a_second_interrupt_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
