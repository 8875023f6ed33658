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


EARLY = """
import os, signal
from medclip_oc.runtime import shutdown

shutdown.note()
os.kill(os.getpid(), signal.SIGUSR1)
with shutdown.stop_requests() as request:
    print(request.signal)
os.kill(os.getpid(), signal.SIGUSR1)
shutdown.note(on=False)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_before_the_run_is_kept_and_one_after_it_ignored() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "SIGUSR1\n", "")
