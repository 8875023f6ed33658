"""Packing against what it can't do without: decoding the images, or copying their bytes.

    python tools/bench.py pack --source FOLDER [--repeat N] [--cases decode copy]
    python tools/bench.py pack --cases series

- decode: packing, every image checked, against a bare loop that opens each of the same files with
  Pillow and converts it to RGB, in as many processes. Both count the start of their processes.
- copy: packing without the decode check against webdataset's ShardWriter, one process, copying the
  same files with their captions and ids. Only we hash, index, and wait for the disk. Our workers
  are threads here.
- series: `--slices every:1` of a made-up CT series in each transfer syntax, one process, against
  a bare pydicom loop that decodes the same files.
All pairs of the source are read once beforehand into a temporary folder, from where every side
reads them in the same order, warm. All sides write to one disk, and what they wrote is removed
after each round, untimed. TMPDIR names another disk.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pairs import gather, pack_table, write_table
from phantom_pictures import LEVELS, organ_masks, smooth_noise
from side_by_side import Comparison, compare

from medclip_oc.config.checks import Bound, Count, Settings
from medclip_oc.errors import InputError
from medclip_oc.runtime.extras import needed
from medclip_oc.runtime.workers import ordered_map

CASES = ("decode", "copy", "series")
Case = Annotated[str, Bound("decode, copy or series", CASES.__contains__)]
SYNTAXES = ["ExplicitVRLittleEndian", "RLELossless", "JPEGLosslessProcess14_1"]  # GDCM's names
SYNTAXES += ["JPEGLSLossless", "JPEG2000Lossless"]


@dataclass
class Config(Settings):
    """What to pack, and how often."""

    source: str | None = None
    """Folder of a data set in any form that make_shards.py knows; the case series needs none."""
    repeat: Count = 1
    """Each pair counts so many times, under ids of its own."""
    cases: list[Case] = field(default_factory=lambda: list(CASES))
    """What to measure: decode, copy, series."""
    workers: Count | list[Count] = field(default_factory=lambda: [1, 2])
    """Processes of a packing, one case each."""
    slices: Count = 60
    """Of a series."""
    rounds: Count = 5
    """Paired runs that count, after one that doesn't."""
    samples_per_shard: Count = 1000
    """Pairs per tar, for both sides."""


def run(config: Config) -> Iterator[Comparison]:
    """Measure every case. InputError: no source, or what `open_source` raises."""
    if not config.source and {*config.cases} != {"series"}:
        raise InputError("--source: the cases decode and copy need one")
    numbers = [config.workers] if isinstance(config.workers, int) else config.workers
    with tempfile.TemporaryDirectory(prefix="bench_pack_") as name:
        folder = Path(name)
        if config.source:
            table, paths = gather(config.source, config.repeat, folder)
        for case in dict.fromkeys(config.cases):
            if case == "series":
                yield from _series_cases(config, folder)
                continue
            for workers in numbers:
                yield _images_case(case, config, table, paths, workers)


# ------------------------------------------------------------------------------------------- cases


def _images_case(
    case: str, config: Config, table: Path, paths: list[Path], workers: int
) -> Comparison:
    """Packing with the decode check against decoding alone; or without, against webdataset."""
    out, size, check = table.with_name("ours"), config.samples_per_shard, case == "decode"
    peers: dict[str, tuple[str, Callable[[], None]]] = {
        "decode": ("Pillow, bare decode loop", partial(_decode_all, paths, workers)),
        "copy": ("webdataset ShardWriter", partial(_copy, table, out, size)),
    }
    name, theirs = peers[case]
    how: dict[str, Any] = {"samples_per_shard": size, "decode_check": check}
    return compare(
        "pack",
        f"decode check {'on' if check else 'off'}, {len(paths)} images, workers: {workers}",
        partial(pack_table, table, out, workers, **how),
        theirs,
        peer=f"{name}, processes: {workers if check else 1}",
        rounds=config.rounds,
        items=len(paths),
        item="images",
        before=partial(_clean, out),
    )


def _decode_all(paths: list[Path], workers: int) -> None:
    for _ in ordered_map(_decode, paths, workers, batch=16):
        pass


def _decode(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB")


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


def _series_cases(config: Config, folder: Path) -> Iterator[Comparison]:
    """Packing every slice, against decoding alone, by transfer syntax."""
    from pydicom import dcmread

    out, options = folder / "ours", {"samples_per_shard": config.samples_per_shard}
    for series in _write_series(folder, config.slices):
        paths = [*series.iterdir()]
        table = write_table(folder / "series.csv", [(series.name, series, "caption")])
        yield compare(
            "pack",
            f"--slices every:1, {series.name}, {len(paths)} slices of 512 x 512",
            partial(pack_table, table, out, slices="every:1", **options),
            lambda: [dcmread(path).pixel_array for path in paths],  # noqa: B023
            peer="pydicom, bare decode loop",
            rounds=config.rounds,
            before=partial(_clean, out),
        )


def _write_series(folder: Path, count: int) -> list[Path]:
    """A folder for each of SYNTAXES, of so many slices of a chest, with noise of 15 HU."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    gdcm, folders = needed("gdcm", "dicom"), [folder / syntax for syntax in SYNTAXES]
    for each in folders:
        each.mkdir()
    rng, (y, x) = np.random.default_rng(0), np.mgrid[-1:1:512j, -1:1:512j]
    values = np.zeros(x.shape)  # HU + 1024
    for thing, mask in organ_masks("lung", "ct", x, y):
        values += mask * (2600 * LEVELS["ct"][thing] - values)
    for n in range(count):
        ct: Any = dcmread(str(get_testdata_file("CT_small.dcm")))
        ct.Rows, ct.Columns, ct.ImagePositionPatient = 512, 512, [0, 0, n]
        ct.WindowCenter, ct.WindowWidth = 40, 400
        ct.PixelData = (values + 15 * smooth_noise(rng, x, 256)).astype(np.int16).tobytes()
        ct.save_as(folders[0] / f"{n}.dcm")
        reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
        reader.SetFileName(str(folders[0] / f"{n}.dcm"))
        assert reader.Read()
        for each in folders[1:]:
            change = gdcm.ImageChangeTransferSyntax()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, each.name)))
            change.SetInput(reader.GetImage())
            assert change.Change()
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.SetFileName(str(each / f"{n}.dcm"))
            assert writer.Write()
    return folders


def _clean(out: Path) -> None:
    """Before each run: no old output, and no write of the other side still underway."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
