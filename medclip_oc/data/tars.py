"""What the headers of a tar say: a walk through all of them, and the check of one."""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

MAX_BYTES = 1 << 30
"""Of a member, or of an extended header before it (PAX, GNU)."""
BLOCK = tarfile.BLOCKSIZE
_SEARCHED = 128  # blocks before a content, for the extended header that has its long name


class _Header(tarfile.TarInfo):
    """A header that claims no absurd size, be it by PAX: tarfile would read, or go back, so far."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "size" and not 0 <= value <= MAX_BYTES:
            raise tarfile.ReadError(f"a member of {value:,} bytes; allowed are {MAX_BYTES:,}")
        super().__setattr__(name, value)


_open: Callable[..., tarfile.TarFile] = partial(tarfile.open, tarinfo=_Header, encoding="utf-8")


def walk(
    file: Any, mode: Any, content: Callable[[tarfile.TarFile, tarfile.TarInfo], Any]
) -> Iterator[dict[str, Any]]:
    """The members of a tar, but for folders, as webdataset gives them, with what `content` makes.

    Its own tar_file_expander leaves out links, what follows a damaged header, and a second tar.

    Raises:
        tarfile.ReadError: absurd sizes, or no end of the file at the end of the tar.
    """
    with _open(fileobj=file, mode=mode) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
            if not member.isdir():
                yield {"fname": member.name, "data": content(tar, member), "__url__": ""}
        stream: Any = tar.fileobj
        rest, zeros = 0, True
        while data := stream.read(BLOCK << 11):
            rest, zeros = rest + len(data), zeros and not data.strip(b"\0")
        if not (rest and zeros):
            reason = "cut, damaged, or tars joined by cat (extract those with `tar -xif`)"
            raise tarfile.ReadError(f"ends at byte {tar.offset:,}, {rest:,} too early: {reason}")


def is_member(descriptor: int, name: bytes, offset: int, size: int) -> bool:
    """Whether the content at an offset of an open tar is that of a file of this name and size.

    The name is `KEY.extension`; there the extension may be in upper case.
    """
    header = os.pread(descriptor, BLOCK, offset - BLOCK)
    found, ordinary = header[:100].partition(b"\0")[0], header[156:157] + header[345:346] == b"0\0"
    if ordinary and len(found) < 100 and header[124:135] == b"%011o" % size and _same(found, name):
        return True
    start = max(0, offset - _SEARCHED * BLOCK)
    blocks = os.pread(descriptor, offset - start, start)
    for first in range(len(blocks) - BLOCK, -1, -BLOCK):  # an extended header lies before its own
        file = BytesIO(blocks[first:])
        with suppress(tarfile.TarError, ValueError), _open(fileobj=file, mode="r:") as tar:
            member: Any = tar.next() or tarfile.TarInfo()
            place = start + first + member.offset_data, member.size
            if place == (offset, size) and member.isfile() and _same(member.name.encode(), name):
                return True
    return False


def _same(found: bytes, name: bytes) -> bool:
    dot = name.rfind(b".")
    return found == name or (found[:dot] == name[:dot] and found[dot:].lower() == name[dot:])
