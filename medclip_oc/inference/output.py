"""Rows of results on a stream as they come: a table for people, or JSON, JSON lines, CSV."""

import csv
import json
import shutil
from collections.abc import Sequence
from typing import Any, Literal, TextIO

Form = Literal["table", "json", "jsonl", "csv"]
_WIDTHS = {"rank": 4, "cosine": 7, "score": 7, "probability": 11, "margin": 8}
_LONG = ("text", "caption")
_DECIMALS = 4
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each row


class RowWriter:
    """Writes rows that all have the same fields.

    Args:
        out: where to.
        form: what as. A table puts the first field as a heading over the rows that share it, and is
            as wide as the terminal, if it goes to one.
        fields: of each row, in their order.
    """

    def __init__(self, out: TextIO, form: Form, fields: Sequence[str]) -> None:
        self.out, self.form, self.fields = out, form, list(fields)
        self._heading: Any = None
        self._started = False
        self._width = shutil.get_terminal_size().columns if out.isatty() else None
        self._csv = csv.DictWriter(out, self.fields, lineterminator="\n")
        if form == "csv":
            self._csv.writeheader()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write some rows, and let a reader see them at once."""
        if self.form == "csv":
            self._csv.writerows(rows)
        elif self.form == "table":
            self.out.writelines(line + "\n" for row in rows for line in self._lines(row))
        else:
            for row in rows:
                self._write_json(row)
        self.out.flush()

    def close(self) -> None:
        """Write what comes after the last row."""
        if self.form == "json":
            self.out.write("\n]\n" if self._started else "[]\n")
        self.out.flush()

    def _write_json(self, row: dict[str, Any]) -> None:
        text = _ENCODE(row)
        if self.form == "jsonl":
            self.out.write(f"{text}\n")
            return
        self.out.write(f"{',' if self._started else '['}\n  {text}")
        self._started = True

    def _lines(self, row: dict[str, Any]) -> list[str]:
        """A row of the table, after its heading where that is another one."""
        heading, *names = self.fields
        lines = []
        if row[heading] != self._heading or row["rank"] == 1:
            self._heading = row[heading]
            lines.append(_one_line(self._heading))
            lines.append("  " + "  ".join(self._title(name) for name in _columns(names)))
        line = "  " + "  ".join(self._cell(name, row[name]) for name in _columns(names))
        if self._width is not None and len(line) > self._width:
            line = line[: self._width - 1] + "…"
        return [*lines, line]

    def _title(self, name: str) -> str:
        return f"{name:>{_WIDTHS[name]}}" if name in _WIDTHS else name

    def _cell(self, name: str, value: Any) -> str:
        if name not in _WIDTHS:
            return _one_line(value)
        width = _WIDTHS[name]
        return f"{value:>{width}.{_DECIMALS}f}" if isinstance(value, float) else f"{value:>{width}}"


def _columns(names: Sequence[str]) -> list[str]:
    """Numbers first, since they have a fixed width; what may be long comes last."""
    return sorted(names, key=lambda name: (name not in _WIDTHS, name in _LONG))


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
