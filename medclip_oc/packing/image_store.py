"""Where an image's bytes lie: in a file, in a member of a zip, in a cell of a table.

`Folder` and `Archive` find the image that an id or a path names.
"""

import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import InputError
from ..runtime.git_lfs import pointer

_ENDINGS = "jpg jpeg jpe jfif png dcm dicom ima tif tiff bmp gif webp jp2 pgm ppm"
EXTENSIONS = tuple(f".{ending}" for ending in _ENDINGS.split())
"""Of image files; capitals count the same."""
_KNOWN = (*EXTENSIONS, ".nii", ".nii.gz")
MAX_BYTES = 1 << 30
"""Of an image file, unpacked: as the most pixels that --max-pixels allows have in 16-bit colour."""


class ImageFile(NamedTuple):
    """An image, not yet read."""

    name: str  # file name, for messages
    read: partial[bytes]  # gives the encoded image, in any process; raises OSError
    folder: Path | None = None  # of a DICOM series, which can't be read so


class Folder:
    """Images by name in a folder."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: no such image folder")
        self.path = path
        self._names_in: Callable[[Path], dict[str, list[str]]] = lru_cache(256)(_files_in)

    def find(self, name: str, within: Callable[[str], bool] | None = None) -> ImageFile | None:
        """The image of that name, whatever its extension; else one whose name differs in capitals
        or in its Unicode form. InputError: several, which may be different pictures. `within`: look
        in all folders, for paths of which this is true.
        """
        if image := self._get(name):
            return image
        place, base = os.path.split(name)
        names = self._names_in(self.path / place).get(fold(base), [])
        alike = [os.path.join(place, each) for each in names]  # noqa: PTH118
        if within:
            alike = [*filter(within, self._below.get(fold(base), []))]
        for part in (str, stem):
            alike = [each for each in alike if part(Path(each).name) == part(base)] or alike
        if len(alike) > 1:
            raise InputError(f"{name!r} may be {', '.join(sorted(alike)[:4])}; name one of them")
        path = self.path / name
        if not alike and os.path.isdir(path):  # noqa: PTH112 (as in is_file)
            return ImageFile(path.name, partial(read_file, str(path)), path)
        return self._get(alike[0]) if alike else None

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        return _group(str(path.relative_to(self.path)) for path in self.path.rglob("[!.]*"))

    def _get(self, name: str) -> ImageFile | None:
        path = self.path / name
        return ImageFile(path.name, partial(read_file, str(path))) if is_file(path) else None

    def __str__(self) -> str:
        return str(self.path)


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
            base = PurePosixPath(name.replace("\\", "/")).name  # old zips of Windows have these
            # "__MACOSX/._a.jpg" is a Mac's note about a.jpg
            if name.endswith(("/", "\\")) or base.startswith("._"):
                continue
            if (first := self._members.setdefault(base, name)) != name:
                raise InputError(f"{path}: holds two images {base}: {first}, {name}")
        alike = _group(self._members)
        self._names_in = lambda _: alike

    def _get(self, name: str) -> ImageFile | None:
        if member := self._members.get(name):
            return ImageFile(name, partial(_read_member, self.path, self._stamp, member))
        return None


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def check_fetched(path: Path) -> None:
    """Raise InputError where Git LFS left a pointer in place of the file."""
    if problem := pointer(path):
        raise InputError(f"{path}: {problem}")


def stem(name: str) -> str:
    """An id without the image extension that some tables give it."""
    end = next((each for each in _KNOWN if name.lower().endswith(each)), "")
    return name[: len(name) - len(end)]


def as_path(text: str) -> str:
    """A path as tables have it: also `file://...`, `~/...`, and with backslashes."""
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    return os.path.expanduser(text.replace("\\", "/"))  # noqa: PTH111 (Path's raises)


def fold(path: str) -> str:
    """What the file names of one image have in common."""
    return unicodedata.normalize("NFC", stem(path.rpartition("/")[2])).casefold()


def _group(names: Iterable[str]) -> dict[str, list[str]]:
    """Paths whose file names `fold` makes the same."""
    found = dict[str, list[str]]()
    for name in names:
        found.setdefault(fold(name), []).append(name)
    return found


def _files_in(folder: Path) -> dict[str, list[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        return _group(entry.name for entry in entries if entry.is_file())
    return {}


def read_file(path: str) -> bytes:
    """The content of an image file; OSError where there is none, or over MAX_BYTES."""
    about = os.stat(path)  # noqa: PTH116 (quicker than Path, for each image)
    if not S_ISREG(about.st_mode):  # opening a pipe would wait for its writer
        raise OSError(None, "no regular file (of a series' folder --slices takes slices)")
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
        # --hash-ids keeps names out of messages
        raise OSError(None, f"in {archive.name}: {error}".replace(repr(member), "it")) from None


@lru_cache(8)
def _open_zip(archive: Path, stamp: int) -> zipfile.ZipFile:
    """One open file per archive and process; `stamp` (ns): an older one may be open."""
    return zipfile.ZipFile(archive)
