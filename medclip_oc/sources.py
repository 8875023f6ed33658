"""Finding image-caption pairs on disk, in the forms that people have them.

A source knows its splits, how many rows each has, and yields one record per row: a `Pair`, or a
`Reject` that says why the row can't be one. Nothing is skipped without a record.

Captions keep their meaning: Unicode NFC, outer blanks trimmed, "NA", "None" and "null" stay text,
newlines and quotes inside survive. Tables are UTF-8 CSV, with or without a byte-order mark, with
either line ending.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from .errors import InputError

SPLITS = ("train", "valid", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Of image files, in the order in which they are looked for."""

Reason = Literal["malformed row", "unsafe id", "duplicate id", "caption empty", "image missing"]

# The id names files and tar members: a dot ends webdataset's key, a separator would leave the
# folder, the rest is what some file system or shell pattern forbids. 200 bytes fit any file system.
_UNSAFE = re.compile(r'[./\\:*?"<>|\x00-\x1f\x7f]')
_MAX_ID_BYTES = 200


@dataclass(frozen=True)
class Pair:
    """A row with a caption and an image file, not yet opened."""

    id: str
    """Without extension; safe as a file name and as a webdataset key."""
    split: str
    image: Path
    caption: str
    concepts: tuple[str, ...] | None
    """UMLS concept ids (CUIs). None: the source doesn't say."""


@dataclass(frozen=True)
class Reject:
    """A row that can't be packed."""

    id: str
    """As the source gives it."""
    split: str
    reason: str
    detail: str


class Source(Protocol):
    """What packing needs of a form of data."""

    splits: tuple[str, ...]

    def count(self, split: str) -> int:
        """Rows of a split. Reads its tables whole, so that a broken one is found at the start."""

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """One record per row, in the table's order."""


class KaggleSource:
    """`{split}_images/{split}/ID.jpg` and `{split}_captions.csv`, perhaps `{split}_concepts.csv`.

    Args:
        folder: what holds them.
        splits: which ones to read.

    Raises:
        InputError: a wrong split name, or a folder, table or column that isn't there.
    """

    def __init__(self, folder: Path, splits: Sequence[str] = SPLITS) -> None:
        wrong = [split for split in splits if split not in SPLITS]
        if wrong or not splits:
            raise InputError(f"splits: {wrong or 'none'}; allowed are {', '.join(SPLITS)}")
        if not folder.is_dir():
            raise InputError(f"{folder}: no such source folder")
        self.folder = folder
        self.splits = tuple(dict.fromkeys(splits))
        for split in self.splits:
            if not self._captions(split).is_file():
                raise InputError(
                    f"{self._captions(split)}: no such file (to leave {split} out, name the other "
                    "splits with --splits)"
                )
            if not self._images(split).is_dir():
                raise InputError(f"{self._images(split)}: no such image folder")

    def _captions(self, split: str) -> Path:
        return self.folder / f"{split}_captions.csv"

    def _images(self, split: str) -> Path:
        return self.folder / f"{split}_images" / split

    def count(self, split: str) -> int:
        """Rows of the caption table.

        Raises:
            InputError: a column is absent, the text is not UTF-8 or not CSV, or no row is there.
        """
        rows = sum(1 for _ in read_table(self._captions(split), ("ID", "Caption")))
        if not rows:
            raise InputError(f"{self._captions(split)}: no rows under the header")
        self._concepts(split)
        return rows

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """One record per row of the caption table. Of rows with one id, the first usable counts."""
        concepts = self._concepts(split)
        taken: set[str] = set()
        for row in read_table(self._captions(split), ("ID", "Caption")):
            record = self._record(split, row, taken)
            if isinstance(record, Reject):
                yield record
                continue
            taken.add(record.id)
            found = concepts.get(record.id)
            cuis = None if found is None else tuple(filter(None, map(str.strip, found.split(";"))))
            yield Pair(record.id, split, record.image, record.caption, cuis)

    def _record(self, split: str, row: "Row", taken: set[str]) -> Pair | Reject:
        def reject(reason: Reason, detail: str) -> Reject:
            return Reject(row.values[0], split, reason, f"line {row.line}: {detail}")

        if row.problem:
            return reject("malformed row", row.problem)
        name, caption = row.values[0].strip(), clean(row.values[1])
        key = stem(name)
        if problem := unsafe_id(key):
            return reject("unsafe id", problem)
        if key in taken:
            return reject("duplicate id", "an earlier row has this id")
        if not caption:
            return reject("caption empty", "no text but blanks")
        folder = self._images(split)
        image = _find_image(folder, name, key)
        if image is None:
            where = folder.relative_to(self.folder).as_posix()
            return reject("image missing", f"no {key}.jpg, .jpeg or .png in {where}")
        return Pair(key, split, image, caption, None)

    def _concepts(self, split: str) -> dict[str, str]:
        """Id -> its CUIs, joined as in the file. A row without any is there, and empty."""
        path = self.folder / f"{split}_concepts.csv"
        found: dict[str, str] = {}
        for row in read_table(path, ("ID", "CUIs")) if path.is_file() else ():
            if row.problem:
                raise InputError(f"{path}: line {row.line}: {row.problem}")
            found.setdefault(stem(row.values[0].strip()), row.values[1])
        return found


def open_source(folder: Path, splits: Sequence[str] = SPLITS) -> Source:
    """The source in a folder, whatever its form (Kaggle layout, so far).

    Raises:
        InputError: see `KaggleSource`.
    """
    return KaggleSource(folder, splits)


# ----------------------------------------------------------------------------------- ids and texts


def stem(name: str) -> str:
    """An id without the image extension that some tables give it."""
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return name.removesuffix(extension)
    return name


def unsafe_id(key: str) -> str | None:
    """What makes an id unfit as file name and webdataset key. None: it is fit."""
    if not key:
        return "no id"
    if bad := _UNSAFE.search(key):
        return f"holds {bad[0]!r}"
    if not key.isprintable() or key != key.strip():
        return "holds an unprintable character, or a blank at its end"
    if len(key.encode()) > _MAX_ID_BYTES:
        return f"longer than {_MAX_ID_BYTES} bytes"
    return None


def clean(caption: str) -> str:
    """A caption as it is stored: NFC, outer blanks trimmed."""
    return unicodedata.normalize("NFC", caption).strip()


def _find_image(folder: Path, name: str, key: str) -> Path | None:
    """The file that the id names with its extension, else the first one that exists."""
    names = [name] if name != key else []
    paths = [folder / each for each in [*names, *(key + extension for extension in EXTENSIONS)]]
    return next((path for path in paths if path.is_file()), None)


# ------------------------------------------------------------------------------------------ tables


class Row(NamedTuple):
    """The wanted cells of one row."""

    line: int
    """Where the row begins; the header is line 1."""
    values: list[str]
    problem: str | None
    """What is wrong with the row; its values are then unsure."""


def read_table(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a CSV file. Empty lines are no rows.

    Args:
        path: the file.
        columns: wanted columns; upper and lower case count the same where that is unique.

    Raises:
        InputError: no such file, not UTF-8, not CSV, or a column absent; names the line.
    """
    try:
        # Bytes that aren't UTF-8 become lone surrogates, so that the row can be named.
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    with file:
        lines = _lines(path, csv.reader(file, strict=True))
        header = next(lines, None)
        if header is None:
            raise InputError(f"{path}: empty; wanted columns {', '.join(columns)}")
        names = [name.strip() for name in header[1]]
        places = [_place(path, names, column) for column in columns]
        for line, cells in lines:
            problem = None
            if len(cells) != len(names):
                problem = f"{len(cells)} fields, the header has {len(names)}"
            values = [cells[place] if place < len(cells) else "" for place in places]
            yield Row(line, values, problem)


def _lines(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of each row that isn't empty."""
    line = 1
    try:
        for cells in reader:
            if not "".join(cells).isascii():
                _refuse_other_encodings(path, line, cells)
            if cells:
                yield line, cells
            line = reader.line_num + 1  # type: ignore[attr-defined]
    except csv.Error as error:
        raise InputError(f"{path}: line {line}: not CSV: {error} (a quote left open?)") from None


def _refuse_other_encodings(path: Path, line: int, cells: list[str]) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        raise InputError(
            f"{path}: line {line} ({cells[0][:40]!a}): byte 0x{byte:02x} is not UTF-8; save the "
            "table as UTF-8"
        ) from None


def _place(path: Path, names: Sequence[str], column: str) -> int:
    if column in names:
        return names.index(column)
    alike = [place for place, name in enumerate(names) if name.lower() == column.lower()]
    if len(alike) == 1:
        return alike[0]
    found = ", ".join(repr(name) for name in names)
    raise InputError(f"{path}: no column {column!r}; found {found}")
