"""The run folder, and what becomes of it when a run begins there or resumes.

README.md says what is in it. Of its checkpoints step-00000120.pt and the like are the newest
states, to resume from; last.pt is the newest of them, under a name that stays; best.pt has no
training state.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from ..errors import InputError, WorkError
from ..models import checkpoint
from ..runtime.atomic import atomic_file
from ..runtime.progress import print_line

LEASE_SECONDS = 60.0
"""Without a sign of life for so long, a process of another machine no longer holds the folder."""

_OWN = ["config.yaml", "environment.txt", "log.txt", "metrics.jsonl", "wandb_id.txt"]
_OWN += ["interrupted", "report.html"]
_OWN += ["checkpoints", "evaluations", "features", "report", "tensorboard", "wandb"]


class RunFolder:
    """The files of one run, by what they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last, self.best = self.checkpoints / "last.pt", self.checkpoints / "best.pt"
        self.average, self.wise = self.checkpoints / "ema.pt", self.checkpoints / "wise.pt"
        self.metrics, self.config = path / "metrics.jsonl", path / "config.yaml"
        self.marker = path / "interrupted"
        # no lock of the system: those don't reach other machines on every shared disk
        self._lease = SoftFileLease(path / "in_use", timeout=1, lease_duration=LEASE_SECONDS)

    def hold(self, opened: ExitStack) -> None:
        """Keep every other process from training here, until `opened` is closed. A holder that was
        killed is passed over: at once on its own machine, or else after a wait. InputError: another
        process trains here; says which.
        """
        lease = self._lease
        self.path.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lease.acquire()
        owner = None if lease.is_locked else lease.owner
        if owner is not None and owner.hostname != socket.gethostname():
            wait = 1.5 * LEASE_SECONDS
            print_line(f"{lease.lock_file}: of {owner.hostname}; waits {wait:.0f} s for its end")
            with suppress(Timeout):
                lease.acquire(timeout=wait, poll_interval=LEASE_SECONDS / 60)
        if not lease.is_locked:
            holder = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
            ways = "wait for its end or stop it, or choose another folder"
            raise InputError(f"run.folder: {self.path} is in use by {holder}; {ways}")
        opened.callback(lease.release)

    def lost(self) -> WorkError | None:
        """Why this process no longer holds the folder, if so."""
        if self._lease.compromise is None:
            return None
        told = f"could not be held ({self._lease.compromise.reason})"
        why = "another run began there, or its disk did not answer"
        return WorkError(f"run.folder: {self.path} {told}: {why}")

    def state(self, step: int) -> Path:
        """File of the state after a step."""
        return self.checkpoints / f"step-{step:08}.pt"

    def states(self) -> list[Path]:
        """Files of states, the newest first; then last.pt, where it is none of them."""
        states = self._numbered()
        if self.last.is_file() and not any(self.last.samefile(state) for state in states):
            states.append(self.last)
        return states

    def _numbered(self) -> list[Path]:
        """Each step-*.pt, the newest first."""
        return sorted(self.checkpoints.glob(f"step-{8 * '[0-9]'}.pt"), reverse=True)

    def owns(self, file: Path) -> bool:
        """Whether a checkpoint lies in this folder."""
        return file.resolve().parent == self.checkpoints.resolve()

    def begun(self) -> bool:
        """Whether a run has done a step here."""
        return bool((self.metrics.is_file() and self.metrics.stat().st_size) or self.states())

    def prepare(self, *, clear: bool) -> None:
        """Make the folders, or have them ready for a run that resumes; or OSError.

        `clear` removes an earlier run's own files, and nothing else.
        """
        if clear:
            for own in (self.path / name for name in _OWN):
                shutil.rmtree(own) if own.is_dir() else own.unlink(missing_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for partial in self.checkpoints.glob("*.partial"):
            partial.unlink()
        self.marker.unlink(missing_ok=True)
        (self.path / "environment.txt").write_text(environment(), encoding="utf-8")

    def keep(self, step: int, newest: int) -> None:
        """Name the state after `step` last.pt, and remove all but the newest ones; or WorkError."""
        with atomic_file(self.last) as link:
            try:
                os.link(self.state(step), link)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.state(step), link)
        for file in self._numbered()[newest:]:
            if file != self.state(step):
                with suppress(OSError):  # it only takes room
                    file.unlink()

    def set_aside_after(self, step: int) -> None:
        """States of later steps get another ending: no run resumes from them; they may be seen."""
        for file in self._numbered():
            if file > self.state(step):
                with suppress(OSError):
                    moved = file.replace(file.with_name(f"{file.name}.left"))
                    if moved.samefile(self.last):
                        self.last.unlink()

    def mark(self, text: str) -> None:
        """Write down that the run was told to stop, and has saved."""
        with atomic_file(self.marker) as partial:
            partial.write_text(f"{text}\n", encoding="utf-8")


def environment() -> str:
    """The commit of the working tree, what decides a result, and the command, one a line."""
    lines = [f"{name} {version}" for name, version in checkpoint.versions().items()]
    lines.append(" ".join(f"command python {shlex.join(sys.orig_argv[1:])}".splitlines()))
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError):  # no git here
        commit = subprocess.run([*git, "--abbrev=40"], capture_output=True, text=True).stdout
        if commit:
            lines.insert(0, f"commit {commit.strip()}")
    return "\n".join(lines) + "\n"
