"""Signals that ask for the end."""

import signal
import subprocess
import sys


def test_a_second_interrupt_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from medclip_oc.runtime import shutdown as signals\n"
        "with signals.noticed() as notice:\n"
        "    assert not notice.given()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert notice.name == 'SIGINT'\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert notice.name == 'SIGINT'\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
