"""Images that a user names: files, folders, globs, shard folders, tars. Read by position.

Nothing is read before it is asked for, and what is kept of an image is where it lies; or, of a file
of features, these.
"""

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data.index import INDEX
from ..data.shards import ShardSet
from ..errors import BadImage, InputError
from ..imaging.decode import is_dicom
from ..packing.image_store import EXTENSIONS, is_file, read_file


@dataclass(frozen=True)
class ImageSet:
    """N images by position."""

    places: Sequence[Path | tuple[ShardSet, int] | str]
    """A file; a shard folder and the position in it; or an id of a file of features."""
    features: Tensor | None = None  # of that file: (N, D), normalised
    weights: float | None = None  # size of those that made them, where known

    def __len__(self) -> int:
        return len(self.places)

    def name(self, position: int) -> str:
        """What rows call an image: its path, or its key in a shard."""
        place = self.places[position]
        return place[0].key(place[1]) if isinstance(place, tuple) else str(place)

    def read(self, position: int) -> bytes:
        """The encoded image; BadImage: a file that can't be read; others as `ShardSet.read`."""
        place = self.places[position]
        if isinstance(place, tuple):
            return place[0].read(place[1]).image
        try:
            return read_file(str(place))
        except OSError as error:
            raise BadImage("undecodable", error.strerror or str(error)) from None

    def names(self, rows: Collection[str]) -> list[str]:
        """What a table may call the images: see `name`, or else the id of which a key was made."""
        names = [self.name(n) for n in range(len(self))]
        for n, place in enumerate(self.places):
            if isinstance(place, tuple) and names[n] not in rows:
                names[n] = str(place[0].facts(place[1]).get("id") or names[n])
        return names


def find(
    words: Sequence[str], split: str | None, option: str = "--images", default: str = "test"
) -> ImageSet:
    """All images that the words name (see `ZeroshotConfig.images`), in their order; in a folder by
    name. A file counts once. `option` is what errors call them. InputError: a word that names no
    image, a split without a shard folder, or what `ShardSet.open` raises.
    """
    places = dict[Path | tuple[ShardSet, int], None]()  # each once, in order
    has_folder = False
    for word in words:
        path = Path(word).expanduser()
        is_folder = (path / INDEX).is_file() or any(path.glob("*.tar*"))
        has_folder |= is_folder
        if is_folder or word.endswith((".tar", ".tar.gz", ".tgz")):
            shards = ShardSet.open(word, split or default, bare=True)
            places |= dict.fromkeys((shards, n) for n in range(len(shards)))
        else:
            places |= dict.fromkeys(_files(path, word, option))
    if split is not None and not has_folder:
        raise InputError(f"--split {split}: {option} names no shard folder")
    return ImageSet(list(places))


def _is_image(path: Path) -> bool:
    """By its ending; by its first bytes where it has none, as DICOM files from a scanner."""
    if path.suffix and not path.suffix[1:].isdigit():  # of a UID, such as 1.2.840.1
        return path.name.lower().endswith(EXTENSIONS)
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _files(path: Path, word: str, option: str) -> list[Path]:
    """What a word names on the disk: a file, the images in a folder, or the files of a glob."""
    if is_file(path):
        return [path]
    if path.is_dir():
        names = (str(file.relative_to(path)) for file in path.rglob("*"))
        shown = (name for name in names if "/." not in f"/{name}")  # nothing hidden
        files = [path / name for name in shown if _is_image(path / name)]
        problem = f"a folder without images ({', '.join(EXTENSIONS)})"
    else:  # a pattern, which may be absolute
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = list(filter(is_file, matches))
        problem = "no file matches" if glob.has_magic(word) else "no such file or folder"
    if not files:
        raise InputError(f"{option}: {word}: {problem}")
    return sorted(files)
