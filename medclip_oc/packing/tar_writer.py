"""Writing tars byte by byte the same, whole or not at all (shards.py says what is in them).

No date, user or machine is in a header, so equal pairs make equal files. A file has a temporary
name until it is complete and on disk.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

PARTIAL = ".partial"
"""Ends the name of a file that isn't complete."""


_CHUNK_BYTES = 1 << 20
"""Handed to the writing thread at once."""
_SYNC_BYTES = 16 << 20
"""After so many the disk is asked to store them: then little is left to wait for at the end."""


class Stretch(NamedTuple):
    """One pair, ready to be appended to a tar."""

    key: str
    extension: str
    """Of the image."""
    pieces: tuple[bytes, ...]
    """One after the other: headers, contents and padding, in all whole 512-byte blocks."""
    members: tuple[int, ...]
    """Offset and size of image, text and json; offsets from the start of the first piece."""


def stretch(key: str, contents: Mapping[str, bytes]) -> Stretch:
    """Lay out one pair.

    Args:
        key: file name of the members, without extension.
        contents: extension -> bytes: the image first, then txt and json.
    """
    pieces, small, members, position = list[bytes](), list[bytes](), list[int](), 0
    for extension, content in contents.items():
        header = tar_header(f"{key}.{extension}", len(content))
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        members += [position + len(header), len(content)]
        position += len(header) + len(content) + len(padding)
        if pieces:
            small += [header, content, padding]
        else:  # the image isn't copied
            pieces += [header, content]
            small.append(padding)
    pieces.append(b"".join(small))
    return Stretch(key, next(iter(contents)), tuple(pieces), tuple(members))


def tar_header(name: str, size: int) -> bytes:
    """What stands before a member: one block, or several for a long or non-ASCII name.

    The bytes are those of `tarfile`, in its PAX format with date, owner and group 0; an ordinary
    name takes a shorter way to them.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii() or size > _MAX_PLAIN_SIZE:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    field, digits = name.encode(), b"%011o" % size
    checksum = _PLAIN_SUM + sum(field) + sum(digits)
    field = field.ljust(tarfile.LENGTH_NAME, b"\0")
    return b"".join((field, _BEFORE_SIZE, digits, _BEFORE_SUM, b"%06o" % checksum, _AFTER_SUM))


_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has none

# The header of an empty member without a name, cut where the name, the size and the checksum go;
# the checksum is the sum of all bytes, itself counted as blanks.
_PLAIN = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_MAX_PLAIN_SIZE = 8**11 - 1
_BEFORE_SIZE, _BEFORE_SUM, _AFTER_SUM = _PLAIN[100:124], _PLAIN[135:148], _PLAIN[154:]
_PLAIN_SUM = sum(_BEFORE_SIZE + _BEFORE_SUM + _PLAIN[156:]) + 8 * ord(" ")


def write_shards(
    folder: Path,
    split: str,
    pairs: Iterator[Stretch],
    samples_per_shard: int,
    first_number: int = 0,
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


def _write_shard(path: Path, split: str, pairs: Iterable[Stretch]) -> dict[str, Any]:
    keys, extensions, members = list[str](), list[str](), list[list[int]]()
    position = 0
    with appearing(path, binary=True) as file, _Sink(file) as sink:
        for pair in pairs:
            keys.append(pair.key)
            extensions.append(pair.extension)
            # offsets (even places) move with the stretch, sizes (odd places) stay
            members.append([n if i % 2 else n + position for i, n in enumerate(pair.members)])
            position += sink.write(pair.pieces)
        end = 2 * tarfile.BLOCKSIZE
        end += -(position + end) % tarfile.RECORDSIZE
        sink.write([bytes(end)])
        digest = sink.finish()
    return {
        "name": path.name,
        "split": split,
        "samples": len(keys),
        "bytes": position + end,
        "sha256": digest,
        "keys": keys,
        "extensions": extensions,
        "members": members,
    }


class _Sink:
    """Hashes and writes bytes in a thread, while the caller makes the next ones.

    Hashing costs as much as all else that a kept image needs, and lets other threads run. At most
    two chunks are in memory: the one that is written and the one that is collected. Another thread
    waits for the disk now and then.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pieces, self._size, self._unsynced = list[bytes](), 0, 0
        self._underway: Future[None] | None = None
        self._sync: Future[None] | None = None

    def write(self, pieces: Sequence[bytes]) -> int:
        """Take the next bytes; returns how many there are. Raises what an earlier write raised."""
        size = sum(map(len, pieces))
        self._pieces += pieces
        self._size += size
        if self._size >= _CHUNK_BYTES:
            self._hand_over()
        return size

    def finish(self) -> str:
        """Write what is left; returns the SHA-256 of everything."""
        self._hand_over()
        self._wait()
        if self._sync:
            self._sync.result()
        return self._digest.hexdigest()

    def _hand_over(self) -> None:
        self._wait()
        self._underway = self._writer.submit(self._work, self._pieces)
        self._pieces, self._size = [], 0

    def _wait(self) -> None:
        if self._underway:
            self._underway.result()

    def _work(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
        self._file.writelines(pieces)
        self._unsynced += sum(map(len, pieces))
        if self._unsynced >= _SYNC_BYTES and (not self._sync or self._sync.done()):
            if self._sync:
                self._sync.result()  # an error is told once only
            self._file.flush()
            self._sync = self._syncer.submit(_datasync, self._file.fileno())
            self._unsynced = 0

    def __enter__(self) -> "_Sink":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.shutdown()
        self._syncer.shutdown()


@contextmanager
def appearing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write that gets its name once it is complete and on disk; an error leaves none."""
    partial = path.with_name(path.name + PARTIAL)
    how: dict[str, Any] = {"mode": "wb"}
    if not binary:
        how = {"mode": "w", "encoding": "utf-8", "newline": ""}
    try:
        with partial.open(**how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
