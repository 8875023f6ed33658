"""Rows of results on a stream as they come: a table for people, or JSON, JSON lines, CSV."""

import csv
import json
import shutil
from collections.abc import Sequence
from typing import Any, Literal, TextIO

Format = Literal["table", "json", "jsonl", "csv"]
_WIDTHS = {"rank": 4, "cosine": 7, "score": 7, "probability": 11, "margin": 8}
_WIDTHS |= dict.fromkeys(("cosine_positive", "cosine_negative"), 15)
_LONG = ("text", "caption", "finding")
_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each row


class RowWriter:
    """Writes rows that all have the same `fields` in the same order. A table puts the first field
    as a heading over the rows that share it, and is as wide as the terminal, if it goes to one.
    """

    def __init__(self, out: TextIO, form: Format, fields: Sequence[str]) -> None:
        self.out, self.form, self.fields = out, form, list(fields)
        # numbers first, since they have a fixed width; what may be long comes last
        self._columns = sorted(self.fields[1:], key=lambda it: (it not in _WIDTHS, it in _LONG))
        self._heading: Any = None
        self._separator = "[\n"
        self._width = shutil.get_terminal_size().columns if out.isatty() else None
        self._csv = csv.writer(out, lineterminator="\n")
        if form == "csv":
            self._csv.writerow(self.fields)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write some rows, and let a reader see them at once."""
        if self.form == "csv":
            self._csv.writerows(row.values() for row in rows)
        elif self.form == "jsonl":
            self.out.writelines(f"{_encode(row)}\n" for row in rows)
        elif self.form == "json":
            for row in rows:
                self.out.write(f"{self._separator}  {_encode(row)}")
                self._separator = ",\n"
        else:
            self.out.writelines(f"{line}\n" for row in rows for line in self._table_lines(row))
        self.out.flush()

    def close(self) -> None:
        """Write what comes after the last row."""
        if self.form == "json":
            self.out.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self.out.flush()

    def _table_lines(self, row: dict[str, Any]) -> list[str]:
        """A row of the table, after its heading where that is another one."""
        line = "  " + "  ".join(_cell(name, row[name]) for name in self._columns)
        if self._width is not None and len(line) > self._width:
            line = line[: self._width - 1] + "…"
        heading = row[self.fields[0]]
        if heading == self._heading and row.get("rank") != 1:
            return [line]
        self._heading = heading
        titles = (_cell(name, name) for name in self._columns)
        return [_cell("", heading), "  " + "  ".join(titles), line]


def _cell(name: str, value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
    return text.rjust(_WIDTHS.get(name, 0))
