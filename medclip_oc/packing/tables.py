"""Rows of the tables that people keep captions in: CSV, tab-separated, JSON lines, Parquet.

Text is UTF-8, with or without a byte-order mark, with either line ending; anything else is an error
that names the row. "NA", "None" and "null" are text. A comma-separated name may hold tabs: the
header tells. Rows come one by one, so a table may be larger than the memory.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_ROWS = 64  # per read: what is in memory at once, images and all
_NAMED_BY = 1000  # lines of JSON whose keys are the columns


class Row(NamedTuple):
    """The wanted cells of one row."""

    where: str
    """For messages: the line on which the row begins, or its number in a Parquet file."""
    values: list[Any]
    """Text; of a Parquet column of another type, what pyarrow makes of it. "" for none."""
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
        path = self.paths[0]
        if self.header:
            return list(self.header)
        if _is(path, ".parquet"):
            return list(_parquet(path).schema_arrow.names)
        if _is(path, ".jsonl"):
            return _object_names(path)
        return _header(path)[0]

    def holds_bytes(self, column: str) -> bool:
        """Whether a column is binary (Parquet). Not of a struct: that may hold a path as well."""
        path = self.paths[0]
        if not _is(path, ".parquet"):
            return False
        with _parquet(path) as file:
            names = list(file.schema_arrow.names)
            return "binary" in str(file.schema_arrow.types[place(path, names, column)])[:12]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The wanted cells of every row, in order. Empty lines are no rows.

        Args:
            columns: names; upper and lower case count the same where that is unique. "a|b" takes
                the column a, or else b.

        Raises:
            InputError: no such file, not UTF-8, not a table, or a column absent; names the line.
        """
        for path in self.paths:
            if self.header:
                yield from _plain_rows(path, self.header, columns)
            elif _is(path, ".parquet"):
                yield from _parquet_rows(path, columns)
            elif _is(path, ".jsonl"):
                yield from _json_rows(path, columns)
            else:
                yield from _csv_rows(path, columns)

    def digest(self) -> str:
        """Hash of the content."""
        total = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def __str__(self) -> str:
        return str(self.paths[0])


def place(path: Path, names: Sequence[str], column: str) -> int:
    """Index of a wanted column (see `Table.rows`).

    Raises:
        InputError: it is absent, or two columns differ only in case.
    """
    for wanted in column.split("|"):
        if wanted in names:
            return names.index(wanted)
        alike = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
        if len(alike) == 1:
            return alike[0]
    found = ", ".join(repr(name) for name in names)
    wanted = column.replace("|", " or ")
    raise InputError(f"{path}: no column {wanted!r}; found {found}")


def _is(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix


# -------------------------------------------------------------------------------------- text files


def _open_text(path: Path) -> Any:
    """A text file whose bytes that aren't UTF-8 become lone surrogates: the row can be named."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] in _UTF_16:
            raise InputError(f"{path}: is UTF-16; save the table as UTF-8")
        if b"\0" in start:
            raise InputError(
                f"{path}: holds NUL bytes: UTF-16 without its mark? Save the table as UTF-8"
            )
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _refuse_other_encodings(path: Path, line: int, text: str, row: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        raise InputError(
            f"{path}: line {line} ({row[:40]!a}): byte 0x{byte:02x} is not UTF-8; save the table "
            "as UTF-8"
        ) from None


def _header(path: Path) -> tuple[list[str], str]:
    """Column names of a CSV file, and its delimiter: a tab where the header has one."""
    with _open_text(path) as file:
        line = next((line for line in file if line.strip()), "")
    delimiter = "\t" if "\t" in line else ","
    _refuse_other_encodings(path, 1, line, line.split(delimiter)[0])
    names = next(csv.reader([line], delimiter=delimiter), [])
    return [name.strip() for name in names], delimiter


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    names, delimiter = _header(path)
    if not names:
        wanted = ", ".join(dict.fromkeys(columns))
        raise InputError(f"{path}: empty; wanted columns {wanted}")
    places = [place(path, names, column) for column in columns]
    with _open_text(path) as file:
        lines = _csv_lines(path, csv.reader(file, delimiter=delimiter, strict=True))
        next(lines, None)
        for line, cells in lines:
            problem = None
            if len(cells) != len(names):
                problem = f"{len(cells)} fields, the header has {len(names)}"
            values = [cells[index] if index < len(cells) else "" for index in places]
            yield Row(f"line {line}", values, problem)


def _csv_lines(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of each row that isn't empty."""
    line = 1
    try:
        for cells in reader:
            whole = "".join(cells)
            if not whole.isascii():
                _refuse_other_encodings(path, line, whole, cells[0])
            if len(cells) > 1 or whole.strip():  # a line of blanks is no row
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {line}: not CSV: {error} (a quote left open?)") from None


def _plain_rows(path: Path, header: Sequence[str], columns: Sequence[str]) -> Iterator[Row]:
    """Lines without quoting or header: all that follows the first tabs belongs to the last cell."""
    places = [place(path, header, column) for column in columns]
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii():
                _refuse_other_encodings(path, number, line, line)
            if not line.strip():
                continue
            cells = line.rstrip("\r\n").split("\t", len(header) - 1)
            cells += [""] * (len(header) - len(cells))
            yield Row(f"line {number}", [cells[index] for index in places], None)


def _object_names(path: Path) -> list[str]:
    """Keys of the first lines; one that is absent in a line counts as empty there."""
    names = dict[str, None]()
    with _open_text(path) as file:
        for line in islice(file, _NAMED_BY):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the row is told of when it is read
            names |= dict.fromkeys(found) if isinstance(found, dict) else {}
    if not names:
        raise InputError(f"{path}: none of its first {_NAMED_BY} lines is a JSON object")
    return list(names)


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    names = _object_names(path)
    keys = [names[place(path, names, column)] for column in columns]
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            _refuse_other_encodings(path, number, line, line)
            if not line.strip():
                continue
            try:
                found = json.loads(line)
                problem = None if isinstance(found, dict) else "no JSON object"
            except (ValueError, RecursionError) as error:
                found, problem = {}, f"not JSON: {error}"
            values = [found.get(key) if isinstance(found, dict) else None for key in keys]
            yield Row(f"line {number}", [_cell(value) for value in values], problem)


# ----------------------------------------------------------------------------------------- Parquet


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow

    with _parquet(path) as file:
        names = list(file.schema_arrow.names)
        wanted = [names[place(path, names, column)] for column in columns]
        number = 0
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(dict.fromkeys(wanted))):
                for found in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name} row {number}", [_cell(found[n]) for n in wanted], None)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: after row {number}: unreadable: {error}") from None


def _cell(value: Any) -> Any:
    """Numbers as text, an absent value as none; bytes, lists and mappings as they are."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int | float) else value
