"""What a run writes down as it goes: lines for people, and records for programs.

    RUN/log.txt         dated lines, as shown on stderr
    RUN/metrics.jsonl   one JSON object per record, "step" first; a value that is not finite is null
    RUN/tensorboard/    the same records, where asked for
    RUN/wandb/          the same records, where asked for; RUN/wandb_id.txt names the wandb run,
                        so that a resumed training continues it

Each place for records is a class with `log` and `close`. wandb and tensorboard are imported only
when asked for: they cost seconds, and wandb starts a process.
"""

import json
import math
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ..config.schema import LogConfig
from ..errors import WorkError
from ..reporting import run_files
from ..runtime.atomic import atomic_file
from ..runtime.progress import print_line

_WANDB_SECONDS = 30.0
"""Longest wait for wandb's server."""


class RunLog:
    """The log of one run: `message`, `record`, and `close` at the end.

    Args:
        folder: the run folder; files are appended to, so that a resumed run continues them.
        settings: what to write besides log.txt and metrics.jsonl.
        config: the resolved configuration, which wandb shows beside the run.
        main: whether this rank writes. On all others every method does nothing.
        done: steps that were done before; records of later ones are taken back, as those steps are
            done again.
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
        main: bool,
        done: int = 0,
        validated: bool = True,
    ) -> None:
        self._places: list[JsonLines | TensorBoard | Wandb] = []
        self._text: TextIO | None = None
        if not main:
            return
        with _naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._text = _open_lines(folder / "log.txt")
            self._places.append(JsonLines(folder / "metrics.jsonl", done, validated))
        try:
            if settings.tensorboard:
                self._places.append(TensorBoard(folder / "tensorboard", done))
            if settings.wandb != "disabled":
                self._places.append(Wandb(folder, settings, config))
        except BaseException:
            self.close()
            raise

    def message(self, text: str) -> None:
        """Write a dated line to log.txt and to stderr, above the bar if there is one."""
        if self._text is not None:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
            with _naming(self._text.name):
                self._text.write(f"{line}\n")
            print_line(line)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values measured at `step` to every place for records."""
        for place in self._places:
            place.log(step, values)

    def flush(self) -> None:
        """Have the records on the disk: a checkpoint that is there must not know of more."""
        for place in self._places:
            if isinstance(place, JsonLines):
                place.flush()

    def close(self) -> None:
        """Write out what is still held back. A second call does nothing."""
        places, self._places = self._places, []
        for place in reversed(places):
            place.close()
        if self._text is not None:
            with suppress(OSError):  # each line was written at once; a full disk was told then
                self._text.close()
            self._text = None


class JsonLines:
    """metrics.jsonl, without the records that a crash cut short or that come again."""

    def __init__(self, path: Path, done: int, validated: bool) -> None:
        records = [r for r in run_files.records(path.parent) if _stays(r, done, validated)]
        if path.exists():
            with atomic_file(path) as partial:
                partial.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        self._file = _open_lines(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with _naming(self._file.name):
            self._file.write(json.dumps({"step": step} | finite) + "\n")

    def flush(self) -> None:
        """Have all lines on the disk."""
        with _naming(self._file.name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Each line was written at once, and a full disk was told then."""
        with suppress(OSError):
            self._file.close()


class TensorBoard:
    """Event files, read by `tensorboard --logdir`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with _naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


class Wandb:
    """The wandb run of this folder, begun or continued.

    Raises:
        WorkError: online doesn't work from here.
    """

    def __init__(self, folder: Path, settings: LogConfig, config: dict[str, Any]) -> None:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # before all else, or logging in is announced
        id_file = folder / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(f"{uuid.uuid4().hex[:8]}\n")
        # wandb's own variable, which a job sets on a node without network
        online = settings.wandb == "online" and os.environ.get("WANDB_MODE") != "offline"
        try:
            # a question on the terminal would hang the other ranks
            if online and not wandb.login(prompt=False, verify=False):
                raise wandb.errors.UsageError("not logged in")
            self._run = wandb.init(
                project=settings.wandb_project,
                name=folder.name,
                id=id_file.read_text().strip(),
                resume="allow" if online else None,  # offline nobody can be asked; the id is enough
                mode="online" if online else "offline",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(silent=True, console="off", init_timeout=_WANDB_SECONDS),
            )
        except wandb.errors.Error as error:
            reason = str(error).partition("\n")[0]
            raise WorkError(
                f"log.wandb: {settings.wandb} does not work here: {reason}; "
                "run `wandb login`, or take --log.wandb offline and `wandb sync` later"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send a record, or keep it for `wandb sync`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until the last records are sent, or on the disk: `finish` alone returns before."""
        import wandb

        self._run.finish()
        wandb.teardown()


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
        urllib.request.urlopen(address, timeout=_WANDB_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # a server answers
    except (OSError, ValueError) as error:
        return f"{address} can't be reached ({getattr(error, 'reason', error)})"
    return None


def describe(values: Mapping[str, float]) -> str:
    """The values a reader follows, in a few words: "loss 3.21  lr 1.0e-05  812 pairs/s"."""
    forms = {
        "loss": "loss {:.4g}",
        "lr": "lr {:.1e}",
        "temperature": "temperature {:.4g}",
        "pairs_per_second": "{:,.0f} pairs/s",
    }
    return "  ".join(form.format(values[key]) for key, form in forms.items() if key in values)


def _stays(record: Mapping[str, Any], done: int, validated: bool) -> bool:
    """Whether a record of an earlier start belongs to what is resumed after `done` steps."""
    again = not validated and any(key.startswith(("valid/", "valid_ema/")) for key in record)
    return bool(record["step"] < done or (record["step"] == done and not again))


def _open_lines(path: Path) -> TextIO:
    """Opened line-buffered: whatever ends the process, the lines before it are on the disk."""
    return path.open("a", buffering=1, encoding="utf-8")


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Name the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"{error.filename or path}: {error.strerror}") from error
