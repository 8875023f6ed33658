"""Pack radiology images and captions into tar shards.

    python tools/make_shards.py --source ROCOv2/ --out shards/rocov2
    python tools/make_shards.py --table pairs.csv --image-column path --caption-column report \\
        --out shards/mine
    python tools/make_shards.py --source ROCOv2/ --out shards/rocov2 --audit-only
    python tools/make_shards.py --verify --out shards/rocov2

A source is ROCOv2 as Kaggle, Zenodo or Hugging Face give it, ImageCLEFmedical, ROCO v1, or any
table with a column of image paths and one of captions. What is written, and how it is read again:
shards/README.md. Every row that can't be packed stands in rejects.csv with the reason. A packing
that was killed goes on when the same command is given again.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime import command

if TYPE_CHECKING:
    from medclip_oc.audit.audit import Audit
    from medclip_oc.packing.sources import Source

MAX_PIXELS = 89_478_485  # images.MAX_PIXELS, without importing it for --help
MOST_PIXELS = 178_956_970  # Pillow refuses more, whatever it is told
TABLE_OPTIONS = (
    *("image_column", "caption_column", "id_column", "split_column", "concepts_column"),
    "image_root",
)
VERIFY_OPTIONS = ("verify", "workers", "no_decode_check")
PACK_OPTIONS = ("samples_per_shard", "resize", "no_decode_check", "overwrite", "drop_leaks")


@dataclass
class MakeShardsConfig:
    """What to pack, where to, and how."""

    out: str
    """Shard folder to write."""
    source: str | None = None
    """Folder that holds a data set in a known form; or one Parquet file."""
    format: Literal["auto", "kaggle", "flat", "zenodo", "imageclef", "roco1", "parquet"] = "auto"
    """Form of the source. auto: told by looking."""
    splits: list[str] | None = None
    """Which splits to pack. null: train, valid and test; of a table those that it has, or train
    where it has no --split-column."""
    concepts: Literal["all", "manual", "none"] = "all"
    """Which concept ids (CUIs) to join. manual: those checked by hand (*_concepts_manual.csv)."""
    table: str | None = None
    """Instead of --source: a table (.csv, .tsv, .jsonl, .parquet), one pair a row."""
    image_column: str | None = None
    """Of the table: path of the image; in Parquet, its bytes will do."""
    caption_column: str | None = None
    """Of the table: the caption."""
    id_column: str | None = None
    """Of the table: name of the pair. null: the path of the image."""
    split_column: str | None = None
    """Of the table: train, valid or test."""
    concepts_column: str | None = None
    """Of the table: concept ids, ";" between."""
    image_root: str | None = None
    """Where the table's image paths start. null: in the table's folder."""
    samples_per_shard: int = 1000
    """Pairs per tar."""
    max_pixels: int = MAX_PIXELS
    """Reject images with more pixels than this; at most 178956970."""
    resize: int | None = None
    """Store larger images with their shorter side at so many pixels, as JPEG of quality 95."""
    no_decode_check: bool = False
    """Keep ordinary JPEG and PNG files unseen: faster, but damaged and blank ones get in."""
    workers: int | None = None
    """Processes that read and decode. null: one per CPU core. The shards are the same anyway."""
    overwrite: bool = False
    """Replace all shards that the folder holds, of every split."""
    audit: bool = False
    """Look for copies, leaks between splits, cut captions: audit.json, audit.html in the folder."""
    audit_only: bool = False
    """Write the audit, and no shards."""
    drop_leaks: bool = False
    """Leave out training pairs whose picture is in another of the splits; implies --audit."""
    audit_arch: str = "ViT-B-16-quickgelu"
    """The model whose tokenizer and context length the audit counts with."""
    verify: bool = False
    """Pack nothing: read all that --out holds again, and say what isn't as it was packed. With
    --no-decode-check the images are compared, not decoded."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "max_pixels", "resize", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{option(name)} {value}: at least 1")
        if self.max_pixels > MOST_PIXELS:
            raise InputError(f"--max-pixels {self.max_pixels}: at most {MOST_PIXELS}")
        if self.verify:
            self._refuse("--verify", *VERIFY_OPTIONS, only=True)
        elif (self.source is None) == (self.table is None):
            raise InputError("--source, --table: give one of them")
        elif self.source is not None:
            self._refuse("--source", *TABLE_OPTIONS)
        else:
            self._refuse("--table", "format", "concepts")
        if self.audit_only:
            self._refuse("--audit-only", *PACK_OPTIONS)
        if self.drop_leaks and self.splits and not (self.splits[1:] and "train" in self.splits):
            raise InputError("--drop-leaks: needs train and another split to compare it with")

    def _refuse(self, mode: str, *names: str, only: bool = False) -> None:
        """Refuse settings that a mode doesn't use (or, with `only`, all but those it uses)."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        given.remove("out")  # has no default
        if wrong := [option(name) for name in given if (name in names) != only]:
            raise InputError(f"{', '.join(wrong)}: of no use with {mode}")


def main(config: MakeShardsConfig) -> None:
    """Pack, and print the closing table."""
    from medclip_oc.packing.pack import PackOptions, check_folder, pack
    from medclip_oc.runtime.workers import cores

    if config.verify:
        verify_folder(config)
        return
    source = find_source(config)
    options = PackOptions(
        config.samples_per_shard,
        decode_check=not config.no_decode_check,
        max_pixels=config.max_pixels,
        resize=config.resize,
        drop_leaks=config.drop_leaks,
    )
    out = folder("--out", config.out)
    if config.source and out.resolve() == folder("--source", config.source).resolve():
        raise InputError("--out: the source itself; the shards need a folder of their own")
    workers = config.workers or cores()
    if not config.audit_only:
        check_folder(out, options, overwrite=config.overwrite)  # before an audit takes its time
    source, audit = audited(source, out, config, workers)
    if config.audit_only:
        return
    try:
        report = pack(source, out, options, workers=workers, overwrite=config.overwrite)
    except WorkError:
        if audit:  # it may tell why
            audit.write(out)
        raise
    if audit:
        audit.write(out)
    print(report.table())
    print(report.closing(config.out, source.form))


def verify_folder(config: MakeShardsConfig) -> None:
    """Print what is damaged, and how much was looked at.

    Raises:
        WorkError: something is damaged.
    """
    from medclip_oc.packing.verify import verify
    from medclip_oc.runtime.workers import cores

    workers, out = config.workers or cores(), folder("--out", config.out)
    found = verify(out, workers=workers, decode=not config.no_decode_check)
    for damage in found.damages:
        print(damage)
    looked = f"{found.shards:,} shards, {found.samples:,} samples, {found.bytes / 1e6:,.1f} MB"
    if found.damages:
        raise WorkError(f"{config.out}: damaged: {len(found.damages)} findings in {looked}")
    print(f"{config.out}: {looked}: all well")


def audited(
    source: "Source", out: Path, config: MakeShardsConfig, workers: int
) -> tuple["Source", "Audit | None"]:
    """Audit a source, if that is wanted, and print what was found.

    Returns:
        What is to be packed, and the audit. With --audit-only it is written; else that is for the
        caller: packing may have to refuse or clear the folder first.
    """
    if not (config.audit or config.audit_only or config.drop_leaks):
        return source, None
    if out.exists() and not out.is_dir():  # rather now than after the work
        raise InputError(f"{out}: not a folder")
    from medclip_oc.audit.audit import audit
    from medclip_oc.audit.hashing import require_libraries
    from medclip_oc.audit.leaks import Without

    require_libraries()  # before torch is imported
    from medclip_oc.models.factory import token_counter

    try:
        counter = token_counter(config.audit_arch)
    except (InputError, WorkError) as error:
        raise type(error)(str(error).replace("model.arch", "--audit-arch")) from None
    found = audit(
        source,
        arch=config.audit_arch,
        token_counter=counter,
        workers=workers,
        max_pixels=config.max_pixels,
    )
    print(found.summary())
    if config.audit_only:
        found.write(out)
        print(f"{out / 'audit.html'}: the page; audit.json has every finding")
    return (Without(source, found.dropped) if config.drop_leaks else source), found


def find_source(config: MakeShardsConfig) -> "Source":
    """The source that the options name.

    Raises:
        InputError: none that can be read.
    """
    from medclip_oc.packing import formats

    if config.source is not None:
        form = None if config.format == "auto" else config.format
        where = folder("--source", config.source)
        return formats.open_source(where, config.splits, form, config.concepts)
    if not config.image_column or not config.caption_column:
        raise InputError("--table: needs --image-column and --caption-column")
    assert config.table is not None
    return formats.open_table(
        folder("--table", config.table),
        image_column=config.image_column,
        caption_column=config.caption_column,
        id_column=config.id_column,
        split_column=config.split_column,
        concepts_column=config.concepts_column,
        image_root=folder("--image-root", config.image_root) if config.image_root else None,
        splits=config.splits,
    )


def folder(name: str, given: str) -> Path:
    """A path as the user gave it.

    Raises:
        InputError: none that a file system can have.
    """
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name} {given[:60]!r}: {getattr(error, 'strerror', error)}") from None
    if not given.strip():
        raise InputError(f"{name}: is empty; a path is wanted")
    return path


def option(name: str) -> str:
    """A setting as the command line has it."""
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    command.run(
        main,
        MakeShardsConfig,
        prog="make_shards.py",
        description="Pack radiology images and captions into tar shards.",
    )
