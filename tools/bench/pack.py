"""Packing against what it can't do without: decoding the images, or copying their bytes.

    python tools/bench.py pack --source FOLDER [--repeat N] [--cases decode copy]

- decode: packing, every image checked, against a bare loop that opens each of the same files with
  Pillow and converts it to RGB, in as many processes. Both count the start of their processes.
- copy: packing without the decode check against webdataset's ShardWriter, one process, copying the
  same files with their captions and ids. Only we hash, index, and wait for the disk: `fsync_s` are
  the seconds of that wait (median of the rounds), which are part of our time. Our workers are
  threads here.
All pairs of the source are read once beforehand into a temporary folder, from where every side
reads them in the same order, warm. All sides write to one disk, and what they wrote is removed
after each round, untimed.
"""

import csv
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import Comparison, compare

from medclip_oc.errors import InputError

CASES = ("decode", "copy")


@dataclass
class Config:
    """What to pack, and how often."""

    source: str
    """Folder of a data set in any form that make_shards.py knows."""
    repeat: int = 1
    """Each pair counts so many times, under ids of its own."""
    cases: list[str] = field(default_factory=lambda: list(CASES))
    """What to measure: decode, copy."""
    workers: int | list[int] = field(default_factory=lambda: [1, 2])
    """Processes of a packing, one case each."""
    rounds: int = 5
    """Paired runs that count, after one that doesn't."""
    samples_per_shard: int = 1000
    """Pairs per tar, for both sides."""
    folder: str | None = None
    """Where to write, in a temporary folder that is removed. null: the system's place for those."""


def run(config: Config) -> Iterator[Comparison]:
    """Measure every case.

    Raises:
        InputError: an option out of range, or what `open_source` raises.
    """
    _check(config)
    measures = {"decode": _decode_case, "copy": _copy_case}
    with tempfile.TemporaryDirectory(prefix="bench_pack_", dir=config.folder) as name:
        folder = Path(name)
        table, paths = _gather(config, folder)
        for case in dict.fromkeys(config.cases):
            for workers in _workers(config):
                yield measures[case](config, folder, table, paths, workers)


def _workers(config: Config) -> list[int]:
    return [config.workers] if isinstance(config.workers, int) else config.workers


def _check(config: Config) -> None:
    if wrong := [case for case in config.cases if case not in CASES]:
        raise InputError(f"--cases {' '.join(wrong)}: allowed are {', '.join(CASES)}")
    for name in ("repeat", "rounds", "samples_per_shard"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: at least 1")
    if min(_workers(config), default=0) < 1:
        raise InputError(f"--workers {config.workers}: one number or more, each at least 1")
    if config.folder and not Path(config.folder).is_dir():
        raise InputError(f"--folder {config.folder}: no such folder")


# ------------------------------------------------------------------------------- the same for both


def _gather(config: Config, folder: Path) -> tuple[Path, list[Path]]:
    """A table (id, image, caption) of all pairs, repeated; and the image of each row."""
    from medclip_oc.packing.formats import open_source
    from medclip_oc.packing.sources import Pair

    source = open_source(Path(config.source).expanduser())
    images = folder / "images"
    images.mkdir()
    rows: list[tuple[str, Path, str]] = []
    for record in (record for split in source.splits for record in source.records(split)):
        if isinstance(record, Pair):
            path = images / f"{record.split}_{record.key}{Path(record.image.name).suffix}"
            path.write_bytes(record.image.read())
            rows.append((f"{record.split}_{record.key}", path, record.caption))
    every = [
        (f"{key}_{turn}", path, caption)
        for turn in range(config.repeat)
        for key, path, caption in rows
    ]
    return _write_table(folder / "table.csv", every), [path for _, path, _ in every]


def _write_table(path: Path, rows: list[tuple[str, Path, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "image", "caption"), *rows])
    return path


def _pack(table: Path, out: Path, workers: int, samples_per_shard: int, check: bool) -> None:
    """Ours."""
    from medclip_oc.packing.formats import open_table
    from medclip_oc.packing.pack import PackOptions, pack

    source = open_table(table, {"id": "id", "image": "image", "caption": "caption"})
    pack(source, out, PackOptions(samples_per_shard, decode_check=check), workers=workers)


# ------------------------------------------------------------------------------------------- cases


def _decode_case(
    config: Config, folder: Path, table: Path, paths: list[Path], workers: int
) -> Comparison:
    """Packing with the decode check against decoding alone."""
    out = folder / "ours"
    return compare(
        "pack",
        f"decode check on, {len(paths)} images, {_processes(workers)}",
        partial(_pack, table, out, workers, config.samples_per_shard, True),
        partial(_decode_all, paths, workers),
        peer=f"Pillow, bare decode loop, {_processes(workers)}",
        rounds=config.rounds,
        items=len(paths),
        item="images",
        before=partial(_clean, out),
    )


def _decode_all(paths: list[Path], workers: int) -> None:
    if workers == 1:
        for path in paths:
            _decode(path)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(_decode, paths, chunksize=16):
            pass


def _decode(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB")


def _copy_case(
    config: Config, folder: Path, table: Path, paths: list[Path], workers: int
) -> Comparison:
    """Packing without the decode check against writing the same shards by webdataset."""
    out, waits, waited = folder / "ours", list[float](), 0.0
    fsync = os.fsync

    def timed_fsync(descriptor: Any) -> None:
        nonlocal waited
        start = time.perf_counter()
        fsync(descriptor)
        waited += time.perf_counter() - start

    def ours() -> None:
        nonlocal waited
        waited = 0.0
        os.fsync = timed_fsync  # type: ignore[assignment]
        try:
            _pack(table, out, workers, config.samples_per_shard, False)
        finally:
            os.fsync = fsync
        waits.append(waited)

    found = compare(
        "pack",
        f"decode check off, {len(paths)} images, {workers} worker" + ("s" if workers > 1 else ""),
        ours,
        partial(_copy, table, out, config.samples_per_shard),
        peer="webdataset ShardWriter, 1 process",
        rounds=config.rounds,
        items=len(paths),
        item="images",
        before=partial(_clean, out),
    )
    found.extra["fsync_s"] = statistics.median(waits[-config.rounds :])
    return found


def _copy(table: Path, out: Path, samples_per_shard: int) -> None:
    """The peer: each row's file, caption and facts, handed to a ShardWriter."""
    from webdataset import ShardWriter

    out.mkdir()
    pattern = str(out / "train-%06d.tar")
    with (
        table.open(encoding="utf-8", newline="") as file,
        ShardWriter(pattern, maxcount=samples_per_shard, verbose=0) as sink,
    ):
        for row in csv.DictReader(file):
            path = Path(row["image"])
            sample = {"__key__": row["id"], path.suffix[1:]: path.read_bytes()}
            sample |= {"txt": row["caption"], "json": {"id": row["id"], "split": "train"}}
            sink.write(sample)


def _clean(out: Path) -> None:
    """Before each run: no old output, and no write of the other side still underway."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def _processes(workers: int) -> str:
    return f"{workers} process" + ("es" if workers > 1 else "")
