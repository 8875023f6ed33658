"""Rows of the tables that people keep captions in: CSV, tab-separated, JSON lines, Parquet.

pandas reads the text files, pyarrow the Parquet ones, both in chunks: a table may be larger than
the memory. Text is UTF-8, with or without a byte-order mark, with any line ending; anything else is
an error that names the line. "NA", "None" and "null" are text. A comma-separated name may hold
tabs: the header tells. A row of another length than the header, or a line that is no JSON, has a
problem of its own; the rows after it are read as usual.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pandas as pd

from ..errors import InputError

_CHUNK = 1000  # rows of text that are in memory at once
_PARQUET_CHUNK = 64  # fewer, because they may hold images
_PROBLEM = "\0problem"  # no key of JSON

Cells = Iterator[tuple[int, Sequence[Any], str | None]]
"""For each row its line (or number), the chosen cells, and what is wrong with it."""


class Row(NamedTuple):
    """The chosen cells of one row."""

    location: str
    """For messages: the line on which the row begins, or its number in a Parquet file."""
    values: list[Any]
    """Text; of a Parquet or JSON column of another type, its Python value. "" for none."""
    problem: str | None
    """What is wrong with the row; its values are then unsure."""


@dataclass(frozen=True)
class Table:
    """A table in one file, or in several that follow one another.

    The suffix says what it is: `.parquet`, `.jsonl` (one JSON object a line), anything else is
    comma- or tab-separated.

    Args:
        paths: the files, all of one kind.
        header: column names of a file without a header line: plain tab-separated lines, no quotes.
    """

    paths: tuple[Path, ...]
    header: tuple[str, ...] | None = None

    def names(self) -> list[str]:
        """The columns that the table has.

        Raises:
            InputError: no such file, or nothing in it.
        """
        return self._names(self.paths[0])

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The chosen cells of every row, in order. Empty lines are no rows.

        Args:
            columns: names; upper and lower case count the same where that is unique. "a|b" takes
                the column a, or else b.

        Raises:
            InputError: no such file, not UTF-8, not a table, or a column absent; names the line.
        """
        for path in self.paths:
            names = self._names(path)
            places = [_column_index(path, names, column) for column in columns]
            parquet = path.suffix.lower() == ".parquet"
            unit = f"{path.name} row" if parquet else "line"
            for number, cells, problem in self._read(path, names, places):
                yield Row(f"{unit} {number}", [_plain_value(cell) for cell in cells], problem)

    def digest(self) -> str:
        """Hash of the content."""
        total = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def _names(self, path: Path) -> list[str]:
        if self.header:
            return list(self.header)
        if path.suffix.lower() == ".parquet":
            return list(_open_parquet(path).schema_arrow.names)
        return _json_names(path) if path.suffix.lower() == ".jsonl" else _csv_header(path)[0]

    def _read(self, path: Path, names: list[str], places: list[int]) -> Cells:
        if self.header:
            return _read_plain(path, names, places)
        keys = [names[place] for place in places]
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path, keys)
        return _read_json(path, keys) if path.suffix.lower() == ".jsonl" else _csv(path, places)

    def __str__(self) -> str:
        return str(self.paths[0])


def _column_index(path: Path, names: Sequence[str], column: str) -> int:
    """Index of a chosen column (see `Table.rows`); InputError where it is absent or ambiguous."""
    for name in column.split("|"):
        if name in names:
            return names.index(name)
        similar = [index for index, each in enumerate(names) if each.lower() == name.lower()]
        if len(similar) == 1:
            return similar[0]
    listed = ", ".join(repr(name) for name in names)
    raise InputError(f"{path}: no column {column.replace('|', ' or ')!r}; found {listed}")


def _plain_value(value: Any) -> Any:
    """Numbers as text, an absent value as none; bytes, lists and mappings as they are."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas' whole numbers of JSON, where one is absent
    return str(value) if isinstance(value, int | float) else value


# -------------------------------------------------------------------------------------- text files


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """A text file. What goes wrong while it is read is an InputError that names the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError:
        with path.open("rb") as raw:
            for number, line in enumerate(raw, start=1):
                text = line.decode(errors="replace")
                if "\ufffd" in text:
                    raise InputError(
                        f"{path}: line {number} ({text[:40]!a}) is not UTF-8; save the table as "
                        "UTF-8"
                    ) from None
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _csv_header(path: Path) -> tuple[list[str], str, int]:
    """Column names, the separator (a tab where there is one), and the line that they stand on."""
    with _open_text(path) as file:
        numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        number, line = next(numbered, (0, ""))
    if not line or "\0" in line:
        raise InputError(f"{path}: " + ("NUL bytes: UTF-16? Save it as UTF-8" if line else "empty"))
    separator = "\t" if "\t" in line else ","
    [names] = csv.reader([line], delimiter=separator)
    return [name.strip() for name in names], separator, number


def _csv(path: Path, places: list[int]) -> Cells:
    names, separator, line = _csv_header(path)
    with _open_text(path) as file:
        # pandas' Python engine alone tells a short row (NaN) from an empty cell, and refuses a
        # quote left open. One column more than the header has shows long rows; with a function for
        # `usecols` they neither end the table nor shift it.
        options: dict[str, Any] = {"engine": "python", "sep": separator, "header": None}
        options |= {"names": range(len(names) + 1), "usecols": lambda name: True}
        options |= {"skip_blank_lines": False, "index_col": False, "skiprows": line}
        options |= {"dtype": str, "keep_default_na": False, "chunksize": _CHUNK}
        try:
            for chunk in pd.read_csv(file, **options):
                counts = chunk.notna().sum(axis=1)
                breaks = sum(chunk[name].str.count(r"\r\n|\r|\n").fillna(0) for name in chunk)
                chosen = chunk[places].itertuples(index=False, name=None)
                for cells, first, count, more in zip(chosen, chunk[0], counts, breaks, strict=True):
                    line += 1
                    if count > 1 or (count and first.strip()):  # a line of blanks is no row
                        problem = None
                        if count != len(names):
                            fields = "more" if count > len(names) else count
                            problem = f"{fields} fields, the header has {len(names)}"
                        yield line, cells, problem
                    line += int(more)
        except (pd.errors.ParserError, csv.Error) as error:
            raise InputError(
                f"{path}: line {_broken_line(path, separator)}: not CSV: {error} (a quote left "
                "open?)"
            ) from None


def _broken_line(path: Path, separator: str) -> int:
    """Where the row begins that is no CSV: pandas doesn't say."""
    line = 1
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error:
            return line
    return line


def _line_batches(file: TextIO) -> Iterator[list[tuple[int, str]]]:
    """Numbers and texts of the lines that aren't blank, a chunk at a time."""
    numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    while batch := list(islice(numbered, _CHUNK)):
        yield batch


def _read_plain(path: Path, names: list[str], places: list[int]) -> Cells:
    """Lines without quoting or header: all that follows the first tabs belongs to the last cell."""
    with _open_text(path) as file:
        for batch in _line_batches(file):
            numbers, lines = zip(*batch, strict=True)
            cells = pd.Series(lines).str.rstrip("\r\n")
            split = cells.str.split("\t", n=len(names) - 1, expand=True)
            chosen = split.reindex(columns=range(len(names)))[places]
            for number, row in zip(numbers, chosen.itertuples(index=False), strict=True):
                yield number, row, None


def _json_names(path: Path) -> list[str]:
    """Keys of the first lines; one that is absent in a line counts as empty there."""
    with _open_text(path) as file:
        batch = next(_line_batches(file), [])
    frame = _json_frame([line for _, line in batch]) if batch else pd.DataFrame()
    names = [str(name) for name in frame if name != _PROBLEM]
    if not names:
        raise InputError(f"{path}: none of its first {_CHUNK} lines is a JSON object")
    return names


def _read_json(path: Path, keys: list[str]) -> Cells:
    with _open_text(path) as file:
        for batch in _line_batches(file):
            frame = _json_frame([line for _, line in batch])
            frame = frame.reindex(columns=list(dict.fromkeys([_PROBLEM, *keys])))
            chosen = frame[keys].itertuples(index=False, name=None)
            for (number, _), row, problem in zip(batch, chosen, frame[_PROBLEM], strict=True):
                yield number, row, problem if isinstance(problem, str) else None


def _json_frame(lines: list[str]) -> pd.DataFrame:
    """One row for each line: the values of its object, or what is wrong with it."""
    try:
        if not all(line.lstrip().startswith("{") for line in lines):
            raise ValueError("not an object")
        frame = pd.read_json(io.StringIO("".join(lines)), lines=True, dtype=False)
        if len(frame) != len(lines):
            raise ValueError("not one object")
    except (ValueError, RecursionError) as error:
        if len(lines) == 1:  # the rows of one bad line can't be told apart in a chunk
            return pd.DataFrame({_PROBLEM: [f"not JSON: {error}"]})
        return pd.concat([_json_frame([line]) for line in lines], ignore_index=True)
    return frame


# ----------------------------------------------------------------------------------------- Parquet


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet  # an extra
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        return parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's own are among them
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None


def _read_parquet(path: Path, keys: list[str]) -> Cells:
    with _open_parquet(path) as file:
        number = 0
        try:
            for batch in file.iter_batches(_PARQUET_CHUNK, columns=list(dict.fromkeys(keys))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, [row[key] for key in keys], None
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: after row {number}: unreadable: {error}") from None
