"""The tables that people keep captions in: their rows, whatever files they lie in (table_files.py).

"NA", "None" and "null" are text. A row of another length than the header, or a line that is no
JSON, has a problem of its own; the rows after it are read as usual.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import pandas as pd

from ..config.packing import SPLIT_OF
from ..data.index import is_blank
from ..errors import InputError
from .image_store import check_fetched, stem
from .journal import file_hash
from .table_files import PROBLEM, Opened, open_file, read_lines

_CUI = re.compile(r"\bC\d{7}\b", re.IGNORECASE)
_NAMED = re.compile(rf"{_CUI.pattern}(['\"]?\s*:[^;,|]*)?", re.IGNORECASE)  # C0040405:X-ray
_BETWEEN = re.compile(r"[\s;,|'\"()\[\]{}]|\b(nan|none|null)\b", re.IGNORECASE)


class Number(str):
    """A number, true or false, as text: an id may be one, a caption may not."""


class Row(NamedTuple):
    """The chosen cells of one row."""

    location: str
    """For messages: the line on which the row begins or, where there are no lines, its number."""
    name: str  # for a pair that has no other: the file's, and the number
    values: list[Any]
    """Text, or a Number; of another type of Parquet or JSON, its Python value. "" for none."""
    problem: str | None  # what is wrong with the row; its values are then unsure


@dataclass(frozen=True)
class Table:
    """A table in one file, or in several that follow one another."""

    paths: tuple[Path, ...]  # see `open_file` for their kinds
    header: tuple[str, ...] | None = None
    """Column names of plain tab-separated lines, without quotes or a line of names."""

    def names(self) -> list[str]:
        """The columns that the table has; InputError: no such file, or nothing in it."""
        return self._open(self.paths[0])[0]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The cells of every row in these columns, in order; upper and lower case of a name count
        the same where that is unique, and "a|b" takes the column a, or else b. InputError: no
        table, or a column absent.
        """
        labels = [path.stem for path in self.paths]
        if len({*labels}) < len(labels):  # x/0000.parquet, y/0000.parquet
            base = os.path.commonpath([path.absolute().parent for path in self.paths])
            labels = [os.path.relpath(path.with_suffix(""), base) for path in self.paths]
        for path, label in zip(self.paths, labels, strict=True):
            names, unit, read = self._open(path)
            where = f"{label}{path.suffix} {unit}" if len(self.paths) > 1 else unit
            for frame in read([_chosen(path, names, column) for column in columns]):
                cells = frame.iloc[:, :-1].itertuples(index=False, name=None)
                for n, values, problem in zip(frame.index, cells, frame[PROBLEM], strict=True):
                    wrong = problem if isinstance(problem, str) else None
                    yield Row(f"{where} {n}", f"{label}-{n}", [*map(plain, values)], wrong)

    def digest(self) -> str:
        """Hash of the content."""
        hashes = b"".join(bytes.fromhex(file_hash(path)) for path in self.paths)
        return hashlib.sha256(hashes).hexdigest()

    def _open(self, path: Path) -> Opened:
        check_fetched(path)
        if self.header:
            return list(self.header), "line", partial(read_lines, path, list(self.header))
        return open_file(path)

    def __str__(self) -> str:
        return str(self.paths[0])


def by_id(table: Table, id_column: str, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table that is to be joined, by id (without extension); of equal ids the first.
    InputError: the table is broken; names the line.
    """
    rows = [*table.rows([id_column, *columns])]
    if bad := next((row for row in rows if row.problem), None):
        raise InputError(f"{table}: {bad.location}: {bad.problem}")
    ids, cells = [stem(row.values[0].strip()) for row in rows], [row.values[1:] for row in rows]
    frame = pd.DataFrame(cells, index=ids, columns=[*columns], dtype=object)
    return frame.loc[~frame.index.duplicated()]


def _chosen(path: Path, names: Sequence[str], column: str) -> str:
    """The name that a chosen column (see `Table.rows`) has in the file."""
    for name in column.split("|"):
        same = [each for each in names if each.lower() == name.lower()]
        if same.count(name) > 1:
            raise InputError(f"{path}: {same.count(name)} columns are called {name!r}; rename one")
        if name in same or len(same) == 1:
            return name if name in same else same[0]
    listed = shorten(", ".join(map(repr, names)), 110, placeholder=" ...")
    way = f"; name yours: --table {path.name} --image-column X --caption-column Y"
    way *= "image|" in column or "caption|" in column  # those that a form of --source has
    raise InputError(f"{path}: no column {column.replace('|', ' or ')!r}; found {listed}{way}")


def plain(value: Any) -> Any:
    """Numbers as text, an absent value as ""; bytes, lists and mappings as they are."""
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return Number(int(value))  # pandas' whole numbers of JSON, where one is absent
    return Number(value) if isinstance(value, int | float) else value


def parse_captions(cell: Any) -> list[str]:
    """The captions in a cell, a text or a list: NFC, outer blanks trimmed, without empty ones and
    repeats; ValueError: anything else there.
    """
    if isinstance(cell, list):
        return [*dict.fromkeys(chain.from_iterable(map(parse_captions, cell)))]
    text = plain(cell)
    if not isinstance(text, str) or isinstance(text, Number):
        kind = "boolean" if text in ("True", "False") else type(text).__name__.lower()
        raise ValueError(f"the caption is a {kind}, not text")
    caption = unicodedata.normalize("NFC", text).strip()
    return [] if is_blank(caption) else [caption]


def parse_cuis(listed: Any) -> list[str]:
    """Concept ids in a list or a text, perhaps named (C0040405:CT); ValueError: anything else."""
    text = " ".join(map(str, listed)) if isinstance(listed, list) else str(listed)
    if _BETWEEN.sub("", _NAMED.sub("", text)):
        raise ValueError(f"concepts {text[:60]!r}: wanted are CUIs such as C0040405")
    return [cui.upper() for cui in _CUI.findall(text)]


def parse_split(table: Table, location: str, column: str, word: Any, quoted: bool = True) -> str:
    """The split that a cell of a table means; InputError: none that is known, which is `quoted`."""
    words = re.split(r"[/\\]", str(word))
    split = split_told(words)
    if split and not (words[1:] and split_told(words[-1:])):  # "train/val" is neither, nor a path
        return split
    told = f"is {str(word)[:60]!r}; allowed are" if quoted else "is none of"
    raise InputError(f"{table}: {location}: {column} {told} {', '.join(SPLIT_OF)}")


def split_told(words: Sequence[str]) -> str | None:
    """The split that a word means, or a folder of a path, the innermost first."""
    found = (SPLIT_OF.get(word.strip().lower()) for word in reversed(words))
    return next(filter(None, found), None)
