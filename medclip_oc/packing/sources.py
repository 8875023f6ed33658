"""Image-caption pairs where people keep them, one record per row of a caption table.

A source knows its splits, how many rows each has, and yields for each row a `Pair`, or a `Reject`
that says why it can't be one. Nothing is skipped without a record. Every form of data comes down to
one `Part` per split: a table of captions, a place that holds the images, tables to join by id
(source_forms.py finds them).

Captions keep their meaning: Unicode NFC, outer blanks trimmed, "NA", "None" and "null" stay text,
newlines and quotes inside survive.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import InputError
from .disk_table import Lookup
from .image_store import Archive, CellImage, DiskImage, Folder, ImageFile, is_file, stem
from .tables import Table

SPLITS = ("train", "valid", "test")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
"""What people call them."""

Reason = Literal[
    "malformed row", "unsafe id", "duplicate id", "caption empty", "image missing", "leak"
]

# The key names tar members: a dot ends webdataset's key, a separator would leave the folder, the
# rest is what some file system or shell pattern forbids. 200 bytes fit any file system.
_ODD = re.compile(r'[./\\:*?"<>|]')
_MAX_KEY_BYTES = 200
_DIGEST_LETTERS = 10
_HINT = " (--id-column names a column that tells them apart)"
_MAX_TOLD = 500
"""Letters of an id, and of a detail, in rejects.csv."""


@dataclass(frozen=True)
class Pair:
    """A row with a caption and an image, not yet opened."""

    id: str
    """As the source gives it, without extension."""
    key: str
    """The id as a file name and as a webdataset key; unique in its split."""
    split: str
    image: ImageFile
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says, for the sample's JSON: `concepts` (CUIs; absent where the source
    doesn't say), `concept_names` (beside them, null where unknown), `license` (its columns)."""


@dataclass(frozen=True)
class Reject:
    """A row that can't be packed."""

    id: str
    """As the source gives it; what is no Unicode in it is escaped, and what is endless cut."""
    split: str
    reason: str
    detail: str

    def __post_init__(self) -> None:
        for name in ("id", "detail"):
            written = getattr(self, name).encode(errors="backslashreplace").decode()
            if len(written) > _MAX_TOLD:
                written = written[:_MAX_TOLD] + " ..."
            object.__setattr__(self, name, written)


class Join(NamedTuple):
    """A table that says more about the ids of a caption table."""

    table: Table
    id_column: str
    column: str | None
    """None: all columns but the id, as one JSON object."""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Id (without extension) and cell of every row.

        Raises:
            InputError: the table is broken; names the line.
        """
        others = [name for name in self.table.names() if name.lower() != self.id_column.lower()]
        for row in self.table.rows([self.id_column, *([self.column] if self.column else others)]):
            if row.problem:
                raise InputError(f"{self.table}: {row.where}: {row.problem}")
            name, *cells = row.values
            trimmed = {other: str(cell).strip() for other, cell in zip(others, cells, strict=False)}
            yield stem(name.strip()), cells[0] if self.column else json.dumps(trimmed)


@dataclass(frozen=True)
class Part:
    """One split of a source. Columns are named as in `Table.rows`."""

    split: str
    captions: Table
    caption_column: str
    id_column: str | None
    """None: the path of the image is the id."""
    images: Folder | Archive | None = None
    """Finds an image by its id. None: `image_column` holds it, or says where it is."""
    image_column: str | None = None
    image_root: Path = Path()
    """Where the paths in `image_column` start."""
    split_column: str | None = None
    """Says which split a row belongs to. None: all rows to this one."""
    concepts_column: str | None = None
    concepts: Join | None = None
    license: Join | None = None


class _Cells(NamedTuple):
    """A row of a caption table; "" for what its part has no column for."""

    where: str
    problem: str | None
    id: Any
    caption: Any
    image: Any
    concepts: Any


class Source:
    """Pairs of one or more splits.

    Args:
        form: what kind of source it is, for people.
        parts: one for each split.
        concept_names: CUI -> name, where known.

    Attributes:
        splits: their names, in order.
    """

    def __init__(
        self, form: str, parts: Sequence[Part], concept_names: Mapping[str, str] | None = None
    ) -> None:
        self.form, self.splits = form, tuple(part.split for part in parts)
        self._parts = {part.split: part for part in parts}
        self._concept_names = concept_names or {}
        self._joined: dict[str, tuple[Lookup | None, Lookup | None]] = {}

    def count(self, split: str) -> int:
        """Rows of a split. Reads its tables whole, so that a broken one is found at the start.

        Raises:
            InputError: the text is not UTF-8 or not a table, a column is absent, a row is of an
                unknown split, or none is of this one.
        """
        part = self._parts[split]
        rows = sum(1 for _ in _read(part, with_images=False))
        if not rows:
            which = f" whose {part.split_column} is {split}" if part.split_column else ""
            raise InputError(f"{part.captions}: no rows{which or ' under the header'}")
        self._joins(part)
        return rows

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """One record per row of the caption table.

        Of rows with one id, the first with a caption and an image counts. Whether the image can be
        decoded is not seen here.
        """
        part = self._parts[split]
        concepts, licenses = self._joins(part)
        taken = Lookup()
        for cells in _read(part, with_images=True):
            name = cells.id.strip() if isinstance(cells.id, str) else ""
            record = _record(part, name, cells, taken)
            if isinstance(record, tuple):
                yield Reject(name, split, record[0], f"{cells.where}: {record[1]}")
                continue
            taken.add(record.key, f"{cells.where}\t{name}")
            listed = cells.concepts if part.concepts_column else None
            if concepts:
                listed = concepts.get(record.id)
            facts = self._concept_facts(listed)
            if licenses and (found := licenses.get(record.id)):
                facts["license"] = json.loads(found)
            yield Pair(record.id, record.key, split, record.image, record.caption, facts)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the `tables` and of where the `images` are: another one, another data set.

        The images themselves are not read.
        """
        places = [_place(part) for part in self._parts.values()]
        return {"tables": self._tables_digest(), "images": _digest(json.dumps(places))}

    def _tables_digest(self) -> str:
        total = hashlib.sha256()
        for part in self._parts.values():
            columns = (part.caption_column, part.id_column, part.image_column, part.split_column)
            total.update(repr((part.split, columns, part.concepts_column)).encode())
            joins = [join.table for join in (part.concepts, part.license) if join]
            for table in (part.captions, *joins):
                total.update(table.digest().encode())
        total.update(json.dumps(self._concept_names, sort_keys=True).encode())
        return total.hexdigest()

    def _joins(self, part: Part) -> tuple[Lookup | None, Lookup | None]:
        """Id -> its CUIs as listed, and id -> its licence as JSON; read once."""
        if part.split not in self._joined:
            joins = (part.concepts, part.license)
            first, second = (Lookup(join.pairs()) if join else None for join in joins)
            self._joined[part.split] = first, second
        return self._joined[part.split]

    def _concept_facts(self, listed: Any) -> dict[str, Any]:
        if listed is None:
            return {}
        facts: dict[str, Any] = {"concepts": parse_cuis(listed)}
        if self._concept_names:
            facts["concept_names"] = [self._concept_names.get(cui) for cui in facts["concepts"]]
        return facts


def _place(part: Part) -> list[str]:
    """Where a split's images are; of a zip, also which."""
    path = part.images.path if part.images else part.image_root
    place = [part.split, str(path.resolve())]
    if isinstance(part.images, Archive):
        status = path.stat()
        place += [str(status.st_size), str(status.st_mtime_ns)]
    return place


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(part: Part, *, with_images: bool) -> Iterator[_Cells]:
    """The rows of a part; `with_images` off leaves the images in a table unread."""
    image = part.image_column if with_images or part.id_column is None else None
    wanted = [part.id_column or image, part.caption_column, image, part.split_column]
    wanted.append(part.concepts_column)
    columns = [column for column in wanted if column]
    for row in part.captions.rows(columns):
        cells = iter(row.values)
        name, caption, picture, split, cuis = (next(cells) if c else "" for c in wanted)
        column = part.split_column
        if column and split_named(part.captions, row.where, column, split) != part.split:
            continue
        if part.id_column is None and isinstance(name, dict):
            name = name.get("path") or ""
        yield _Cells(row.where, row.problem, name, caption, picture, cuis)


def _record(part: Part, name: str, cells: _Cells, taken: Lookup) -> Pair | tuple[Reason, str]:
    """The pair of a row, without its facts; or why there is none."""
    if cells.problem:
        return "malformed row", cells.problem
    if not isinstance(cells.caption, str):
        return "malformed row", f"the caption is a {type(cells.caption).__name__}, not text"
    caption = clean(cells.caption)
    if not _is_unicode(caption) or not _is_unicode(name):
        return "malformed row", "half a surrogate pair, which is not text"
    identity = stem(name)
    if problem := unfit_id(identity, is_path=part.id_column is None):
        return "unsafe id", problem
    key = key_of(identity)
    if earlier := taken.get(key):
        where, _, other = earlier.partition("\t")
        if part.id_column or other == name:
            return "duplicate id", f"{where} has this id" + _HINT * (part.id_column is None)
        identity, key = name, key_of(name)  # a.jpg and a.png: with their extensions
        if key in taken:
            return "duplicate id", f"an earlier row has this image{_HINT}"
    if not any(letter.isprintable() and not letter.isspace() for letter in caption):
        return "caption empty", "no text but blanks"
    image = _image(part, name, cells.image)
    if image is None:
        if part.images:
            return "image missing", f"no {identity}.jpg, .png or other image in {part.images}"
        return "image missing", f"no file {cells.image!r}" if cells.image else "no image in the row"
    return Pair(identity, key, part.split, image, caption)


def _image(part: Part, name: str, cell: Any) -> ImageFile | None:
    """The image of a row: found by its id, or in the cell, or where the cell says."""
    if part.images:
        return part.images.find(name)
    if isinstance(cell, dict):  # as Hugging Face stores images: {bytes, path}
        cell = cell.get("bytes") or cell.get("path") or ""
    if isinstance(cell, bytes):
        return CellImage(name, cell)
    path = part.image_root / str(cell).strip()
    return DiskImage(path) if cell and is_file(path) else None


def split_named(table: Table, where: str, column: str, said: Any) -> str:
    """The split that a cell of a table means.

    Raises:
        InputError: none that is known.
    """
    for split, words in SPLIT_WORDS.items():
        if str(said).strip().lower() in words:
            return split
    allowed = ", ".join(word for words in SPLIT_WORDS.values() for word in words)
    raise InputError(f"{table}: {where}: {column} is {said!r}; allowed are {allowed}")


# ----------------------------------------------------------------------------------- ids and texts


def unfit_id(identity: str, *, is_path: bool = False) -> str | None:
    """What makes an id unfit to name an image. None: it is fit.

    Args:
        identity: without extension.
        is_path: it is the path of an image already, and names nothing else.
    """
    if not identity or not identity.strip("/\\. "):
        return "no id"
    if not identity.isprintable():
        bad = next(letter for letter in identity if not letter.isprintable())
        return f"holds {bad!r}"
    if not is_path and any(step in ("", ".", "..") for step in re.split(r"[/\\]", identity)):
        return "leads out of the image folder"
    return None


def key_of(identity: str) -> str:
    """An id as file name and webdataset key: itself where that is safe.

    Else its odd characters become "_", and a hash of the id is appended, so that ids that differ
    stay apart: `p10/s5.1` -> `p10_s5_1-b4a0c2d9e1`.
    """
    safe = _ODD.sub("_", identity).strip()
    if safe == identity and len(safe.encode()) <= _MAX_KEY_BYTES:
        return safe
    digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGEST_LETTERS]
    room = _MAX_KEY_BYTES - len(digest) - 1
    return f"{safe.encode()[:room].decode(errors='ignore').strip()}-{digest}"


def clean(caption: str) -> str:
    """A caption as it is stored: NFC, outer blanks trimmed."""
    return unicodedata.normalize("NFC", caption).strip()


def parse_cuis(listed: Any) -> list[str]:
    """Concept ids from a list, or from text with ";" or tabs between. "nan" is an absent one."""
    found = listed if isinstance(listed, list) else re.split(r"[;\t]", str(listed))
    cuis = (str(cui).strip() for cui in found)
    return [cui for cui in cuis if cui and cui.lower() != "nan"]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
