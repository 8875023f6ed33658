"""How far long work has come: a bar on a terminal, now and then a line in a log file."""

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Between two lines, where there is no terminal."""
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f}%), {rate_fmt}, {remaining} left"


class Progress(tqdm):
    """Counts items (`unit`, in the plural) to stderr, with their rate and the time left; an earlier
    run may have `done` some. `shown` by one rank alone. `lines` are printed where there is no
    terminal; False where the caller logs its own. A context manager.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        title: str,
        done: int = 0,
        *,
        shown: bool = True,
        lines: bool = True,
    ) -> None:
        self._terminal = sys.stderr.isatty()
        how: dict[str, Any] = {}
        if not self._terminal:
            how = {"delay": LINE_SECONDS, "mininterval": LINE_SECONDS, "miniters": 1}
            how |= {"bar_format": _LINE, "leave": False}
        hidden = not shown or not (self._terminal or lines)
        name = f" {unit}"
        super().__init__(total=total, unit=name, desc=title, initial=done, disable=hidden, **how)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or print a line (nothing in place of a bar that is cleared)."""
        if self._terminal:
            super().display(msg, pos)
        elif msg is None:
            print_line(str(self))


def rate(per_second: float) -> str:
    """A rate for people: whole numbers, and two digits below 10."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def print_line(line: str) -> None:
    """Print to stderr, above a bar that is shown; in one write, or ranks would mix their lines."""
    with suppress(OSError):  # its disk may be full: no reason to end the work
        if sys.stderr.isatty():
            tqdm.write(line + "\n", file=sys.stderr, end="")
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
