"""Tars behind URLs and commands, read front to back through webdataset."""

import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import WorkError
from .index import IMAGE_EXTENSIONS, MEMBER
from .shards import Sample

_BLOCK = 512
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")


def read_tar(
    url: str, cache: Path | None = None, incomplete: list[str] | None = None
) -> Iterator[Sample]:
    """The pairs of a tar, front to back.

    Args:
        url: of the tar.
        cache: folder that keeps it.
        incomplete: takes a line for each entry that is no pair, for it is passed over.

    Raises:
        WorkError: the URL can't be opened, its command fails, or the tar is cut.
    """
    from webdataset.tariterators import tar_file_iterator

    name, problems = short(url), incomplete if incomplete is not None else list[str]()
    if cache is not None:
        url = str(_fetched(url, cache))
    stream = _opened(url)
    ending = _Ending(stream)
    current, members = "", dict[str, bytes]()
    try:
        for member in tar_file_iterator(ending):
            match = MEMBER.fullmatch(member["fname"])
            if match is None:
                continue
            if match[1] != current:
                yield from _sample(name, current, members, problems)
                current, members = match[1], {}
            members[match[2].lower()] = member["data"]
        yield from _sample(name, current, members, problems)
        while ending.read(1 << 20):  # a command that isn't read to its end would fail
            pass
        stream.close()  # tells whether the command succeeded
        ending.check()
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = _reason(error)
        raise WorkError(f"{short(url)}: the shard can't be read to its end: {reason}") from None
    finally:
        _close(stream)


class _Ending:
    """A stream that knows whether it ended as a tar does, with a block of zeros.

    tarfile takes a tar that is cut at the beginning of a member for a whole one.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._first = self._last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._first = self._first or data[:6]
        self._last = (self._last + data[-_BLOCK:])[-_BLOCK:]
        return data

    def check(self) -> None:
        """Raise OSError if the tar was cut. Compression has a check of its own."""
        if not self._first.startswith(_COMPRESSED) and self._last != bytes(_BLOCK):
            raise OSError("unexpected end of data")


def _opened(url: str) -> IO[bytes]:
    from webdataset.gopen import gopen

    try:
        stream: IO[bytes] = gopen(url)
    except Exception as error:  # each kind of URL has errors of its own
        raise WorkError(f"{short(url)}: can't be opened: {_reason(error)}") from None
    return stream


def _reason(error: Exception) -> str:
    """What went wrong, without the insides that webdataset tells of as well."""
    if code := re.search(r"\bexit (-?\d+) \(", str(error)):
        return f"the command that reads it ended with exit code {code[1]}"
    return str(error).partition(" @ <")[0]


def _close(stream: IO[bytes]) -> None:
    """Close a stream that may have been left in its middle."""
    process = getattr(stream, "proc", None)
    if process is not None:
        process.kill()  # or a slow command would be waited for
        process.wait()
        process.stdout.close()
        return
    stream.close()


def _fetched(url: str, folder: Path) -> Path:
    """The shard's copy in the folder, which appears whole or not at all."""
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    if path.exists():
        return path
    stream = _opened(url)
    ending, file = _Ending(stream), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            shutil.copyfileobj(ending, file, 1 << 20)
        stream.close()  # tells whether the command succeeded
        ending.check()
        Path(file.name).replace(path)
    except OSError as error:
        raise WorkError(f"{short(url)}: can't be kept in {folder}: {_reason(error)}") from None
    finally:
        _close(stream)
        if file is not None:
            Path(file.name).unlink(missing_ok=True)
    return path


def _sample(
    where: str, key: str, members: dict[str, bytes], incomplete: list[str]
) -> Iterator[Sample]:
    """A pair of these members, if they make one."""
    extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
    try:
        if extension is not None and "txt" in members:
            caption, facts = members["txt"].decode(), json.loads(members.get("json") or b"{}")
            known = facts if isinstance(facts, dict) else {}
            yield Sample(key, members[extension], extension, caption, known)
        elif members:
            incomplete.append(f"{where}: {key}: no {'image' if 'txt' in members else 'caption'}")
    except ValueError as error:
        incomplete.append(f"{where}: {key}: caption or facts unreadable: {error}")


def short(url: str) -> str:
    """A URL or command, for messages."""
    return url if len(url) <= 100 else f"{url[:60]} ... {url[-35:]}"
