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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pandas as pd

from ..errors import InputError
from .image_store import MAX_BYTES, check_fetched

_CHUNK = 1000  # rows of text that are in memory at once
_PARQUET_CHUNK, _PARQUET_BYTES = 64, 1 << 26  # fewer, because they may hold images
_PROBLEM = "\0problem"  # no key of JSON

_Frames = Iterator[pd.DataFrame]
"""Some rows of the chosen columns and, last, _PROBLEM: what is wrong with each, if it is text. The
index is the line on which a row begins, or its number."""
_Opened = tuple[list[str], str, Callable[[list[str]], _Frames]]
"""The columns of a file, what its rows are counted in, and what reads the columns given."""


class Number(str):
    """A number, true or false, as text: an id may be one, a caption may not."""


class Row(NamedTuple):
    """The chosen cells of one row."""

    location: str
    """For messages: the line on which the row begins, or its number in a Parquet file."""
    values: list[Any]
    """Text, or a Number; of another type of Parquet or JSON, its Python value. "" for none."""
    problem: str | None
    """What is wrong with the row; its values are then unsure."""


@dataclass(frozen=True)
class Table:
    """A table in one file, or in several that follow one another."""

    paths: tuple[Path, ...]
    """All of one kind: `.parquet`, `.jsonl` (an object a line), else comma- or tab-separated."""
    header: tuple[str, ...] | None = None
    """Column names of plain tab-separated lines, without quotes or a line of names."""

    def names(self) -> list[str]:
        """The columns that the table has; InputError: no such file, or nothing in it."""
        return self._open(self.paths[0])[0]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The chosen cells of every row, in order. Empty lines are no rows.

        Args:
            columns: names; upper and lower case count the same where that is unique. "a|b" takes
                the column a, or else b.

        Raises:
            InputError: no such file, not UTF-8, not a table, or a column absent; names the line.
        """
        for path in self.paths:
            names, unit, read = self._open(path)
            for frame in read([_chosen(path, names, column) for column in columns]):
                cells = frame.iloc[:, :-1].itertuples(index=False, name=None)
                for n, values, problem in zip(frame.index, cells, frame[_PROBLEM], strict=True):
                    wrong = problem if isinstance(problem, str) else None
                    yield Row(f"{unit} {n}", [*map(_plain, values)], wrong)

    def digest(self) -> str:
        """Hash of the content."""
        total = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def _open(self, path: Path) -> _Opened:
        check_fetched(path)
        if self.header:
            return list(self.header), "line", partial(_lines, path, list(self.header))
        return {".jsonl": _json, ".parquet": _parquet}.get(path.suffix.lower(), _csv)(path)

    def __str__(self) -> str:
        return str(self.paths[0])


def _chosen(path: Path, names: Sequence[str], column: str) -> str:
    """The name that a chosen column (see `Table.rows`) has in the file."""
    for name in column.split("|"):
        same = [each for each in names if each.lower() == name.lower()]
        if name in same or len(same) == 1:
            return name if name in same else same[0]
    listed = ", ".join(repr(name) for name in names)
    raise InputError(f"{path}: no column {column.replace('|', ' or ')!r}; found {listed}")


def _plain(value: Any) -> Any:
    """Numbers as text, an absent value as ""; bytes, lists and mappings as they are."""
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return Number(int(value))  # pandas' whole numbers of JSON, where one is absent
    return Number(value) if isinstance(value, int | float) else value


# -------------------------------------------------------------------------------------- text files


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """A text file. What goes wrong while it is read is an InputError that names the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError:
        with path.open("rb") as raw:
            lines = enumerate((line.decode(errors="replace") for line in raw), start=1)
            n, text = next((n, text) for n, text in lines if "\ufffd" in text)
        where = f"{path}: line {n} ({text[:40]!a})"
        raise InputError(f"{where} is not UTF-8; save the table as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _batches(file: TextIO) -> Iterator[pd.Series]:
    """The lines that aren't blank, under their numbers, a chunk at a time."""
    lines = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
    while batch := dict(islice(lines, _CHUNK)):
        yield pd.Series(batch, dtype=object)


def _lines(path: Path, names: list[str], chosen: list[str]) -> _Frames:
    """Lines without quoting or header: all that follows the first tabs belongs to the last cell."""
    with _open_text(path) as file:
        for lines in _batches(file):
            cells = lines.str.rstrip("\r\n").str.split("\t", n=len(names) - 1, expand=True)
            frame = cells.reindex(columns=range(len(names))).set_axis(names, axis=1)
            yield frame.reindex(columns=[*chosen, _PROBLEM])


def _csv(path: Path) -> _Opened:
    """The first line that isn't blank has the names, and tells the separator."""
    with _open_text(path) as file:
        n, line = next((each for each in enumerate(file, start=1) if each[1].strip()), (0, ""))
    if not line or "\0" in line:
        raise InputError(f"{path}: " + ("NUL bytes: UTF-16? Save it as UTF-8" if line else "empty"))
    separator = "\t" if "\t" in line else ","
    [names] = csv.reader([line], delimiter=separator)
    names = [name.strip() for name in names]
    return names, "line", partial(_csv_frames, path, names, separator, n)


def _csv_frames(
    path: Path, names: list[str], separator: str, line: int, chosen: list[str]
) -> _Frames:
    # pandas' Python engine alone tells a short row (NaN) from an empty cell, and refuses a quote
    # left open. One column more than the header has shows long rows; with a function for `usecols`
    # they neither end the table nor shift it.
    options: dict[str, Any] = {"engine": "python", "sep": separator, "header": None}
    options |= {"names": range(len(names) + 1), "usecols": lambda name: True}
    options |= {"skip_blank_lines": False, "index_col": False, "skiprows": line}
    options |= {"dtype": object, "keep_default_na": False, "chunksize": _CHUNK}
    with _open_text(path) as file:
        try:
            for chunk in filter(len, pd.read_csv(file, **options)):
                counts, text = chunk.notna().sum(axis=1), chunk.fillna("")
                breaks = sum(text[place].str.count(r"\r\n|\r|\n") for place in text)
                ends = line + (breaks + 1).cumsum()
                line = ends.iloc[-1]
                frame = chunk[[names.index(name) for name in chosen]].set_index(ends - breaks)
                told = counts.astype(str).mask(counts > len(names), "more")
                problems = told + f" fields, the header has {len(names)}"
                frame[_PROBLEM] = problems.where(counts != len(names), None).to_numpy()
                # a line of blanks is no row
                yield frame[((counts > 1) | (text[0].str.strip() != "")).to_numpy()]
        except (pd.errors.ParserError, csv.Error) as error:
            where = f"{path}: line {_broken_line(path, separator)}"
            raise InputError(f"{where}: not CSV: {error} (a quote left open?)") from None


def _broken_line(path: Path, separator: str) -> int:
    """Where the row begins that is no CSV: pandas doesn't say."""
    with _open_text(path) as file, suppress(csv.Error):
        reader, line = csv.reader(file, delimiter=separator, strict=True), 1
        for _ in reader:
            line = reader.line_num + 1
    return line


def _json(path: Path) -> _Opened:
    """Its columns are the keys of the first lines; one that a line hasn't got is empty there."""
    with _open_text(path) as file:
        frame = next(map(_json_frame, _batches(file)), pd.DataFrame())
    if names := [str(name) for name in frame if name != _PROBLEM]:
        return names, "line", partial(_json_frames, path)
    raise InputError(f"{path}: none of its first {_CHUNK} lines is a JSON object")


def _json_frames(path: Path, chosen: list[str]) -> _Frames:
    with _open_text(path) as file:
        for lines in _batches(file):
            yield _json_frame(lines).reindex(columns=[*chosen, _PROBLEM])


def _json_frame(lines: pd.Series) -> pd.DataFrame:
    """One row for each line: the values of its object, or what is wrong with it."""
    try:
        if not lines.str.lstrip().str.startswith("{").all():
            raise ValueError("not an object")
        frame = pd.read_json(io.StringIO("".join(lines)), lines=True, dtype=False)
        if len(frame) != len(lines):
            raise ValueError("not one object")
    except (ValueError, RecursionError) as error:
        if len(lines) > 1:  # the rows of one bad line can't be told apart in a chunk
            return pd.concat([_json_frame(lines.iloc[n : n + 1]) for n in range(len(lines))])
        frame = pd.DataFrame({_PROBLEM: [f"not JSON: {error}"]})
    return frame.set_index(lines.index)


# ----------------------------------------------------------------------------------------- Parquet


def _parquet(path: Path) -> _Opened:
    try:
        from pyarrow import parquet  # an extra

        file = parquet.ParquetFile(path)
    except ImportError:
        needed = "reading Parquet needs pip install 'medclip_oc[parquet]'"
        raise InputError(f"{path}: {needed}") from None
    except (ValueError, OSError) as error:  # pyarrow's own are among them
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None
    return file.schema_arrow.names, f"{path.name} row", partial(_parquet_frames, path, file)


def _parquet_frames(path: Path, file: Any, chosen: list[str]) -> _Frames:
    done = 0
    with file:
        try:
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
            # bytes of a row, unpacked: fewer are read at once where they are large
            size = max([1, *(group.total_byte_size // max(1, group.num_rows) for group in groups)])
            if size > MAX_BYTES:
                raise ValueError(f"rows of {size:,} bytes; at most {MAX_BYTES:,} are read")
            rows = min(_PARQUET_CHUNK, _PARQUET_BYTES // size) or 1
            for batch in file.iter_batches(rows, columns=list(dict.fromkeys(chosen))):
                frame = pd.DataFrame(batch.to_pylist(), dtype=object)
                frame.index += done + 1
                done += len(frame)
                yield frame.reindex(columns=[*chosen, _PROBLEM])
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: after row {done}: unreadable: {error}") from None
