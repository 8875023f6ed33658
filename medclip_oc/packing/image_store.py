"""Where an image's bytes lie: in a file, in a member of a zip, in a cell of a table.

`Folder` and `Archive` find the image that an id names.
"""

import os
import zipfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple

from ..errors import InputError
from ..runtime.git_lfs import pointer

EXTENSIONS = (".jpg", ".jpeg", ".png", ".dcm", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
"""Of image files, in the order in which they are looked for; upper case counts as well."""
MAX_BYTES = 1 << 30
"""Of an image file, unpacked: as the most pixels that --max-pixels allows have in 16-bit colour."""


class ImageFile(NamedTuple):
    """An image, not yet read."""

    name: str  # file name, for messages
    read: Callable[[], bytes]  # gives the encoded image, in any process; raises OSError


class Folder:
    """Images by name in a folder."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: no such image folder")
        self.path = path

    def find(self, name: str) -> ImageFile | None:
        """The image of that name, or of that name with one of EXTENSIONS."""
        bare = stem(name)
        names = [bare + each for extension in EXTENSIONS for each in (extension, extension.upper())]
        found = map(self._get, [name, *names] if bare != name else names)
        return next(filter(None, found), None)

    def _get(self, name: str) -> ImageFile | None:
        return image_on_disk(self.path / name)

    def __str__(self) -> str:
        return self.path.name


class Archive(Folder):
    """Images by name in a zip, in whatever folders it has inside. Read without extracting."""

    def __init__(self, path: Path) -> None:
        check_fetched(path)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            self._stamp = path.stat().st_mtime_ns
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a readable zip: {error}") from None
        self.path = path
        self._members = dict[str, str]()  # base name -> name in the archive
        for name in names:
            base = PurePosixPath(name).name
            # "__MACOSX/._a.jpg" is a Mac's note about a.jpg
            if name.endswith("/") or base.startswith("._"):
                continue
            if (first := self._members.setdefault(base, name)) != name:
                raise InputError(f"{path}: holds two images {base}: {first}, {name}")

    def _get(self, name: str) -> ImageFile | None:
        if member := self._members.get(name):
            return ImageFile(name, partial(_read_member, self.path, self._stamp, member))
        return None


def image_on_disk(path: Path) -> ImageFile | None:
    """An image that is a file. None: there is none."""
    return ImageFile(path.name, partial(read_file, str(path))) if is_file(path) else None


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def check_fetched(path: Path) -> None:
    """Raise InputError where Git LFS left a pointer in place of the file."""
    if problem := pointer(path):
        raise InputError(f"{path}: {problem}")


def stem(name: str) -> str:
    """An id without the image extension that some tables give it."""
    bare, dot, extension = name.rpartition(".")
    return bare if dot and f".{extension.lower()}" in EXTENSIONS else name


def read_file(path: str) -> bytes:
    """The content of an image file; OSError where there is none, or over MAX_BYTES."""
    about = os.stat(path)  # noqa: PTH116 (quicker than Path, for each image)
    if not S_ISREG(about.st_mode):
        raise OSError(None, "no regular file")  # opening a pipe would wait for its writer
    _check_size(about.st_size)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall()


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(None, f"{size:,} bytes, of an image at most {MAX_BYTES:,} are read")


def _read_member(archive: Path, stamp: int, member: str) -> bytes:
    """The member's checksum is compared."""
    try:
        info = _open_zip(archive, stamp).getinfo(member)
        _check_size(info.file_size)
        with _open_zip(archive, stamp).open(info) as file:
            return file.read(info.file_size)  # without a number, more would be unpacked than told
    except OSError:
        raise
    except Exception as error:  # encrypted, damaged: each decompressor has errors of its own
        raise OSError(None, f"in {archive.name}: {error}") from None


@lru_cache(8)
def _open_zip(archive: Path, stamp: int) -> zipfile.ZipFile:
    """One open file per archive and process; `stamp` (ns): an older one may be open."""
    return zipfile.ZipFile(archive)
