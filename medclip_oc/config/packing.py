"""Settings of tools/make_shards.py. No torch here; a field's help is the docstring under it."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from ..errors import InputError
from .checks import Bound, Count, Settings

Form = Literal["auto", "kaggle", "flat", "zenodo", "imageclef", "roco1", "parquet"]
Concepts = Literal["all", "manual", "none"]
SPLIT_WORDS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "validate", "dev"),
    "test": ("test", "testing"),
}
"""What people call them."""
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SPLIT = Bound("some of train, valid, test, blanks between", lambda word: word.lower() in SPLIT_OF)
# Pillow's own limits: above the first stock readers warn of a decompression bomb, above the second
# they, and we, refuse it
MAX_PIXELS, MOST_PIXELS = 89_478_485, 178_956_970
PIXELS = Bound(f"from 1 to {MOST_PIXELS}", lambda value: 1 <= value <= MOST_PIXELS)


def parse_shares(text: str) -> list[float]:
    """Those in `0.8,0.1,0.1`; []: it isn't three that sum to 1."""
    with suppress(ValueError):
        shares = [float(word) for word in text.split(",")]
        if len(shares) == 3 and math.isclose(sum(shares), 1) and min(shares) >= 0:
            return shares
    return []


SHARES = Bound("three shares that sum to 1, as in 0.8,0.1,0.1", parse_shares)
TABLE = "image_column caption_column id_column split_column concepts_column keep_columns image_root"
SPLITTING = "split_seed stratify_column"
GROUPS = f"group_column study_column split_by {SPLITTING}"
SLICES = Bound("middle, a number, or every:K", re.compile(r"middle|(every:)?[1-9]\d*").fullmatch)
TABLE += " slices axis window"
VERIFY = "verify workers no_decode_check"
PACK = "samples_per_shard resize image_format strip_metadata no_decode_check overwrite "
PACK += "drop_leaks"


@dataclass
class MakeShardsConfig(Settings):
    """Pack radiology images and captions into tar shards."""

    reads = f"source format splits concepts table {TABLE} group_by_image {GROUPS}"
    writes = "out samples_per_shard resize group_salt hash_ids overwrite audit audit_only"

    out: str
    """Shard folder to write."""
    source: str | None = None
    """Folder that holds a data set in a known form; or one Parquet file."""
    format: Form = "auto"
    """Form of the source. auto: told by looking."""
    splits: list[Annotated[str, SPLIT]] | None = None
    """Which splits to pack. null: train, valid and test; of a table those that its column split,
    its files' names or its paths tell, or train."""
    concepts: Concepts = "all"
    """Which concept ids (CUIs) to join. manual: those checked by hand (*_concepts_manual.csv)."""
    table: str | list[str] | None = None
    """Instead of --source: a table (.csv, .tsv, .json, .jsonl, .parquet, .xlsx), one pair a row; or
    several, or a folder of Parquet files."""
    image_column: str | None = None
    """Of the table: path of the image; in Parquet, its bytes will do."""
    caption_column: str | list[str] | None = None
    """Of the table: the caption; of several columns, as in `report,impression`, or of a list in a
    cell, the first text is, and each pair's JSON has all, of which training draws."""
    id_column: str | None = None
    """Of the table: name of the pair. null: the path of the image."""
    split_column: str | None = None
    """Of the table: train, valid or test."""
    concepts_column: str | None = None
    """Of the table: concept ids (CUIs); a list, or text with anything between."""
    keep_columns: list[str] | None = None
    """Of the table: columns whose text goes into each pair's JSON, as in `finding,view`."""
    image_root: str | None = None
    """Where the table's image paths start. null: in the table's folder."""
    slices: Annotated[str, SLICES] | None = None
    """Of a table's volumes (a folder of a DICOM series, .nii, .nii.gz, .dcm): `middle`; so many,
    equally spaced; or `every:K`. Each becomes a pair. null: a .dcm gives its first frame."""
    axis: Literal["axial", "coronal", "sagittal"] | None = None
    """Of NIfTI slices. null: axial."""
    window: Literal["lung", "bone", "brain", "soft", "min-max"] | None = None
    """Of slices: a preset in HU, or from the least to the greatest value. null: the file's own."""
    group_by_image: bool = False
    """Rows with one image become one pair with all their captions, in the place of the first."""
    group_column: str | None = None
    """Which pairs belong together: a column of the table (patients), `dicom:PatientID`, or one of
    license_information.csv. The JSON has a salted hash as `group`; of a licence the text."""
    study_column: str | None = None
    """Likewise `study`, as in `dicom:StudyInstanceUID`."""
    group_salt: str | None = None
    """File of the salt, made if absent: who has it can look names up. null: OUT.salt beside OUT."""
    hash_ids: bool = False
    """Ids, keys and file names become salted hashes; messages and rejects.csv give row numbers."""
    split_by: Annotated[str, SHARES] | None = None
    """For a source without splits: the shares of train, valid and test, as in `0.8,0.1,0.1`. No
    group is in two. splits.csv keeps where each is, also when rows are added."""
    split_seed: int = 0
    """Another one splits another way."""
    stratify_column: str | None = None
    """Of the table: split so that each of its values has these shares, too."""
    samples_per_shard: Count = 1000
    """Pairs per tar."""
    max_pixels: Annotated[int, PIXELS] = MAX_PIXELS
    """Reject images with more pixels than this; at most 178956970."""
    resize: Count | None = None
    """Store larger images with their shorter side at so many pixels, as JPEG of quality 95."""
    image_format: Literal["jpg", "png"] | None = None
    """Store every image as this: others are re-encoded. null: JPEG and PNG stay what they are."""
    strip_metadata: bool = False
    """Drop EXIF, XMP, IPTC, comments, texts, profiles of JPEG and PNG; decodes all, pixels stay."""
    no_decode_check: bool = False
    """Keep ordinary JPEG and PNG files unseen: faster, but damaged and blank ones get in."""
    workers: Count | None = None
    """Processes that read and decode. null: one per CPU core. The shards are the same anyway."""
    overwrite: bool = False
    """Replace all shards that the folder holds, of every split."""
    audit: bool = False
    """Look for copies, leaks between splits, cut captions: audit.json, audit.html in the folder."""
    audit_only: bool = False
    """Write the audit, and no shards."""
    drop_leaks: bool | Literal["groups"] = False
    """Leave out training pairs whose picture is in another of the splits; `groups`: or whose group
    is; implies --audit."""
    audit_arch: str = "ViT-B-16-quickgelu"
    """The model whose tokenizer and context length the audit counts with."""
    verify: bool = False
    """Pack nothing: check all that --out holds; decode it too, unless --no-decode-check."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.splits = [*dict.fromkeys(SPLIT_OF[word.lower()] for word in self.splits or ())] or None
        if self.verify:
            self._refuse("--verify", VERIFY, only=True)
        elif (self.source is None) == (self.table is None):
            raise InputError("--source, --table: give one of them")
        elif self.table is not None and not (self.image_column and self.caption_column):
            raise InputError("--table: needs --image-column and --caption-column")
        elif self.source is not None:
            self._refuse("--source", TABLE)
        else:
            self._refuse("--table", "format concepts")
        self._refuse("no --slices", "" if self.slices else "axis window")
        if self.slices and (self.audit or self.audit_only or self.drop_leaks):
            raise InputError("--audit, --drop-leaks: of no use with --slices: they know no volumes")
        if self.audit_only:
            self._refuse("--audit-only", PACK)
        mode, names = ("--split-by", "splits") if self.split_by else ("no --split-by", SPLITTING)
        self._refuse(mode, names)
        if self.drop_leaks and self.splits and not (self.splits[1:] and "train" in self.splits):
            raise InputError("--drop-leaks: needs train and another split to compare it with")

    def path(self, name: str, text: str = "") -> Path:
        """A field that is a path, or one of its paths; InputError: no file system can have it."""
        text = text or getattr(self, name)
        if not text.strip():
            raise InputError(f"{self.option(name)}: is empty; give a path")
        try:
            path = Path(text).expanduser()
            path.exists()
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise InputError(f"{self.option(name)} {text[:60]!r}: {reason}") from None
        return path

    def _refuse(self, mode: str, names: str, only: bool = False) -> None:
        """Refuse settings that a mode doesn't use (or, with `only`, all but those it uses)."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        given.remove("out")  # has no default
        if wrong := [self.option(name) for name in given if (name in names.split()) != only]:
            raise InputError(f"{', '.join(wrong)}: of no use with {mode}")
