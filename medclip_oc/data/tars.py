"""What the headers of a tar say: a walk through all of them, and the check of one."""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

BLOCK = tarfile.BLOCKSIZE
_MAX_BYTES = 1 << 30  # of a member, or of an extended header before it (PAX, GNU)
_SEARCHED = 128  # blocks before a content, for the extended header that has its long name


class _Header(tarfile.TarInfo):
    """A header that claims no absurd size, be it by PAX: tarfile would read, or go back, so far."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "size" and not 0 <= value <= _MAX_BYTES:
            raise tarfile.ReadError(f"a member of {value:,} bytes; allowed are {_MAX_BYTES:,}")
        super().__setattr__(name, value)


def _open(file: Any, mode: Any = "r:") -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header, encoding="utf-8")


def walk(file: Any, mode: str, content: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """A tar's members but folders, as webdataset's tar_file_expander gives them, which leaves out
    links, what follows a damaged header and a second tar: the two last are tarfile.ReadErrors here.
    `content` makes of the tar and a member what stands for its content.
    """
    with _open(file, mode) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
            if not member.isdir():
                yield {"fname": member.name, "data": content(tar, member), "__url__": ""}
        stream: Any = tar.fileobj
        rest, zeros = 0, True
        while data := stream.read(BLOCK << 11):
            rest, zeros = rest + len(data), zeros and not data.strip(b"\0")
        if not (rest and zeros and (tar.offset or rest < tarfile.RECORDSIZE)):  # an empty one
            early = f"{rest:,} too early" if rest else "without the zeros that end a tar"
            reason = "cut, damaged, or tars joined by cat (extract those with `tar -xif`)"
            raise tarfile.ReadError(f"ends at byte {tar.offset:,}, {early}: {reason}")


def has_extended_member(descriptor: int, name: str, offset: int, size: int) -> bool:
    """Whether a file of that name and size, with an extended header, lies at an offset of a tar."""
    start = max(0, offset - _SEARCHED * BLOCK)
    blocks = os.pread(descriptor, offset - start, start)
    for first in range(len(blocks) - BLOCK, -1, -BLOCK):  # an extended header lies before its own
        with suppress(tarfile.TarError, ValueError), _open(BytesIO(blocks[first:])) as tar:
            member: Any = tar.next() or tarfile.TarInfo()
            found = member.name, start + first + member.offset_data, member.size
            if found == (name, offset, size) and member.isfile():
                return True
    return False
