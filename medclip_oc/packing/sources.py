"""Image-caption pairs where people keep them, one record per row of a caption table.

A source knows its splits, how many rows each has, and yields for each row a `Pair`, or a `Reject`
that says why it can't be one; one for several, where rows with one image are grouped. Nothing is
skipped without a record. Every form of data comes down to one `Part` per split: a table of
captions, a place that holds the images, tables to join by id (formats.py finds them).

Captions keep their meaning: Unicode NFC, outer blanks trimmed, "NA", "None" and "null" stay text,
newlines and quotes inside survive.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ..errors import InputError
from .image_store import EXTENSIONS, Archive, Folder, ImageFile, as_path, fold, stem
from .tables import Row, Table, by_id, parse_captions, parse_cuis, parse_split, split_told

SPLITS = ("train", "valid", "test")
FACTS = "id split width height mode sha256 concepts concept_names license captions reencoded "
FACTS += "resized_from slice"
"""Of a sample's JSON."""

# The key names tar members: a dot ends webdataset's key, a separator would leave the folder, the
# rest is what some file system or shell pattern forbids. 200 bytes fit any file system.
_UNSAFE = re.compile(r'[./\\:*?"<>|]')
_MAX_KEY_BYTES, _DIGEST_LETTERS = 200, 10
_MAX_TOLD = 500  # letters of an id, and of a detail, in rejects.csv
_KEPT, _FURTHER = "kept ", "further "  # before a column's name
_ONE_IMAGE = "several images in one cell; give each its own row"
_SEVERAL = re.compile(rf"({'|'.join(map(re.escape, EXTENSIONS))})\s*[;,|\s]\s*\S", re.IGNORECASE)
_NO_PATH = re.compile("(https?|ftp|s3|gs)://|data:image|/9j/|iVBORw0KGgo")


@dataclass(frozen=True)
class Reject:
    """A row that can't be packed."""

    id: str  # as the source gives it; what is no Unicode in it is escaped, and what is endless cut
    split: str
    reason: str
    """"malformed row", "unsafe id", "duplicate id", "caption empty", "image missing",
    "image unreadable", "leak", or a `BadImageReason`."""
    detail: str
    rows: int = 1  # that it stands for

    def __post_init__(self) -> None:
        for name in ("id", "detail"):
            text = getattr(self, name).encode(errors="backslashreplace").decode()
            object.__setattr__(self, name, text[:_MAX_TOLD] + " ..." * (len(text) > _MAX_TOLD))


@dataclass(frozen=True)
class Pair:
    """A row with a caption and an image, not yet opened."""

    id: str  # as the source gives it, without extension
    key: str  # the id as a file name and as a webdataset key; unique in its split
    split: str
    image: ImageFile
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says, for the sample's JSON: `concepts` (CUIs), `concept_names` (beside
    them), `license` (its columns), `captions` (all). Of all rows the same keys; null: not known."""
    rows: int = 1  # that it stands for

    def reject(self, reason: str, detail: str) -> Reject:
        """The record of this pair where its image can't be read or used."""
        return Reject(self.id, self.split, reason, f"{self.image.name}: {detail}", self.rows)


@dataclass(frozen=True)
class Part:
    """One split of a source."""

    split: str
    captions: Table
    columns: Mapping[str, str]
    """Which columns of it (named as in `Table.rows`) hold the caption and what else there is of:
    id (without it, the path of the image is the id); image, or its path (without it, the id names
    the file); split (without it, all rows are of this one); concepts."""
    images: Sequence[Folder]
    """Where the files are, or where their paths start; the first that has one counts."""
    concepts: Table | None = None  # ID and CUIs
    license: Table | None = None  # ID and any columns
    kept: Mapping[str, str] = field(default_factory=dict)
    """Columns of `captions` whose text each pair's facts carry, by its name there."""
    further: Sequence[str] = ()  # columns of it with more captions
    reports: Mapping[tuple[str, ...], list[str]] = field(default_factory=dict)
    """Captions for rows without one, by these cells of `kept`: group, study."""
    numbered: bool = False  # messages name a row by its number alone

    def rows(self, *, with_images: bool) -> Iterator[tuple[Row, dict[str, Any]]]:
        """The rows of the split, and their cells by the keys of `columns`, or by _KEPT and name.
        `with_images` off leaves the images in a table unread, and an `id` that comes of them.
        """
        columns = {**self.columns, **{_KEPT + name: it for name, it in self.kept.items()}}
        columns |= (further := {_FURTHER + name: name for name in self.further})
        if with_images:
            columns.setdefault("id", columns.get("image", ""))
        else:
            columns.pop("image", None)
        for number, row in enumerate(self.captions.rows(list(columns.values())), start=1):
            row = row._replace(location=f"row {number}") if self.numbered else row
            cells = dict(zip(columns, row.values, strict=True))
            if further:
                cells["caption"] = [cells["caption"], *map(cells.get, further)]
            for what in ("id", "image"):  # a list of one is that one
                if isinstance(cells.get(what), list) and len(cells[what]) == 1:
                    [cells[what]] = cells[what]
            if "split" not in cells or self.split == parse_split(
                self.captions, row.location, columns["split"], cells["split"], not self.numbered
            ):
                yield row, cells

    @cached_property
    def cuis_by_id(self) -> Mapping[Any, Any] | None:
        """Concepts as listed. None: there is no table of them."""
        return by_id(self.concepts, "ID", ["CUIs"])["CUIs"].to_dict() if self.concepts else None

    @cached_property
    def license_by_id(self) -> Mapping[Any, Any]:
        """The columns of the licence."""
        if not self.license:
            return {}
        columns = [name for name in self.license.names() if name.lower() != "id"]
        return by_id(self.license, "ID", columns).map(str.strip).to_dict("index")

    def study_of(self, cells: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of `reports` is a row's."""
        return tuple(str(cells.get(_KEPT + name, "")).strip() for name in ("group", "study"))

    def find_image(self, name: str, cell: Any) -> ImageFile | None:
        """The image of a row: in the cell, or where that says, or by its id. Else at the path's
        end, without folders that all rows share; or of its file name, if no other row or file has
        it, and no folder is another split's.
        """
        if isinstance(cell, bytes):
            return ImageFile(name, partial(bytes, cell))
        path = as_path(str(cell).strip()) if "image" in self.columns else name
        parts = path.split("/")
        ends = ("/".join(parts[n:]) for n in range(len(parts)) if not n or n <= self._ends[0])
        found = (place.find(end) for end in ends for place in self.images if path)
        if image := next(filter(None, found), None):
            return image
        if self._ends[1][fold(path)] != 1 or _SEVERAL.search(path):
            return None
        return self.images[0].find(path, lambda at: split_told(at.split("/")) in (None, self.split))

    @cached_property
    def _ends(self) -> tuple[int, Counter[str]]:
        """How many folders all paths (or ids) of the table begin with; paths of a file name."""
        column = self.columns.get("image") or self.columns["id"]
        cells = (row.values[0] for row in self.captions.rows([column]))
        paths = {as_path(cell.strip()) for cell in cells if cell and isinstance(cell, str)}
        shared = os.path.commonprefix([path.split("/")[:-1] for path in paths])  # noqa: RUF071
        return len(shared), Counter(map(fold, paths))


@dataclass(eq=False)
class Source:
    """Pairs of one or more splits."""

    form: str  # what kind of source it is, for people
    parts: Sequence[Part]  # one for each split
    concept_names: Mapping[Any, str] = field(default_factory=dict)  # CUI -> name, where known
    grouped: bool = False  # rows with one image are one record
    beside: Sequence[tuple[str, str]] = ()  # names and texts of files for the shard folder
    dropped: Mapping[tuple[str, str], str] | None = None  # (split, key) of a leak -> what it is

    def __post_init__(self) -> None:
        self._by_split = {part.split: part for part in self.parts}
        self.splits = tuple(self._by_split)
        self._lists = False  # of captions, in any row that was counted
        self._with_concepts = any(p.concepts or p.columns.get("concepts") for p in self.parts)

    def count(self, split: str) -> int:
        """Rows of a split. Reads its tables whole, so that a broken one is found at the start.
        InputError: as `Table.rows`, a row is of an unknown split, or none is of this one.
        """
        part = self._by_split[split]
        lists = [isinstance(cells["caption"], list) for _, cells in part.rows(with_images=False)]
        self._lists |= any(lists)
        if not lists:
            column = part.columns.get("split")
            which = f"whose {column} is {split} (see --splits)" if column else "under the header"
            raise InputError(f"{part.captions}: no rows {which}")
        _ = part.cuis_by_id, part.license_by_id
        return len(lists)

    def records(self, split: str) -> Iterator[Pair | Reject]:
        """One record per row of the caption table or, where they are `grouped`, per image.

        Of rows with one id, the first with a caption and an image counts. Whether the image can be
        decoded is not seen here.
        """
        part, taken = self._by_split[split], dict[str, str]()  # key -> location of its row
        groups = self._groups(part) if self.grouped else {}
        for number, (row, cells) in enumerate(part.rows(with_images=True)):
            if (captions := groups.get(number)) is None:  # none is grouped, or it can't be packed
                yield self._record(part, row, cells, taken)
            elif captions:
                record = self._record(part, row, cells | {"caption": captions}, taken)
                yield replace(record, rows=len(captions))

    def _groups(self, part: Part) -> dict[int, list[Any]]:
        """Number of the first row with an image -> its rows' captions; of a later one -> []."""
        firsts, groups = dict[Any, int](), dict[int, list[Any]]()
        for number, (row, cells) in enumerate(part.rows(with_images=True)):
            if isinstance(pair := self._record(part, row, cells, {}), Pair):
                place, *name = pair.image.read.args  # a path, or an archive and a name, or bytes
                place = hashlib.sha256(place).digest() if isinstance(place, bytes) else place
                groups[number] = []
                groups[firsts.setdefault((place, *name), number)].append(cells["caption"])
        return groups

    def _record(
        self, part: Part, row: Row, cells: Mapping[str, Any], taken: dict[str, str]
    ) -> Pair | Reject:
        name, is_path = cells["id"], "id" not in part.columns
        if is_path and isinstance(name, dict):  # {bytes, path}; all paths may be "image.png"
            path, data = name.get("path"), name.get("bytes")
            name = data if data and (not path or key_of(stem(str(path).strip())) in taken) else path
        if is_path and isinstance(name, bytes):
            name = row.name
        name = name.strip() if isinstance(name, str) else ""

        def reject(reason: str, detail: str) -> Reject:
            return Reject(name, part.split, reason, f"{row.location}: {detail}")

        if row.problem:
            return reject("malformed row", row.problem)
        try:
            captions = parse_captions(cells["caption"]) or part.reports.get(
                part.study_of(cells), []
            )
        except ValueError as error:
            return reject("malformed row", str(error))
        if isinstance(cells.get("image"), list):
            return reject("malformed row", _ONE_IMAGE)
        if not captions:
            return reject("caption empty", "no text but blanks")
        identity, cell = stem(name), cells.get("image")
        if is_path and (cell in (None, "", []) or not name):
            return reject("image missing", "no image in the row")
        if unfit := unfit_id(identity, is_path=is_path):
            return reject("unsafe id", unfit)
        key = key_of(identity)
        if key in taken:
            hint = " (--id-column tells them apart, --group-by-image joins them)" * is_path
            return reject("duplicate id", f"{taken[key]} has this id{hint}")
        if isinstance(cell, dict):  # as Hugging Face stores images: {bytes, path}
            cell = cell.get("bytes") or cell.get("path") or ""
        try:
            image = part.find_image(name, cell)
        except InputError as error:
            return reject("image missing", str(error))
        if image is None:
            places = " or ".join(map(str, part.images))
            missing = f"no {identity}.jpg, .png or other image in {places}"
            if "image" in part.columns:
                hint = " (--image-root says where paths start)" * (self.form == "table")
                missing = f"no {str(cell)[:80]!r}, nor one of that file name{hint}, in {places}"
                if _NO_PATH.match(str(cell)):
                    missing = f"{str(cell)[:40]!r} is a URL or in base64; save images as files"
                elif _SEVERAL.search(str(cell)):
                    return reject("malformed row", _ONE_IMAGE)
            return reject("image missing", missing if cell != "" else "no image in the row")
        try:
            facts = self._facts(part, identity, cells)
        except ValueError as error:
            return reject("malformed row", str(error))
        if self._lists or isinstance(cells["caption"], list):
            facts["captions"] = captions
        taken[key] = row.location
        image = image._replace(name=row.location) if part.numbered else image
        return Pair(identity, key, part.split, image, captions[0], facts)

    def _facts(self, part: Part, identity: str, cells: Mapping[str, Any]) -> dict[str, Any]:
        facts = dict[str, Any]()
        for name in part.kept:
            kept = cells[_KEPT + name]
            facts[name] = kept if isinstance(kept, str) else json.dumps(kept, default=str)
        if self._with_concepts:
            listed = (part.cuis_by_id or {}).get(identity, cells.get("concepts"))
            cuis = facts["concepts"] = None if listed is None else parse_cuis(listed)
            if self.concept_names:
                facts["concept_names"] = cuis and [self.concept_names.get(cui) for cui in cuis]
        if part.license:
            facts["license"] = part.license_by_id.get(identity)
        return facts

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the `tables` and of where the `images` are, which aren't read."""
        tables, places = hashlib.sha256(), list[list[str]]()
        for part in self.parts:
            columns = tuple(map(part.columns.get, ("caption", "id", "image", "split")))
            more = *part.kept, *(_FURTHER + name for name in part.further)
            read = part.split, columns, part.columns.get("concepts"), *more
            tables.update(repr(read).encode() + b"grouped" * self.grouped)
            for table in filter(None, (part.captions, part.concepts, part.license)):
                tables.update(table.digest().encode())
            path = part.images[0].path
            places.append([part.split, str(path.resolve())])
            if isinstance(part.images[0], Archive):
                places[-1] += [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
        tables.update(json.dumps(self.concept_names, sort_keys=True).encode())
        images = json.dumps(places).encode(errors="surrogateescape")
        return {"tables": tables.hexdigest(), "images": hashlib.sha256(images).hexdigest()}


# ----------------------------------------------------------------------------------- ids and texts


def unfit_id(identity: str, *, is_path: bool = False) -> str | None:
    """What makes an id (without extension) unfit to name an image. None: it is fit.

    `is_path`: it is the path of an image already, and names nothing else.
    """
    if not identity.strip("/\\. "):
        return "no id"
    if not identity.isprintable():
        return f"holds {next(letter for letter in identity if not letter.isprintable())!r}"
    leads_out = not {"", ".", ".."}.isdisjoint(re.split(r"[/\\]", identity))
    return "leads out of the image folder" if leads_out and not is_path else None


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
