"""Writing tars byte by byte the same, whole or not at all (shards.py says what is in them).

No date, user or machine is in a header, so equal pairs make equal files. A file has a temporary
name until it is complete and on disk.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
"""Ends the name of a file that isn't complete."""


@dataclass(frozen=True)
class Stretch:
    """One pair, ready to be appended to a tar."""

    key: str
    extension: str
    """Of the image."""
    data: bytes
    """Headers, contents and padding: whole 512-byte blocks."""
    members: tuple[int, ...]
    """Offset and size of image, text and json; offsets from the start of `data`."""


def stretch(key: str, contents: Mapping[str, bytes]) -> Stretch:
    """Lay out one pair.

    Args:
        key: file name of the members, without extension.
        contents: extension -> bytes: the image first, then txt and json.
    """
    pieces, members, position = list[bytes](), list[int](), 0
    for extension, content in contents.items():
        info = tarfile.TarInfo(f"{key}.{extension}")  # its date, owner and group are 0
        info.size = len(content)
        header = info.tobuf(tarfile.PAX_FORMAT)  # several blocks for a long or non-ASCII name
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        members += [position + len(header), len(content)]
        pieces += [header, content, padding]
        position += len(header) + len(content) + len(padding)
    return Stretch(key, next(iter(contents)), b"".join(pieces), tuple(members))


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
    digest, position = hashlib.sha256(), 0
    with appearing(path, binary=True) as file:
        for pair in pairs:
            file.write(pair.data)
            digest.update(pair.data)
            keys.append(pair.key)
            extensions.append(pair.extension)
            # offsets (even places) move with the stretch, sizes (odd places) stay
            members.append([n if i % 2 else n + position for i, n in enumerate(pair.members)])
            position += len(pair.data)
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(position + len(end)) % tarfile.RECORDSIZE)
        file.write(end)
        digest.update(end)
    return {
        "name": path.name,
        "split": split,
        "samples": len(keys),
        "bytes": position + len(end),
        "sha256": digest.hexdigest(),
        "keys": keys,
        "extensions": extensions,
        "members": members,
    }


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
