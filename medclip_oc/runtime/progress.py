"""How far long work has come: a bar on a terminal, now and then a line in a log file."""

import sys
import time
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Between two lines, where there is no terminal."""


class Progress:
    """Counts items to stderr, with their rate and the time left. A context manager.

    Args:
        total: how many items there will be.
        unit: what they are, in the plural.
        title: stands before the numbers.
        done: how many an earlier run did.
        shown: False shows nothing (on all ranks but one).
        lines: print lines where there is no terminal; False where the caller logs its own.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        title: str = "",
        done: int = 0,
        *,
        shown: bool = True,
        lines: bool = True,
    ) -> None:
        # None: tqdm shows a bar only where stderr is a terminal
        hidden = None if shown else True
        self._bar = tqdm(
            total=total, unit=f" {unit}", desc=title or None, initial=done, disable=hidden
        )
        self._total, self._unit, self._title, self._before = total, unit, title, done
        self._done, self._began = done, time.monotonic()
        self._lines = shown and lines and self._bar.disable
        self._next_line = self._began + LINE_SECONDS

    @property
    def bar(self) -> bool:
        """Whether a bar is shown."""
        return not self._bar.disable

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first item."""
        seconds, items = time.monotonic() - self._began, self._done - self._before
        return (self._total - self._done) * seconds / items if items else None

    def update(self, items: int = 1, note: str = "") -> None:
        """So many more are done; `note` stands behind the bar's numbers."""
        self._done += items
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(items)
        if self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            print_line(self._line())

    def _line(self) -> str:
        rate = (self._done - self._before) / (time.monotonic() - self._began)
        left = self.seconds_left
        share = self._done / self._total if self._total else 1.0
        return (
            f"{self._title}: {self._done:,} of {self._total:,} {self._unit} ({share:.0%}), "
            f"{rate:.1f} {self._unit}/s, {'?' if left is None else tqdm.format_interval(left)} left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def print_line(line: str) -> None:
    """Print to stderr, above a bar that is shown; in one write, or ranks would mix their lines."""
    tqdm.write(line + "\n", file=sys.stderr, end="")
