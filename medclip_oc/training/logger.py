"""What a run writes down as it goes: lines for people, and records for programs.

    RUN/log.txt         dated lines, as shown on stderr
    RUN/metrics.jsonl   one JSON object per record, "step" first; a value that is not finite is null
    RUN/tensorboard/    the same records, where asked for
    RUN/wandb/          the same records, where asked for; RUN/wandb_id.txt names the wandb run,
                        so that a resumed training continues it

wandb and tensorboard are imported only when asked for: they cost seconds, and wandb starts a
process.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.schema import Config, LogConfig
from ..errors import WorkError
from ..reporting import run_files
from ..runtime.atomic import atomic_file
from ..runtime.progress import print_line
from .checkpointer import Progress


class RunLog:
    """The log of one run: `message` and `record`; on all ranks but the main one they do nothing.

    A resumed run continues the files; records of steps after `progress`, or of a validation that is
    done again, are taken back. When `opened` is closed, the last records get to tensorboard and
    wandb. WorkError: the folder cannot be written to, or wandb online cannot be reached.
    """

    def __init__(
        self, folder: Path, config: Config, progress: Progress, opened: ExitStack, *, main: bool
    ) -> None:
        self._text, self._records, self._main = folder / "log.txt", folder / "metrics.jsonl", main
        self._board: Any = None
        self._wandb: Any = None
        if not main:
            return
        if self._records.exists():
            kept = [r for r in run_files.records(folder) if _stays(r, progress)]
            with atomic_file(self._records) as partial:
                partial.write_text("".join(f"{json.dumps(record)}\n" for record in kept), "utf-8")
        if config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = progress.step + 1 if progress.step else None
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
            opened.callback(self._board.close)
        if config.log.wandb != "disabled":
            self._wandb = _start_wandb(folder, config, opened)

    def message(self, text: str) -> None:
        """Write a dated line to log.txt and to stderr, above the bar if there is one."""
        if self._main:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
            _append(self._text, f"{line}\n")
            print_line(line)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values measured at `step` to every place for records."""
        if not self._main:
            return
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        _append(self._records, json.dumps({"step": step} | finite) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def flush(self) -> None:
        """Have the records on the disk: a checkpoint that is there must not know of more."""
        if self._main:
            _append(self._records, "", sync=True)


def wandb_online(settings: LogConfig) -> bool:
    """Whether records go to wandb's server, after a login there; WorkError: that doesn't work."""
    # wandb's own variable, which a job sets on a node without network
    if settings.wandb != "online" or os.environ.get("WANDB_MODE") == "offline":
        return False
    with _wandb() as wandb:  # a question on the terminal would hang the other ranks
        if not wandb.login(prompt=False, verify=True):
            raise wandb.errors.UsageError("not logged in")
    return True


@contextmanager
def _wandb() -> Iterator[Any]:
    """The package, which stays silent; its errors in one line."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # before all else, or logging in is announced
    try:
        yield wandb
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0]
        ways = "run `wandb login`, or take --log.wandb offline and `wandb sync` later"
        raise WorkError(f"log.wandb: online does not work here: {reason}; {ways}") from error


def _start_wandb(folder: Path, config: Config, opened: ExitStack) -> Any:
    """The wandb run of this folder, begun or continued; it ends with `opened`."""
    online = wandb_online(config.log)
    id_file = folder / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(f"{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    with _wandb() as wandb:
        opened.callback(wandb.teardown)  # waits for the last records, which `finish` doesn't
        run = wandb.init(
            project=config.log.wandb_project,
            name=folder.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow" if online else None,  # offline nobody can be asked; the id is enough
            mode="online" if online else "offline",
            dir=str(folder),
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        opened.callback(run.finish)
    return run


def _stays(record: Mapping[str, Any], progress: Progress) -> bool:
    """Whether a record of an earlier start belongs to what is resumed."""
    validation = any(key.startswith(("valid/", "valid_ema/")) for key in record)
    done = progress.step - (validation and not progress.validated)
    return bool(record["step"] <= done) and "wise/alpha" not in record


def _append(path: Path, text: str, *, sync: bool = False) -> None:
    """Write text to the end of a file: whatever ends the process, it is there."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror}") from error
