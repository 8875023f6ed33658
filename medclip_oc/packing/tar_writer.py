"""Writing tars with webdataset's TarWriter (data/shards.py says what is in them).

No date, user or machine is in a header, so equal pairs make equal files.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

from webdataset import TarWriter

from ..runtime.atomic import atomic_file
from .samples import Packed

_CHUNK_BYTES = 1 << 20
"""Handed to the writing thread at once."""


def write_shards(
    folder: Path, split: str, pairs: Iterator[Packed], samples_per_shard: int, first_number: int = 0
) -> Iterator[dict[str, Any]]:
    """Write `{split}-{000000..N}.tar` from a number on.

    Yields:
        The index entry of each tar once it is complete; no pair beyond it is fetched by then.
    """
    for number in count(first_number):
        first = next(pairs, None)
        if first is None:
            return
        own = chain([first], islice(pairs, samples_per_shard - 1))
        yield _write_shard(folder / f"{split}-{number:06d}.tar", split, own)


def _write_shard(path: Path, split: str, pairs: Iterable[Packed]) -> dict[str, Any]:
    keys, extensions, members = list[str](), list[str](), list[list[int]]()
    with (
        atomic_file(path, durable=True) as partial,
        partial.open("wb") as file,
        _HashingFile(file) as hashing,
        TarWriter(hashing, user="", group="", mode=0o644, mtime=0, encoder=False) as tar,
    ):
        for pair in pairs:
            keys.append(pair.key)
            extensions.append(pair.extension)
            contents = zip((pair.extension, "txt", "json"), pair.members, strict=True)
            members.append([n for member in contents for n in _add(tar, pair.key, *member)])
    return {
        "name": path.name,
        "split": split,
        "samples": len(keys),
        "bytes": hashing.size,
        "sha256": hashing.digest.hexdigest(),
        "keys": keys,
        "extensions": extensions,
        "members": members,
    }


def _add(tar: Any, key: str, extension: str, content: bytes) -> tuple[int, int]:
    """Write a member; returns its offset and size."""
    # the same bytes for an ordinary name, in half the time
    plain = key.isascii() and len(key) + len(extension) < tarfile.LENGTH_NAME
    tar.tarstream.format = tarfile.USTAR_FORMAT if plain else tarfile.PAX_FORMAT
    # one call for each member: of several, TarWriter sorts the names and tells no offsets
    tar.write({"__key__": key, extension: content})
    blocks = -(-len(content) // tarfile.BLOCKSIZE)
    return tar.tarstream.offset - blocks * tarfile.BLOCKSIZE, len(content)


class _HashingFile:
    """A file that is hashed and written in a thread, while the caller makes the next bytes.

    Hashing costs as much as all else that a kept image needs, and lets other threads run.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.digest, self.size = hashlib.sha256(), 0
        self._file, self._thread = file, ThreadPoolExecutor(1)
        self._pieces, self._handed_over = list[bytes](), 0
        self._underway: Future[None] | None = None

    def write(self, data: bytes) -> int:
        """Take the next bytes. Raises what an earlier write raised."""
        self._pieces.append(data)
        self.size += len(data)
        if self.size - self._handed_over >= _CHUNK_BYTES:
            self._hand_over()
        return len(data)

    def _hand_over(self) -> None:
        if self._underway:
            self._underway.result()
        self._underway = self._thread.submit(self._write, b"".join(self._pieces))
        self._pieces, self._handed_over = [], self.size

    def _write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self._file.write(chunk)

    def __enter__(self) -> "_HashingFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._hand_over()
                assert self._underway
                self._underway.result()
        finally:
            self._thread.shutdown()
