"""What a run writes down as it goes: lines, records, and a bar.

    RUN/log.txt         dated lines, as shown on stderr
    RUN/metrics.jsonl   one JSON object per record, "step" first; a value that is not finite is null
    RUN/tensorboard/    the same records, where asked for
    RUN/wandb/          the same records, where asked for; RUN/wandb_id.txt names the wandb run,
                        so that a resumed training goes on in it

Every rank opens a `RunLog`; only the main one writes. wandb and tensorboard are imported nowhere
else, and only when asked for: they cost seconds, and wandb starts a process.
"""

import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ..config.schema import LogConfig
from ..errors import WorkError

_WANDB_WAIT_SECONDS = 30.0
_WANDB_LOOK_SECONDS = 10.0


class RunLog:
    """The log of one run: `message`, `record`, `progress`, and `close` at the end.

    Args:
        folder: the run folder; files are appended to, so that a resumed run goes on in them.
        settings: what to write besides log.txt and metrics.jsonl, and how often.
        config: the resolved configuration, which wandb shows beside the run.
        name: name of the run in wandb.
        main: whether this rank writes. On all others every method does nothing.
        done: steps that were done before; records of later ones are taken back, as those steps are
            done again. None: all records stay.
        validated: whether the validation after the last of them was done as well.

    Raises:
        WorkError: the folder cannot be written to, or wandb online cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogConfig,
        *,
        config: dict[str, Any],
        name: str,
        main: bool,
        done: int | None = None,
        validated: bool = True,
    ) -> None:
        self.settings = settings
        self.main = main
        self._folder = folder
        self._board: Any = None
        self._wandb: Any = None
        if not main:
            return
        with _naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _take_back(folder / "metrics.jsonl", done, validated)
            # line-buffered: whatever ends the process, the records before it are on the disk
            self._lines = (folder / "log.txt").open("a", buffering=1, encoding="utf-8")
            self._records = (folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        try:
            if settings.tensorboard:
                self._board = _open_tensorboard(folder / "tensorboard", done)
            if settings.wandb != "disabled":
                self._wandb = _open_wandb(folder, settings, config, name)
        except BaseException:
            self.close()
            raise

    def message(self, text: str) -> None:
        """Write a dated line to log.txt and to stderr, above the bar if there is one."""
        self._message(text, show=True)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write the values measured at `step` everywhere they are wanted."""
        if not self.main:
            return
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        _write(self._records, json.dumps({"step": step} | finite))
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    @contextmanager
    def progress(self, total_steps: int, initial: int = 0) -> "Iterator[Progress]":
        """Show how far the run is: a bar on a terminal, else a line now and then.

        Args:
            total_steps: steps of the whole run.
            initial: steps done before, where the run was resumed.
        """
        progress = Progress(self, total_steps, initial)
        try:
            yield progress
        finally:
            progress.close()

    def store(self) -> None:
        """Have the records on the disk: a checkpoint that is there must not know of more."""
        if self.main:
            with _naming(self._records.name):
                os.fsync(self._records.fileno())

    def close(self) -> None:
        """Write out what is still held back. A second call does nothing."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            _close_wandb(self._wandb)
        self._board = self._wandb = None
        if self.main:
            for file in (self._lines, self._records):
                with suppress(OSError):  # each line was written at once; a full disk was told then
                    file.close()

    def _message(self, text: str, *, show: bool) -> None:
        if not self.main:
            return
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
        _write(self._lines, line)
        if show:
            tqdm.write(line, file=sys.stderr)


class Progress:
    """How far the run is; made by `RunLog.progress`."""

    def __init__(self, log: RunLog, total_steps: int, initial: int) -> None:
        self.step = self._initial = initial
        self.total_steps = total_steps
        self._log = log
        self._since = time.monotonic()
        self._bar: Any = None
        if log.main and sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps, initial=initial, unit="step", file=sys.stderr, dynamic_ncols=True
            )

    def update(self, values: dict[str, float]) -> None:
        """One more step is done.

        Args:
            values: what was measured; of it loss, lr, temperature and pairs_per_second are shown.
        """
        self.step += 1
        if not self._log.main:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(describe(values), refresh=False)
            self._bar.update()
        if self.step % self._log.settings.every_steps == 0 or self.step == self.total_steps:
            left = (time.monotonic() - self._since) / (self.step - self._initial)
            parts = [f"step {self.step}/{self.total_steps}", describe(values)]
            if self.step < self.total_steps:
                parts.append(f"{duration(left * (self.total_steps - self.step))} left")
            self._log._message("  ".join(filter(None, parts)), show=self._bar is None)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class Throughput:
    """Pairs per second of wall time, over all ranks, without validation."""

    def __init__(self, pairs_per_step: int) -> None:
        self.pairs_per_step = pairs_per_step
        self.latest = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch."""
        self.steps, self.since = 0, time.perf_counter()

    def count(self) -> None:
        """One step was done."""
        self.steps += 1
        self.latest = self.steps * self.pairs_per_step / (time.perf_counter() - self.since)

    def take(self) -> float:
        """Rate of the stretch, which ends here."""
        rate = self.latest
        self.restart()
        return rate


def describe(values: dict[str, float]) -> str:
    """The values a reader follows, in a few words: "loss 3.21  lr 1.0e-05  812 pairs/s"."""
    forms = {
        "loss": "loss {:.4g}",
        "lr": "lr {:.1e}",
        "temperature": "temperature {:.4g}",
        "pairs_per_second": "{:,.0f} pairs/s",
    }
    return "  ".join(form.format(values[key]) for key, form in forms.items() if key in values)


def duration(seconds: float) -> str:
    """A time in its two largest units: "45 s", "3 min", "2 h 5 min", "1 d 3 h"."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Name the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"{error.filename or path}: {error.strerror}") from error


def _write(file: TextIO, line: str) -> None:
    with _naming(file.name):
        file.write(f"{line}\n")


def _take_back(path: Path, done: int | None, validated: bool) -> None:
    """Leave out the record that a crash cut short, and those that come again."""
    if not path.exists():
        return

    def stays(line: bytes) -> bool:
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, TypeError, KeyError):
            return False
        if done is None:
            return True
        again = not validated and any(key.startswith(("valid/", "valid_ema/")) for key in record)
        return bool(step < done or (step == done and not again))

    kept = path.with_name(f"{path.name}.partial")
    with path.open("rb") as old, kept.open("wb") as new:
        new.writelines(line for line in old if line.endswith(b"\n") and stays(line))
    kept.replace(path)


def _open_tensorboard(folder: Path, done: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    with _naming(folder):
        return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


def _close_wandb(run: Any) -> None:
    import wandb

    run.finish()
    wandb.teardown()  # `finish` alone comes back before the last records are on the disk


def wandb_trouble() -> str | None:
    """Why records can't go to wandb from here; None: they can. Nothing is sent."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False, verify=False):
            return "not logged in"
    except wandb.errors.Error as error:
        return str(error).partition("\n")[0]
    address = str(wandb.setup().settings.base_url)
    try:
        with urllib.request.urlopen(address, timeout=_WANDB_LOOK_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # somebody answers
    except (OSError, ValueError) as error:
        return f"{address} can't be reached ({getattr(error, 'reason', error)})"


def _open_wandb(folder: Path, settings: LogConfig, config: dict[str, Any], name: str) -> Any:
    """Start, or go on with, the wandb run of this folder."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # before all else, or logging in is announced
    known = folder / "wandb_id.txt"
    if not known.exists():
        known.write_text(f"{uuid.uuid4().hex[:8]}\n")
    # wandb's own variable, which a job sets on a node without network
    offline = settings.wandb == "offline" or os.environ.get("WANDB_MODE") == "offline"
    online = not offline
    try:
        # a question on the terminal would hang the other ranks
        if online and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("not logged in")
        return wandb.init(
            project=settings.wandb_project,
            name=name,
            id=known.read_text().strip(),
            resume="allow" if online else None,  # offline nobody can be asked; the id is enough
            mode="online" if online else "offline",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(silent=True, console="off", init_timeout=_WANDB_WAIT_SECONDS),
        )
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0]
        raise WorkError(
            f"log.wandb: {settings.wandb} does not work here: {reason}; "
            "run `wandb login`, or take --log.wandb offline and `wandb sync` later"
        ) from error
