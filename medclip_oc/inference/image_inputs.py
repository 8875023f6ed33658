"""Images that a user names: files, folders, globs, shard folders, tars. Read by position.

Nothing is read before it is asked for, and what is kept of an image is where it lies.
"""

import glob
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from ..data.index import INDEX
from ..data.shards import ShardSet
from ..errors import BadImage, InputError
from ..packing.image_store import EXTENSIONS, is_file


class ImageSet(Protocol):
    """Images by position."""

    def __len__(self) -> int:
        """How many."""

    def name(self, position: int) -> str:
        """What rows call an image: its path, or its key in a shard."""

    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises:
            BadImage: it can't be read.
        """


class Files:
    """Images that are files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, position: int) -> str:
        """See `ImageSet`."""
        return str(self.paths[position])

    def read(self, position: int) -> bytes:
        """See `ImageSet`."""
        try:
            return self.paths[position].read_bytes()
        except OSError as error:
            raise BadImage("undecodable", error.strerror or str(error)) from None


class Shards:
    """Images of a shard folder, or of tars."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, position: int) -> str:
        """See `ImageSet`."""
        return self.shards.key(position)

    def read(self, position: int) -> bytes:
        """See `ImageSet`."""
        return self.shards.read(position).image


class Joined:
    """Several sets, one after the other."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self.sets = sets
        self.ends = list(accumulate(len(one) for one in sets))

    def __len__(self) -> int:
        return self.ends[-1]

    def name(self, position: int) -> str:
        """See `ImageSet`."""
        number, inner = self._find(position)
        return self.sets[number].name(inner)

    def read(self, position: int) -> bytes:
        """See `ImageSet`."""
        number, inner = self._find(position)
        return self.sets[number].read(inner)

    def _find(self, position: int) -> tuple[int, int]:
        number = bisect_right(self.ends, position)
        return number, position - (self.ends[number] - len(self.sets[number]))


class First:
    """The first images of a set."""

    def __init__(self, images: ImageSet, number: int) -> None:
        self.images, self.number = images, min(number, len(images))

    def __len__(self) -> int:
        return self.number

    def name(self, position: int) -> str:
        """See `ImageSet`."""
        return self.images.name(position)

    def read(self, position: int) -> bytes:
        """See `ImageSet`."""
        return self.images.read(position)


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
    sets: list[ImageSet] = []
    seen = set[Path]()
    has_folder = False
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir() and _is_shard_folder(path):
            has_folder = True
            sets.append(Shards(ShardSet.open(str(path), split or "test")))
        elif word.endswith(".tar"):
            sets.append(Shards(ShardSet.open(word, split or "test")))
        else:
            paths = [one for one in _files(path, word, option) if one not in seen]
            seen.update(paths)
            sets.append(Files(paths))
    if split is not None and not has_folder:
        raise InputError(f"--split {split}: {option} names no shard folder")
    return Joined([one for one in sets if len(one)])


def _files(path: Path, word: str, option: str) -> list[Path]:
    """What a word names on the disk: a file, the images in a folder, or the files of a glob."""
    if is_file(path):
        return [path]
    if path.is_dir():
        found = sorted(_images_in(path))
        if not found:
            kinds = ", ".join(EXTENSIONS)
            raise InputError(f"{option}: {word}: a folder without images ({kinds})")
        return found
    if not glob.has_magic(word):
        raise InputError(f"{option}: {word}: no such file or folder")
    # the pattern may be absolute
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [Path(match) for match in matches if is_file(Path(match))]
    if not files:
        raise InputError(f"{option}: {word}: no file matches")
    return files


def _images_in(folder: Path) -> Iterator[Path]:
    """Images by their names' endings, in the folders inside as well; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(place, name)


def _is_shard_folder(path: Path) -> bool:
    return (path / INDEX).is_file() or any(path.glob("*.tar"))
