"""Telling the forms of a data set apart by looking, and finding their parts: `_LAYOUTS`.

ROCOv2 is kaggle, flat, zenodo and parquet (Hugging Face); ROCO v1 is roco1; imagefolder is Hugging
Face's too; listed is one table for all splits; beside has a text file with each image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..config.packing import SPLIT_WORDS, Concepts, Form, MakeShardsConfig
from ..errors import InputError
from ..runtime.progress import print_line
from .groups import Grouped
from .image_store import Archive, Folder
from .sources import FACTS, SPLITS, Part, Source
from .tables import Row, Table, by_id, split_told


class _Layout(NamedTuple):
    """Where a form has its files, as glob patterns with {split}, best first."""

    captions: Sequence[str]
    images: Sequence[str] = ()  # folders, or zips; none where they are in the table
    concepts: Sequence[str] = ()
    manual: Sequence[str] = ()
    header: bool = True  # whether the tables have a line of column names
    columns: Mapping[str, str] = {"id": "ID", "caption": "Caption"}  # of the captions, as in `Part`


_PARQUET_FOLDERS = ("", "data/", "default/")
_USUAL = {"image": "file_name|filename|image|path|image_id|id", "caption": "caption|text|report"}
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
        header=False,
    ),
    "parquet": _Layout(
        [f"{at}{{split}}{end}.parquet" for end in ("-*", "", "/*") for at in _PARQUET_FOLDERS]
    ),
    "imagefolder": _Layout(("{split}/metadata.[cj]*",), ("{split}",), columns=_USUAL),
    "listed": _Layout(("captions.csv", "metadata.csv", "metadata.jsonl"), columns=_USUAL),
}
_ROCOV2 = ("kaggle", "flat", "zenodo")  # forms that differ in the place of the images only
_NO_FORM = (
    "no captions there: no {0}_captions.csv, {0}-*.parquet, {0}/metadata.csv, captions.csv or "
    "{0}/X.txt by X.jpg; a table: --table (images alone: zeroshot --images; tars: packed already)"
)
_COLUMNS = ("id", "caption", "image", "split", "concepts")
_MAPPING, _LICENSE = "cui_mapping.csv", "license_information.csv"


@dataclass(frozen=True)
class TextFiles(Table):
    """Captions in files that are called as their images are: `x.txt` is that of `x.jpg`."""

    home: Path = Path()  # where the paths of the images start

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """As of a table with the columns image, which is its path, and caption."""
        for path in self.paths:
            try:
                text, problem = path.read_text("utf-8-sig"), None
            except (OSError, UnicodeDecodeError):
                text, problem = "", "unreadable, or not UTF-8"
            name = path.relative_to(self.home).with_suffix("").as_posix()
            cells = {"image": name, "caption": text}
            yield Row(f"{name}.txt", name, [cells[each] for each in columns], problem)


def from_settings(config: MakeShardsConfig) -> Source:
    """The source that the settings of make_shards name; InputError: none that can be read."""
    if config.source is not None:
        how = config.splits, config.format, config.concepts
        source = open_source(config.path("source"), *how)
    else:
        named = ((what, getattr(config, f"{what}_column")) for what in _COLUMNS)
        columns = {what: column for what, column in named if column}
        root = config.path("image_root") if config.image_root else None
        texts = config.table if isinstance(config.table, list) else [config.table or ""]
        paths = [config.path("table", text) for text in texts]
        columns["caption"], *further = _names(config.caption_column)
        more: dict[str, Any] = {"splits": config.splits, "kept": _names(config.keep_columns)}
        source = open_table(paths, columns, image_root=root, further=further, **more)
    source = replace(source, grouped=config.group_by_image)
    told = config.group_column, config.study_column, config.split_by
    if config.drop_leaks == "groups" and not any([*told, *(it.license for it in source.parts)]):
        raise InputError("--drop-leaks groups: no pair has a group; --group-column names it")
    asked = any([*told, config.hash_ids, config.group_salt])
    return Grouped(source, config) if asked else source


def _names(given: str | Sequence[str] | None) -> list[str]:
    """Columns that the user names, in several words or with commas between."""
    words = [given] if isinstance(given, str) else given or ()
    return [name.strip() for word in words for name in word.split(",")]


def open_source(
    folder: Path,
    splits: Sequence[str] | None = None,
    form: Form = "auto",
    concepts: Concepts = "all",
) -> Source:
    """The source in a folder, or in one Parquet file; InputError: none, or a part of it is missing.

    `splits` None: train, valid and test. `form` auto: told by looking. `concepts`: which table of
    CUIs to join: all, the manual one (checked by hand), or none.
    """
    chosen = splits or SPLITS
    if folder.is_file():
        split = _split_of_file(folder, chosen)
        return Source("parquet", [_parquet_part([folder], folder.parent, split, concepts)])
    if not folder.exists():
        raise InputError(f"{folder}: no such source folder (patterns aren't expanded)")
    kind = _recognise(folder, chosen) if form == "auto" else form
    if not kind:
        inner = [each for each in sorted(folder.glob("*/")) if _recognise(each, chosen)]
        texts = () if inner else sorted(folder.rglob("*.[tT][xX][tT]"))
        beside = TextFiles(tuple(texts), ("image", "caption"), folder)
        if any(map(Folder(folder).find, (row.name for row in beside.rows([])))):
            columns = {"image": "image", "caption": "caption"}
            return open_table(beside, columns, splits=splits)
        if len(inner) != 1:
            there = f"data sets in {', '.join(each.name for each in inner)}; name one of these"
            raise InputError(f"{folder}: {there if inner else _NO_FORM.format(chosen[0])}")
        print_line(f"{folder}: the data set is in {inner[0].name}, one level down")
        return open_source(inner[0], splits, form, concepts)
    if kind == "listed":
        table = next(_matches(folder, "train", _LAYOUTS[kind].captions))
        return open_table(table, _USUAL, splits=splits)
    parts = [_part(folder, split, kind, concepts) for split in chosen]
    names = {}
    if kind != "parquet" and concepts != "none" and (folder / _MAPPING).is_file():
        mapping = Table((folder / _MAPPING,))
        names = by_id(mapping, "CUI", ["Canonical name|name"]).iloc[:, 0].to_dict()
    return Source(kind, parts, names)


def open_table(
    paths: Path | Sequence[Path] | TextFiles,
    columns: Mapping[str, str],
    *,
    image_root: Path | None = None,
    splits: Sequence[str] | None = None,
    kept: Sequence[str] = (),
    further: Sequence[str] = (),
) -> Source:
    """A source that is one table (a file, files, or a folder of Parquet files), with the columns
    that the user names: see `Part`; image and caption are among them. InputError: one is absent.

    Image paths start in `image_root`, else in the table's folder, or in `images` there. Without a
    split column, one so called tells it, or the files' names, or the images' folders; where nothing
    does, all rows go to the one in `splits`, or to train. `kept` goes into each pair's facts,
    `further` has more captions.
    """
    files, named = list[Path](), dict[str, list[Path]]()
    paths = [paths] if isinstance(paths, Path) else paths
    if isinstance(paths, TextFiles):
        table, home = cast(Table, paths), paths.home
    else:
        for path in paths:
            files += sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            if not (files and files[-1].is_file()):
                raise InputError(f"{path}: no such table, or folder of .parquet files (no pattern)")
        table, home = Table(tuple(files)), paths[0] if paths[0].is_dir() else paths[0].parent
        for path in files:
            words = re.split("[^a-z]+", path.stem.lower())
            inside = path.parent.name if files[1:] or path not in paths else ""
            named.setdefault(split_told([inside, *words]) or "train", []).append(path)
    if own := ", ".join(name for name in kept if name in FACTS.split()):
        raise InputError(f"--keep-columns: {own}: each pair's JSON has its own; rename the column")
    next(table.rows([*columns.values(), *kept, *further]), None)  # each of them is there
    if not (root := image_root or home).is_dir():
        raise InputError(f"{root}: no such image folder (--image-root); a zip is to be unpacked")
    images = [Folder(at) for at in dict.fromkeys([root, home, home / "images"]) if at.is_dir()]
    called = [name for name in table.names() if name.lower() in ("split", "subset")]
    asked, folders = [columns["split"]] if "split" in columns else called, set[str | None]()
    told = {name: each for name in asked if (each := _told(table, name)) - {None}}
    if not (told or "split" in columns) and set(named) <= {"train"}:
        folders = _told(table, columns["image"])
        if len(folders) > 1 and None not in folders:
            told = {columns["image"]: folders}
    column, there = next(iter(told.items()), (columns.get("split"), {*named}))
    chosen = splits or [split for split in SPLITS if split in there] or ["train"]
    tables = dict.fromkeys(chosen, table)
    if column:
        columns = {**columns, "split": column}
    elif len(named) > 1:
        tables = {split: Table(tuple(each)) for split, each in named.items()}
        if absent := [split for split in chosen if split not in named]:
            raise InputError(f"--splits: {absent[0]}: no table's name tells this split")
    elif len(chosen) > 1:
        raise InputError("--splits: a table without --split-column goes to one split; name one")
    else:
        why = f"its column {called[0]} has none" if called else ""
        why = why or "some images lie in others" * bool(folders - {None, *chosen})
        if why := why or "as it is called" * ([*named] == [*chosen] != ["train"]):
            print_line(f"warning: {table}: all rows go to the split {chosen[0]} ({why})")
    kept_as = {name: name for name in kept}
    part = partial(Part, columns=columns, images=images, kept=kept_as, further=further)
    return Source("table", [part(split, tables[split]) for split in chosen])


def _told(table: Table, column: str) -> set[str | None]:
    """The splits that the cells of a column tell; None: one tells none."""
    told = set[str | None]()
    for row in table.rows([column]):
        if not isinstance(row.values[0], str):
            return {None}  # images, which aren't to be read for this
        told.add(split_told(re.split(r"[/\\]", row.values[0])))
    return told


def _recognise(folder: Path, splits: Sequence[str]) -> str:
    """The form of which most is there; of equals, the first. Empty: none."""
    there = dict.fromkeys(_LAYOUTS, 0)
    for form, layout in _LAYOUTS.items():
        for split in splits:
            if _find(folder, split, layout.captions):
                there[form] += 1 + bool(_find(folder, split, layout.images))
    best = max(there, key=there.__getitem__)
    return best if there[best] else ""


def _split_of_file(path: Path, splits: Sequence[str]) -> str:
    """The split that a single Parquet file holds: told by its name, or the only one wanted."""
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path}: a folder or a .parquet file is wanted; unpack a zip; or --table")
    named = [split for split in splits if path.name.startswith(SPLIT_WORDS[split])]
    if not named and len(splits) > 1:
        raise InputError(f"{path}: which split is it? Name one with --splits")
    return (named or splits)[0]


def _find(folder: Path, split: str, patterns: Sequence[str]) -> Path | None:
    """The first thing there that a pattern names, whatever word it has for the split."""
    return next(_matches(folder, split, patterns), None)


def _matches(folder: Path, split: str, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for word in SPLIT_WORDS[split]:
            yield from sorted(folder.glob(pattern.format(split=word)))


def _part(folder: Path, split: str, form: str, concepts: Concepts) -> Part:
    layout, license = _LAYOUTS[form], folder / _LICENSE
    captions = list(dict.fromkeys(_matches(folder, split, layout.captions)))
    if not captions:
        expected = folder / layout.captions[0].format(split=split)
        how = f"(to leave {split} out, name the other splits with --splits)"
        raise InputError(f"{expected}: no such file {how}")
    if form == "parquet":
        return _parquet_part(captions, folder, split, concepts)
    # a download may be half extracted: the images of one split in a folder, of another in a zip
    others = [pattern for name in _ROCOV2 for pattern in _LAYOUTS[name].images]
    images = _find(folder, split, [*layout.images, *(others if form in _ROCOV2 else ())])
    if images is None:
        expected = folder / layout.images[0].format(split=split)
        raise InputError(f"{expected}: no such image folder or zip")
    tables = {"all": layout.concepts, "manual": layout.manual, "none": ()}[concepts]
    listed = _find(folder, split, tables)
    if concepts == "manual" and listed is None:
        missing = f"no table of manual concepts of {split} (form {form})"
        raise InputError(f"{folder}: {missing}; --concepts all or none does without")
    table = Table((captions[0],), None if layout.header else ("ID", "Caption"))
    return Part(
        split,
        table,
        layout.columns,
        images=[Archive(images) if images.suffix == ".zip" else Folder(images)],
        concepts=Table((listed,), None if layout.header else ("ID", "CUIs")) if listed else None,
        license=Table((license,)) if license.is_file() else None,
    )


def _parquet_part(files: Sequence[Path], root: Path, split: str, concepts: Concepts) -> Part:
    if concepts == "manual":
        raise InputError("--concepts manual: Parquet has one list of concepts; use all or none")
    table = Table(tuple(files))
    columns = {"id": "image_id|id", "caption": "caption|text", "image": "image"}
    names = {name.lower() for name in table.names()}
    if names.isdisjoint({"image_id", "id"}):
        del columns["id"]
    if (listed := names & {"cui", "cuis", "concepts"}) and concepts != "none":
        columns["concepts"] = min(listed)
    return Part(split, table, columns, [Folder(root)])
