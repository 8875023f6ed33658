"""A real Slurm of two nodes on this machine, in a folder of its own, and gone when it is closed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
PATHS = "/usr/sbin:/usr/local/sbin:/sbin"
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,bf_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
KillWait=30
MinJobAge=300
NodeName=DEFAULT CPUs=2 RealMemory=1000 Gres=gpu:1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={two}
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
"""


class Unavailable(Exception):
    """Why there is no Slurm here."""


class Slurm:
    """Daemons of a cluster: munged, slurmctld, and a slurmd for each of n1 and n2.

    Args:
        folder: empty; its path must be short, since sockets lie in it.

    Raises:
        Unavailable: not installed, or it doesn't start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        path = f"{os.environ['PATH']}:{PATHS}"
        missing = [name for name in DAEMONS if shutil.which(name, path=path) is None]
        if missing:
            raise Unavailable(f"{', '.join(missing)} not installed (Debian: slurm-wlm munge)")
        if os.geteuid():
            raise Unavailable("only root can start slurmd")
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "n1", "n2"):
            (folder / name).mkdir()
        ports = {name: free_port() for name in ("port", "one", "two")}
        text = SETTINGS.format(host=socket.gethostname(), folder=folder, **ports)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        try:
            places = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            words = [f"--{word}={folder}/munge.{name}" for word, name in places.items()]
            self._start("munged", "--foreground", "--force", f"--key-file={key}", *words)
            self._wait(lambda: (folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node, key=node)
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%t %D").split() == ["idle", "2"], "")
        except BaseException:
            self.close()
            raise

    def run(self, *words: object) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, such as JobState."""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def close(self) -> None:
        """End every daemon, jobs first."""
        if "slurmctld" in self._daemons:
            subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _start(self, *words: str, key: str | None = None) -> None:
        name = key or words[0]
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                if holds():
                    return
            except (AssertionError, subprocess.TimeoutExpired):
                pass
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    said = (self.folder / f"{name}.out").read_text()[-500:]
                    raise Unavailable(f"{name} ended with {daemon.returncode}: {said}")
            if time.monotonic() > end:
                raise Unavailable(f"{what or 'the nodes'}: not ready after 30 s")
            time.sleep(0.1)
