"""Writing tars with webdataset's TarWriter (data/shards.py says what is in them).

No date, user or machine is in a header, so equal pairs make equal files.
"""

import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..imaging.encode import Stored
from ..runtime.atomic import atomic_file
from .journal import file_hash


class Packed(NamedTuple):
    """A pair, ready to be written."""

    key: str
    image: Stored
    caption: bytes
    facts: bytes
    rows: int = 1  # of the source, that it stands for


def write_shards(
    folder: Path, split: str, rows: Iterator[list[Packed]], samples_per_shard: int, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Write `{split}-{000000..N}.tar` from a number on; yields the index entry of each tar once it
    is complete, and no row beyond it is fetched by then. The pairs of a row are in one tar.
    """
    for number, row in enumerate(rows, first):
        own = chain(row, _rest(rows, samples_per_shard - len(row)))
        yield _write_shard(folder / f"{split}-{number:06d}.tar", split, own)


def _rest(rows: Iterator[list[Packed]], wanted: int) -> Iterator[Packed]:
    while wanted > 0 and (row := next(rows, None)):
        yield from row
        wanted -= len(row)


def _write_shard(path: Path, split: str, pairs: Iterable[Packed]) -> dict[str, Any]:
    from webdataset import TarWriter  # imports torch, which worker processes do without

    keys, extensions, places = list[str](), list[str](), list[int]()
    with atomic_file(path, durable=True) as partial:
        with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w") as stream:
            tar = TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)
            tar.tarstream = stream  # its own cuts contents into pieces of 10 kB
            for pair in pairs:
                keys.append(pair.key)
                extensions.append(image := pair.image.extension)
                members = {image: pair.image.data, "txt": pair.caption, "json": pair.facts}
                for extension, content in members.items():  # one by one: TarWriter sorts several
                    tar.write({"__key__": pair.key, extension: content})
                    filled = len(content) + -len(content) % tarfile.BLOCKSIZE
                    places += stream.offset - filled, len(content)
        size, digest = partial.stat().st_size, file_hash(partial)
    return {
        "name": path.name,
        "split": split,
        "samples": len(keys),
        "bytes": size,
        "sha256": digest,
        "keys": keys,
        "extensions": extensions,
        "members": np.reshape(places, (-1, 6)).tolist(),
    }
