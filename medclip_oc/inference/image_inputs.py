"""Images that a user names: files, folders, globs, shard folders, tars. Read by position.

Nothing is read before it is asked for, and what is kept of an image is where it lies.
"""

import glob
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ..data.index import INDEX
from ..data.shards import ShardSet
from ..errors import BadImage, InputError
from ..packing.image_store import EXTENSIONS, is_file


class ImageSet:
    """Images by position, in files and in shards.

    Args:
        parts: files or shards, one after the other.
        limit: only so many, from the first. None: all.
    """

    def __init__(self, parts: Sequence[Sequence[Path] | ShardSet], limit: int | None = None):
        self.parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(len(part) for part in self.parts))
        self._size = self._ends[-1] if limit is None else min(self._ends[-1], limit)

    def __len__(self) -> int:
        return self._size

    def name(self, position: int) -> str:
        """What rows call an image: its path, or its key in a shard."""
        part, inner = self._locate(position)
        return part.key(inner) if isinstance(part, ShardSet) else str(part[inner])

    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises:
            BadImage: the file can't be read.
            InputError, WorkError: as `ShardSet.read`.
        """
        part, inner = self._locate(position)
        if isinstance(part, ShardSet):
            return part.read(inner).image
        try:
            return part[inner].read_bytes()
        except OSError as error:
            raise BadImage("undecodable", error.strerror or str(error)) from None

    def _locate(self, position: int) -> tuple[Sequence[Path] | ShardSet, int]:
        number = bisect_right(self._ends, position)
        part = self.parts[number]
        return part, position - (self._ends[number] - len(part))


def find(words: Sequence[str], split: str | None, option: str = "--images") -> ImageSet:
    """All images that the words name, in their order; in a folder by name. A file counts once.

    Args:
        words: see `ZeroshotConfig.images`.
        split: of a shard folder. None: "test".
        option: what the user calls them, for errors.

    Raises:
        InputError: a word that names no image, a split without a shard folder, or what
            `ShardSet.open` raises.
    """
    parts: list[Sequence[Path] | ShardSet] = []
    seen = set[Path]()
    has_folder = False
    for word in words:
        path = Path(word).expanduser()
        is_folder = (path / INDEX).is_file() or any(path.glob("*.tar"))
        has_folder |= is_folder
        if is_folder or word.endswith(".tar"):
            parts.append(ShardSet.open(str(path) if is_folder else word, split or "test"))
        else:
            paths = [file for file in _files(path, word, option) if file not in seen]
            seen.update(paths)
            parts.append(paths)
    if split is not None and not has_folder:
        raise InputError(f"--split {split}: {option} names no shard folder")
    return ImageSet(parts)


def _files(path: Path, word: str, option: str) -> list[Path]:
    """What a word names on the disk: a file, the images in a folder, or the files of a glob."""
    if is_file(path):
        return [path]
    if path.is_dir():
        images = []
        for place, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            shown = [name for name in names if not name.startswith(".")]
            images += [Path(place, name) for name in shown if name.lower().endswith(EXTENSIONS)]
        if not images:
            kinds = ", ".join(EXTENSIONS)
            raise InputError(f"{option}: {word}: a folder without images ({kinds})")
        return sorted(images)
    if not glob.has_magic(word):
        raise InputError(f"{option}: {word}: no such file or folder")
    # the pattern may be absolute
    matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
    files = [match for match in matches if is_file(match)]
    if not files:
        raise InputError(f"{option}: {word}: no file matches")
    return files
