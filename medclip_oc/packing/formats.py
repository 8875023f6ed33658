"""Telling the forms of a data set apart by looking, and finding their parts.

| form      | captions                          | images                                         |
|-----------|-----------------------------------|------------------------------------------------|
| kaggle    | {split}_captions.csv              | {split}_images/{split}/ID.jpg                  |
| flat      | {split}_captions.csv              | {split}/ID.jpg or {split}_images/ID.jpg        |
| zenodo    | {split}_captions.csv              | {split}_images.zip                             |
| imageclef | *caption_prediction_{split}*.csv  | *{split}_images/{split}/, {split}/, a zip ...  |
| roco1     | {split}/radiology/captions.txt    | {split}/radiology/images/                      |
| parquet   | {split}-*.parquet: image, image_id, caption, cui                                   |
| table     | one table whose columns the user names                                             |

ROCOv2 is the first three and parquet (Hugging Face); ROCO v1 is roco1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from ..config.packing import MakeShardsConfig
from ..errors import InputError
from .image_store import Archive, Folder
from .sources import SPLIT_WORDS, SPLITS, Part, Source, by_id, parse_split
from .tables import Table

Form = Literal["kaggle", "flat", "zenodo", "imageclef", "roco1", "parquet"]
Concepts = Literal["all", "manual", "none"]


@dataclass(frozen=True)
class _Layout:
    """Where a form has its files, as glob patterns with {split}, best first."""

    captions: tuple[str, ...]
    images: tuple[str, ...]
    """Folders, or zips."""
    concepts: tuple[str, ...]
    manual: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    """Column names of the caption table, where it has no line for them."""


_CAPTIONS, _CONCEPTS = ("{split}_captions.csv",), ("{split}_concepts.csv",)
_MANUAL = ("{split}_concepts_manual.csv",)
_LAYOUTS = {
    "kaggle": _Layout(_CAPTIONS, ("{split}_images/{split}",), _CONCEPTS, _MANUAL),
    "flat": _Layout(_CAPTIONS, ("{split}", "{split}_images"), _CONCEPTS, _MANUAL),
    "zenodo": _Layout(_CAPTIONS, ("{split}_images.zip", "{split}.zip"), _CONCEPTS, _MANUAL),
    "imageclef": _Layout(
        ("*caption_prediction_{split}*.csv",),
        ("*{split}_images/{split}", "*{split}_images", "{split}", "*{split}_images.zip", "images"),
        ("*concept_detection_{split}*.csv",),
        ("*concept_detection_manual_{split}*.csv",),
    ),
    "roco1": _Layout(
        ("{split}/radiology/captions.txt",),
        ("{split}/radiology/images",),
        ("{split}/radiology/cuis.txt",),
        header=("ID", "Caption"),
    ),
}
_ROCOV2 = ("kaggle", "flat", "zenodo")
"""Forms that differ in the place of the images only."""
_PARQUET: tuple[str, ...] = ("{split}-*.parquet", "data/{split}-*.parquet")
_PARQUET += ("{split}.parquet", "data/{split}.parquet")
_LEAVE_OUT = "(to leave {split} out, name the other splits with --splits)"
_MAPPING, _LICENSE = "cui_mapping.csv", "license_information.csv"


def from_settings(config: MakeShardsConfig) -> Source:
    """The source that the settings of make_shards name.

    Raises:
        InputError: none that can be read.
    """
    if config.source is not None:
        form = None if config.format == "auto" else config.format
        return open_source(config.path("source"), config.splits, form, config.concepts)
    assert config.image_column
    assert config.caption_column
    return open_table(
        config.path("table"),
        image_column=config.image_column,
        caption_column=config.caption_column,
        id_column=config.id_column,
        split_column=config.split_column,
        concepts_column=config.concepts_column,
        image_root=config.path("image_root") if config.image_root else None,
        splits=config.splits,
    )


def open_source(
    folder: Path,
    splits: Sequence[str] | None = None,
    form: Form | None = None,
    concepts: Concepts = "all",
) -> Source:
    """The source in a folder.

    Args:
        folder: what holds the files; for Parquet also one file.
        splits: which ones to read. None: train, valid and test.
        form: see the top of this module. None: told by looking.
        concepts: which table of CUIs to join: "all", the "manual" one (checked by hand), or "none".

    Raises:
        InputError: a wrong split name, no known form, or a folder, table or column not there.
    """
    chosen = _check_splits(SPLITS if splits is None else splits)
    if not folder.exists():
        raise InputError(f"{folder}: no such source folder")
    if folder.is_file():
        kind, chosen = "parquet", _splits_of_file(folder, chosen)
    else:
        kind = form or _recognise(folder, chosen)
    if kind == "parquet":
        return Source(kind, [_parquet_part(folder, split, concepts) for split in chosen])
    parts = [_part(folder, split, kind, concepts) for split in chosen]
    names = {}
    if concepts != "none" and (folder / _MAPPING).is_file():
        mapping = Table((folder / _MAPPING,))
        names = by_id(mapping, "CUI", ["Canonical name|name"]).iloc[:, 0].to_dict()
    return Source(kind, parts, names)


def open_table(
    path: Path,
    *,
    image_column: str,
    caption_column: str,
    id_column: str | None = None,
    split_column: str | None = None,
    concepts_column: str | None = None,
    image_root: Path | None = None,
    splits: Sequence[str] | None = None,
) -> Source:
    """A source that is one table with the columns that the user names.

    Args:
        path: .csv, .tsv, .jsonl or .parquet.
        image_column: path of the image, or (Parquet) its bytes.
        caption_column: the text.
        id_column: names the pair. None: the path of the image does.
        split_column: train, valid or test of each row. None: all rows to one split.
        concepts_column: concept ids, ";" between.
        image_root: where image paths start. None: the table's folder.
        splits: which ones to read; without `split_column`, the one that all rows go to. None:
            those that the table has, or train.

    Raises:
        InputError: no such file or column, or `splits` of which none is meant.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    table = Table((path,))
    if splits is None:
        splits = _splits_in(table, split_column) if split_column else ("train",)
    chosen = _check_splits(splits)
    if id_column is None and any(
        isinstance(row.values[0], bytes) for row in islice(table.rows([image_column]), 1)
    ):
        raise InputError(f"{path}: {image_column} holds the images themselves; needs --id-column")
    if not split_column and len(chosen) > 1:
        raise InputError("--splits: a table without --split-column goes to one split; name one")
    root = image_root or path.parent
    if not root.is_dir():
        raise InputError(f"{root}: no such image folder (--image-root)")
    parts = [
        Part(
            split,
            table,
            caption_column,
            id_column,
            image_column=image_column,
            image_root=root,
            split_column=split_column,
            concepts_column=concepts_column,
        )
        for split in chosen
    ]
    return Source("table", parts)


def _check_splits(splits: Sequence[str]) -> tuple[str, ...]:
    wrong = [split for split in splits if split not in SPLITS]
    if wrong or not splits:
        given = ", ".join(wrong) or "none"
        raise InputError(f"--splits: {given}; allowed are {', '.join(SPLITS)}, blanks between")
    return tuple(dict.fromkeys(splits))


def _splits_in(table: Table, column: str) -> list[str]:
    """The splits that a table has rows of, in the usual order."""
    rows = table.rows([column])
    present = {parse_split(table, row.location, column, row.values[0]) for row in rows}
    return [split for split in SPLITS if split in present]


def _recognise(folder: Path, splits: Sequence[str]) -> str:
    """The form of which most is there; of equals, the first of the table above."""
    parts = dict.fromkeys(_LAYOUTS, 0)
    for form, layout in _LAYOUTS.items():
        for split in splits:
            captions = _find(folder, split, layout.captions)
            parts[form] += bool(captions) + bool(captions and _find(folder, split, layout.images))
    best = max(parts, key=lambda form: parts[form])
    if parts[best]:
        return best
    if any(_find(folder, split, _PARQUET) for split in splits):
        return "parquet"
    raise InputError(
        f"{folder}: no known form of data set: no {splits[0]}_captions.csv (ROCOv2), "
        f"{splits[0]}-*.parquet (Hugging Face), *caption_prediction_{splits[0]}*.csv (ImageCLEF) "
        f"or {splits[0]}/radiology/captions.txt (ROCO); for another table use --table"
    )


def _splits_of_file(path: Path, splits: Sequence[str]) -> tuple[str, ...]:
    """The split that a single Parquet file holds: told by its name, or the only one wanted."""
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path}: a folder or a .parquet file is wanted; for a table use --table")
    named = [s for s in splits if any(path.name.startswith(word) for word in SPLIT_WORDS[s])]
    if not named and len(splits) > 1:
        raise InputError(f"{path}: which split is it? Name one with --splits")
    return tuple(named[:1] or splits)


def _find(folder: Path, split: str, patterns: Sequence[str]) -> Path | None:
    """The first thing there that a pattern names, whatever word it has for the split."""
    return next(_matches(folder, split, patterns), None)


def _matches(folder: Path, split: str, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for word in SPLIT_WORDS[split]:
            yield from sorted(folder.glob(pattern.format(split=word)))


def _part(folder: Path, split: str, form: str, concepts: Concepts) -> Part:
    layout = _LAYOUTS[form]
    captions = _find(folder, split, layout.captions)
    if captions is None:
        table = folder / layout.captions[0].format(split=split)
        raise InputError(f"{table}: no such file {_LEAVE_OUT.format(split=split)}")
    # a download may be half extracted: the images of one split in a folder, of another in a zip
    patterns = list(layout.images)
    if form in _ROCOV2:
        patterns += [pattern for name in _ROCOV2 for pattern in _LAYOUTS[name].images]
    images = _find(folder, split, patterns)
    if images is None:
        expected = folder / layout.images[0].format(split=split)
        raise InputError(f"{expected}: no such image folder or zip")
    tables = layout.manual if concepts == "manual" else layout.concepts
    listed = None if concepts == "none" else _find(folder, split, tables)
    if concepts == "manual" and listed is None:
        raise InputError(f"{folder}: no table of manual concepts of {split} (form {form})")
    concept_header = ("ID", "CUIs") if layout.header else None
    license_table = folder / _LICENSE
    return Part(
        split,
        Table((captions,), layout.header),
        "Caption",
        "ID",
        images=Archive(images) if images.suffix == ".zip" else Folder(images),
        concepts=Table((listed,), concept_header) if listed else None,
        license=Table((license_table,)) if license_table.is_file() else None,
    )


def _parquet_part(folder: Path, split: str, concepts: Concepts) -> Part:
    if concepts == "manual":
        raise InputError("--concepts manual: Parquet has one list of concepts; use all or none")
    if folder.is_file():
        files, root = [folder], folder.parent
    else:
        files, root = list(dict.fromkeys(_matches(folder, split, _PARQUET))), folder
    if not files:
        raise InputError(f"{folder}: no {split}-*.parquet {_LEAVE_OUT.format(split=split)}")
    table = Table(tuple(files))
    listed = {name.lower() for name in table.names()} & {"cui", "cuis", "concepts"}
    return Part(
        split,
        table,
        "caption|text",
        "image_id|id",
        image_column="image",
        image_root=root,
        concepts_column=min(listed) if listed and concepts != "none" else None,
    )
