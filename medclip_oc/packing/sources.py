"""Image-caption pairs where people keep them, one record per row of a caption table.

A source knows its splits, how many rows each has, and yields for each row a `Pair`, or a `Reject`
that says why it can't be one. Nothing is skipped without a record. Every form of data comes down to
one `Part` per split: a table of captions, a place that holds the images, tables to join by id
(formats.py finds them).

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
from typing import Any, Literal

import pandas as pd

from ..errors import InputError
from .image_store import Archive, Folder, ImageFile, image_in_cell, image_on_disk, stem
from .tables import Row, Table

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
_UNSAFE = re.compile(r'[./\\:*?"<>|]')
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
            text = getattr(self, name).encode(errors="backslashreplace").decode()
            cut = text if len(text) <= _MAX_TOLD else text[:_MAX_TOLD] + " ..."
            object.__setattr__(self, name, cut)


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
    concepts: Table | None = None
    """ID and CUIs."""
    license: Table | None = None
    """ID and any columns."""

    def rows(self, *, with_images: bool) -> Iterator[tuple[Row, dict[str, Any]]]:
        """The rows of the split, and their cells: id, caption, image, split, concepts; those that
        it has a column for. `with_images` off leaves the images in a table unread.
        """
        columns = {
            "id": self.id_column or self.image_column,
            "caption": self.caption_column,
            "image": self.image_column if with_images or self.id_column is None else None,
            "split": self.split_column,
            "concepts": self.concepts_column,
        }
        columns = {what: column for what, column in columns.items() if column}
        for row in self.captions.rows([column for column in columns.values() if column]):
            cells = dict(zip(columns, row.values, strict=True))
            if self.split_column and self.split != parse_split(
                self.captions, row.location, self.split_column, cells["split"]
            ):
                continue
            yield row, cells


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
        self, form: str, parts: Sequence[Part], concept_names: Mapping[Any, str] | None = None
    ) -> None:
        self.form, self.splits = form, tuple(part.split for part in parts)
        self._parts = {part.split: part for part in parts}
        self._concept_names = concept_names or {}
        self._joined = dict[str, tuple[dict[Any, Any] | None, dict[Any, Any]]]()

    def count(self, split: str) -> int:
        """Rows of a split. Reads its tables whole, so that a broken one is found at the start.

        Raises:
            InputError: the text is not UTF-8 or not a table, a column is absent, a row is of an
                unknown split, or none is of this one.
        """
        part = self._parts[split]
        rows = sum(1 for _ in part.rows(with_images=False))
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
        taken = dict[str, tuple[str, str]]()  # key -> location and name of its row
        for row, cells in part.rows(with_images=True):
            name = cells["id"]
            if part.id_column is None and isinstance(name, dict):  # {bytes, path}
                name = name.get("path")
            name = name.strip() if isinstance(name, str) else ""
            pair = _pair(part, name, row.problem, cells, taken)
            if isinstance(pair, tuple):
                yield Reject(name, split, pair[0], f"{row.location}: {pair[1]}")
                continue
            taken[pair.key] = row.location, name
            listed = cells.get("concepts") if concepts is None else concepts.get(pair.id)
            facts = self._concept_facts(listed)
            if pair.id in licenses:
                facts["license"] = licenses[pair.id]
            yield Pair(pair.id, pair.key, split, pair.image, pair.caption, facts)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the `tables` and of where the `images` are: another one, another data set.

        The images themselves are not read.
        """
        tables = hashlib.sha256()
        places = list[list[str]]()
        for part in self._parts.values():
            columns = (part.caption_column, part.id_column, part.image_column, part.split_column)
            tables.update(repr((part.split, columns, part.concepts_column)).encode())
            for table in (part.captions, part.concepts, part.license):
                tables.update(table.digest().encode() if table else b"")
            path = part.images.path if part.images else part.image_root
            places.append([part.split, str(path.resolve())])
            if isinstance(part.images, Archive):
                places[-1] += [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
        tables.update(json.dumps(self._concept_names, sort_keys=True).encode())
        images = json.dumps(places).encode(errors="surrogateescape")
        return {"tables": tables.hexdigest(), "images": hashlib.sha256(images).hexdigest()}

    def _joins(self, part: Part) -> tuple[dict[Any, Any] | None, dict[Any, Any]]:
        """Id -> its CUIs as listed (None: no such table), and id -> its licence; read once."""
        if part.split not in self._joined:
            listed = (
                by_id(part.concepts, "ID", ["CUIs"])["CUIs"].to_dict() if part.concepts else None
            )
            license = {}
            if part.license:
                columns = [name for name in part.license.names() if name.lower() != "id"]
                license = by_id(part.license, "ID", columns).map(str.strip).to_dict("index")
            self._joined[part.split] = listed, license
        return self._joined[part.split]

    def _concept_facts(self, listed: Any) -> dict[str, Any]:
        if listed is None:
            return {}
        facts: dict[str, Any] = {"concepts": parse_cuis(listed)}
        if self._concept_names:
            facts["concept_names"] = [self._concept_names.get(cui) for cui in facts["concepts"]]
        return facts


def by_id(table: Table, id_column: str, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table that is to be joined, by id (without extension); of equal ids the first.

    Raises:
        InputError: the table is broken; names the line.
    """
    ids, cells = list[str](), list[list[str]]()
    for row in table.rows([id_column, *columns]):
        if row.problem:
            raise InputError(f"{table}: {row.location}: {row.problem}")
        ids.append(stem(row.values[0].strip()))
        cells.append(row.values[1:])
    frame = pd.DataFrame(cells, index=ids, columns=list(columns), dtype=object)
    return frame.loc[~frame.index.duplicated()]


def _pair(
    part: Part,
    name: str,
    problem: str | None,
    cells: Mapping[str, Any],
    taken: Mapping[str, tuple[str, str]],
) -> Pair | tuple[Reason, str]:
    """The pair of a row, without its facts; or why there is none."""
    if problem:
        return "malformed row", problem
    if not isinstance(cells["caption"], str):
        return "malformed row", f"the caption is a {type(cells['caption']).__name__}, not text"
    caption = clean(cells["caption"])
    identity = stem(name)
    if unfit := unfit_id(identity, is_path=part.id_column is None):
        return "unsafe id", unfit
    key = key_of(identity)
    if key in taken:
        location, earlier_name = taken[key]
        if part.id_column or earlier_name == name:
            return "duplicate id", f"{location} has this id" + _HINT * (part.id_column is None)
        identity, key = name, key_of(name)  # a.jpg and a.png: with their extensions
        if key in taken:
            return "duplicate id", f"an earlier row has this image{_HINT}"
    if not any(letter.isprintable() and not letter.isspace() for letter in caption):
        return "caption empty", "no text but blanks"
    cell = cells.get("image")
    image = _find_image(part, name, cell)
    if image is None:
        if part.images:
            return "image missing", f"no {identity}.jpg, .png or other image in {part.images}"
        return "image missing", f"no file {cell!r}" if cell else "no image in the row"
    return Pair(identity, key, part.split, image, caption)


def _find_image(part: Part, name: str, cell: Any) -> ImageFile | None:
    """The image of a row: found by its id, or in the cell, or where the cell says."""
    if part.images:
        return part.images.find(name)
    if isinstance(cell, dict):  # as Hugging Face stores images: {bytes, path}
        cell = cell.get("bytes") or cell.get("path") or ""
    if isinstance(cell, bytes):
        return image_in_cell(name, cell)
    return image_on_disk(part.image_root / str(cell).strip()) if cell else None


def parse_split(table: Table, location: str, column: str, word: Any) -> str:
    """The split that a cell of a table means.

    Raises:
        InputError: none that is known.
    """
    for split, words in SPLIT_WORDS.items():
        if str(word).strip().lower() in words:
            return split
    allowed = ", ".join(each for words in SPLIT_WORDS.values() for each in words)
    raise InputError(f"{table}: {location}: {column} is {word!r}; allowed are {allowed}")


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
        return f"holds {next(letter for letter in identity if not letter.isprintable())!r}"
    if not is_path and any(step in ("", ".", "..") for step in re.split(r"[/\\]", identity)):
        return "leads out of the image folder"
    return None


def key_of(identity: str) -> str:
    """An id as file name and webdataset key: itself where that is safe.

    Else its odd characters become "_", and a hash of the id is appended, so that ids that differ
    stay apart: `p10/s5.1` -> `p10_s5_1-b4a0c2d9e1`.
    """
    safe = _UNSAFE.sub("_", identity).strip()
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
    parts = listed if isinstance(listed, list) else re.split(r"[;\t]", str(listed))
    cuis = (str(cui).strip() for cui in parts)
    return [cui for cui in cuis if cui and cui.lower() != "nan"]
