"""How far long work has come: a bar on a terminal, now and then a line in a log file."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Between two lines, where there is no terminal."""


class Progress:
    """Counts items to stderr, with their rate and the time left.

    Args:
        total: how many items there will be.
        unit: what they are, in the plural.
        title: stands before the numbers.
        done: how many an earlier run did.
    """

    def __init__(self, total: int, unit: str, title: str, done: int = 0) -> None:
        # disable=None: no bar unless stderr is a terminal
        self._bar = tqdm(total=total, unit=f" {unit}", desc=title, initial=done, disable=None)
        self._total, self._unit, self._title, self._before = total, unit, title, done
        self._done, self._began = done, time.monotonic()
        self._next = self._began + LINE_SECONDS

    def update(self, items: int = 1) -> None:
        """So many more are done."""
        self._done += items
        self._bar.update(items)
        if self._bar.disable and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = (self._done - self._before) / (time.monotonic() - self._began)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
        share = self._done / self._total if self._total else 1.0
        return (
            f"{self._title}: {self._done:,} of {self._total:,} {self._unit} ({share:.0%}), "
            f"{rate:.1f} {self._unit}/s, {left} left"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
