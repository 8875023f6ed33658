"""Checkpoints of a run as it goes: when one is due, and how it gets to the disk.

The state is copied to host memory while the training stands still; a thread writes the copy. At
most one is written at a time. best.pt comes before the state that knows of it, so that a run which
is killed in between writes it once more.
"""

import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

from torch import Tensor

from ..config.schema import CheckpointConfig
from ..errors import WorkError
from ..models import checkpoint
from .run_dir import RunFolder


class Checkpointer:
    """Writes a run's checkpoints, on the main rank; elsewhere it does nothing.

    Args:
        folder: of the run.
        settings: when to save, and how much to keep.
        main: whether this rank writes.

    Attributes:
        step: of the last state that was given to it.
    """

    def __init__(self, folder: RunFolder, settings: CheckpointConfig, *, main: bool) -> None:
        self.folder, self.settings, self.main = folder, settings, main
        self.step = 0
        self._writing: futures.Future[None] | None = None
        self._lines: list[str] = []
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a state is to be saved after this step: the main rank's clock decides."""
        steps, minutes = self.settings.every_steps, self.settings.every_minutes
        if steps is not None and step % steps == 0:
            return True
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        return self.main and late

    def save(self, content: dict[str, Any], *, best: bool, since: float) -> None:
        """Copy a state, and have it written.

        Args:
            content: of the checkpoint, `training` included.
            best: whether to write best.pt as well, without `training`.
            since: when the training stopped for it (time.perf_counter), for the log.

        Raises:
            WorkError: writing failed, now or the last time.
        """
        self.step = content["step"]
        if not self.main:
            return
        self.wait()
        background = self.settings.background
        content = _copy(content) if background else content
        self._saved_at = time.monotonic()
        paused = time.perf_counter() - since
        # one thread for one state: no idle one stands by while loader processes are forked
        with_thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing = with_thread.submit(self._write, content, best=best, paused=paused)
        with_thread.shutdown(wait=not background)
        if not background:
            self.wait()

    def error(self) -> WorkError | None:
        """What went wrong with a state that was being written."""
        if self._writing is None or not self._writing.done():
            return None
        error = self._writing.exception()
        return error if isinstance(error, WorkError) else None

    def wait(self) -> None:
        """Return when the last state is on the disk.

        Raises:
            WorkError: it can't be.
        """
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Let the last state get to the disk, whatever ends the run."""
        if self._writing is not None:
            futures.wait([self._writing])

    def lines(self) -> list[str]:
        """What the log should say of the states written since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def _write(self, content: dict[str, Any], *, best: bool, paused: float) -> None:
        began = time.perf_counter()
        if best:
            plain = {key: value for key, value in content.items() if key != "training"}
            checkpoint.save(self.folder.best, plain)
        file = self.folder.state(content["step"])
        size = checkpoint.save(file, content)
        self.folder.keep(content["step"], self.settings.keep_last)
        seconds = time.perf_counter() - began
        paused += 0.0 if self.settings.background else seconds
        self._lines.append(
            f"saved {file.name}{' and best.pt' if best else ''}: {size / 1e6:,.1f} MB in "
            f"{seconds:.2f} s; the training paused for {paused:.2f} s"
        )


def _copy(value: Any) -> Any:
    """The same in host memory, which no later step changes."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(inner) for inner in value)
    return value
