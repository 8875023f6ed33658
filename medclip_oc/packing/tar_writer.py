"""Writing tars with webdataset's TarWriter (data/shards.py says what is in them).

No date, user or machine is in a header, so equal pairs make equal files.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..imaging.encode import Stored
from ..runtime.atomic import atomic_file

_CHUNK_BYTES = 1 << 20  # handed to the writing thread at once


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

    keys, extensions = list[str](), list[str]()
    with (
        atomic_file(path, durable=True) as partial,
        partial.open("wb") as file,
        ThreadPoolExecutor(1) as thread,
    ):
        hashing = _HashingFile(file, thread)
        stream = io.BufferedWriter(hashing, _CHUNK_BYTES)
        tar = TarWriter(stream, user="", group="", mode=0o644, mtime=0, encoder=False)
        tar.tarstream = _Tar(stream)
        for pair in pairs:
            keys.append(pair.key)
            extensions.append(image := pair.image.extension)
            members = {image: pair.image.data, "txt": pair.caption, "json": pair.facts}
            for extension, content in members.items():  # one by one: TarWriter sorts several
                tar.write({"__key__": pair.key, extension: content})
        tar.close()
        stream.flush()
        digest, size = hashing.digest(), hashing.tell()
    return {
        "name": path.name,
        "split": split,
        "samples": len(keys),
        "bytes": size,
        "sha256": digest,
        "keys": keys,
        "extensions": extensions,
        "members": np.reshape(tar.tarstream.places, (-1, 6)).tolist(),
    }


class _Tar(tarfile.TarFile):
    """Makes headers of the first one: they differ in name, size and checksum only.

    tarfile makes each anew, and TarWriter's own stream cuts contents into 10 kB: together a quarter
    of the time of a packing that decodes nothing. The bytes are the same.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(fileobj=file, mode="w")
        self.places, self._ordinary = list[int](), bytearray()  # offset and size of each member

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        """Append a member with the content of a file."""
        name, content = tarinfo.name.encode(), fileobj.read()
        if len(name) < tarfile.LENGTH_NAME and name.isascii():
            header = self._ordinary or bytearray(tarinfo.tobuf(tarfile.USTAR_FORMAT))
            header[:100], header[124:135] = name.ljust(100, b"\0"), b"%011o" % len(content)
            header[148:156] = b" " * 8
            header[148:155] = b"%06o\0" % sum(header)
            self._ordinary = header
        else:
            header = bytearray(tarinfo.tobuf(tarfile.PAX_FORMAT))
        self.places += self.offset + len(header), len(content)
        for piece in (bytes(header), content, bytes(-len(content) % tarfile.BLOCKSIZE)):
            self.fileobj.write(piece)
            self.offset += len(piece)


class _HashingFile(io.RawIOBase):
    """A file that is hashed and written in a thread, while the caller makes the next bytes.

    Hashing costs as much as all else that a kept image needs, and lets other threads run.
    """

    def __init__(self, file: IO[bytes], thread: ThreadPoolExecutor) -> None:
        self._file, self._thread, self._hash, self._size = file, thread, hashlib.sha256(), 0
        self._underway = thread.submit(lambda: None)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        """Take the next bytes. Raises what an earlier write raised."""
        self._underway.result()
        self._underway = self._thread.submit(self._write, bytes(data))
        self._size += len(data)
        return len(data)

    def digest(self) -> str:
        """Finish; returns the SHA-256 of all."""
        self._underway.result()
        return self._hash.hexdigest()

    def _write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
