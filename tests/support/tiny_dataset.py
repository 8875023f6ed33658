"""Small data sets of drawn images, as a folder in the Kaggle layout or as tars of any make.

And shards as webdataset reads them, without any code of ours.
"""

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from medclip_oc.data.shards import Sample
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.sources import Pair, Reject, Source

QUARTERS = ("upper left", "upper right", "lower left", "lower right")


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth grey image, another one for each seed, whose quarters are bright or dark."""
    coarse = np.random.default_rng(seed).integers(0, 100, (4, 6), dtype=np.uint8)
    bright = np.array(_bits(seed), dtype=np.uint8).reshape(2, 2)
    coarse += 150 * np.kron(bright, np.ones((2, 3), dtype=np.uint8))
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def caption(seed: int) -> str:
    """What the picture of this seed shows."""
    words = zip(QUARTERS, _bits(seed), strict=True)
    return f"number {seed}: " + ", ".join(f"{q} {'bright' if on else 'dark'}" for q, on in words)


def _bits(seed: int) -> list[int]:
    return [seed >> place & 1 for place in range(4)]


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar as any tool might write it: no index beside it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_pairs(path: Path, numbers: range, concepts: dict[int, list[str]] | None = None) -> Path:
    """A tar of pairs `pair7` with the caption "finding number 7", two of each study."""
    members = {}
    for n in numbers:
        facts = {"id": f"pair{n}", "concepts": (concepts or {}).get(n, []), "study": n // 2}
        members |= {
            f"pair{n}.jpg": jpeg(n),
            f"pair{n}.txt": f"finding number {n}".encode(),
            f"pair{n}.json": json.dumps(facts).encode(),
        }
    return write_tar(path, members)


def write_captions(path: Path, text: str = "{0}", key: str = "captions") -> Path:
    """A tar of pairs with the captions a, b, c; d, e, f; g, h, i; j. `text`: of the .txt."""
    members = {}
    for n, own in enumerate(("abc", "def", "ghi", "j")):
        members |= {f"{n}.json": json.dumps({key: [*own, own[0], " "]}).encode()}
        members |= {f"{n}.jpg": jpeg(n), f"{n}.txt": text.format(*own).encode()}
    return write_tar(path, members)


def write_split(folder: Path, split: str, table: str | bytes, images: dict[str, bytes]) -> Path:
    """A split of a folder in the Kaggle ROCOv2 layout; returns the folder."""
    pictures = folder / f"{split}_images" / split
    pictures.mkdir(parents=True)
    for name, data in images.items():
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(data)
    content = table if isinstance(table, bytes) else table.encode()
    (folder / f"{split}_captions.csv").write_bytes(content)
    return folder


def write_kaggle(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of drawn images in that layout, each with what it shows."""
    seed = 0
    for split, count in counts.items():
        seeds = {f"{split}_{n:04}": seed + n for n in range(count)}
        table = ["ID,Caption", *(f'{key},"{caption(n)}"' for key, n in seeds.items())]
        images = {f"{key}.jpg": jpeg(n) for key, n in seeds.items()}
        write_split(folder, split, "\n".join(table) + "\n", images)
        seed += count
    return folder


def records_of(source: Source, split: str) -> list[Pair | Reject]:
    found = list(source.records(split))
    assert len(found) == source.count(split)
    return found


def pairs_of(source: Source, split: str) -> list[Pair]:
    return [record for record in records_of(source, split) if isinstance(record, Pair)]


def write_shards(folder: Path, counts: dict[str, int], samples_per_shard: int) -> Path:
    """A shard folder of `folder / "source"`, which is written first."""
    source = open_source(write_kaggle(folder / "source", counts), list(counts))
    options = PackOptions(samples_per_shard=samples_per_shard)
    pack(source, folder / "shards", options, workers=1)
    return folder / "shards"


_LONG = "deep/" * 30 + "é" * 60
OTHER_TOOLS = {
    "README": b"no pair",
    "b.txt": b"second",
    "b.seg.png": b"a mask",
    "b.JPEG": b"image b",
    f"{_LONG}.webp": b"image long",
    f"{_LONG}.json": b'{"id": 1}',
    f"{_LONG}.txt": b"long",
    "alone.jpg": b"no caption",
    "silent.txt": b"no image",
}
"""Members of a tar as other tools may write it, and the pairs in it."""
OTHER_SAMPLES = [
    Sample("b", b"image b", "jpeg", "second", {}),
    Sample(_LONG, b"image long", "webp", "long", {"id": 1}),
]


def stock(urls: list[str], decode: str | None = None) -> list[dict[str, Any]]:
    """The pairs as webdataset reads them."""
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        found = list(dataset.decode(decode) if decode else dataset)
        del dataset
        gc.collect()
    return found
