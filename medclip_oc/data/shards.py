"""Reading shards: any pair by its position, through an index, without scanning.

A shard folder holds `{split}-{000000..N}.tar`, each pair three members in this order: `KEY.jpg` (or
`.png`), `KEY.txt` (caption, UTF-8), `KEY.json` (facts). `index.json` beside them says where each
member lies (packing.py writes it):

    {"version": 1, "options": {...}, "shards": [
      {"name": "train-000000.tar", "split": "train", "samples": 2, "bytes": 20480, "sha256": "...",
       "keys": ["a", "b"], "extensions": ["jpg", "png"],
       "members": [[image offset, image size, text offset, text size, json offset, json size], ...]}
    ], "files": {"rejects.csv": SHA-256, "sizes.json": SHA-256}, "seal": SHA-256 of all before it}

Tars of another maker, without such an index, get one by a walk over their headers. There members
may come in any order within a pair, `.json` may be absent and further ones are passed over. Either
way the program works from arrays made once from it (see shard_layout.py).

N pairs. Offsets and sizes are in bytes.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ShardChanged
from . import index_arrays
from .index import IMAGE_EXTENSIONS, expand
from .index_arrays import Layout

SETS = "::"
"""Stands between sets that are read as one."""

# open tars per process: far below the 256 files that macOS allows
_OPEN_TARS = 64


@dataclass(frozen=True)
class Sample:
    """One pair as it lies in its shard."""

    key: str
    """Name of the pair, unique in its shard."""
    image: bytes
    """The encoded image."""
    extension: str
    """jpg, jpeg, png or webp."""
    caption: str
    facts: dict[str, Any]
    """KEY.json: id, split, width, height, mode, sha256, concepts. {} without that file."""


class ShardSet:
    """Pairs of one split, by position 0..len-1, read through the index without scanning.

    Open files are per process and come back by themselves after a pickle or a fork, so that an
    instance can be handed to DataLoader workers. Several threads may read at once.

    Attributes:
        sizes: pairs of each of the sets that were joined by `::`; one without it.
        fingerprint: hash of the index; ties a checkpoint to its data.
        skipped: entries of foreign shards that have no image or no caption.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = list(layouts)
        self.sizes = [len(layout.members) for layout in layouts]
        self._ends = np.cumsum(self.sizes)
        identities = "\n".join(
            f"{path.name} {identity}"
            for layout in layouts
            for path, identity in zip(layout.paths, layout.identities, strict=True)
        )
        self.fingerprint = hashlib.sha256(identities.encode()).hexdigest()
        self.skipped = sum(layout.skipped for layout in layouts)
        self._open_tar = _tar_cache()

    @classmethod
    def open(cls, where: str | Sequence[str], split: str) -> "ShardSet":
        """Find the shards and their index.

        Args:
            where: a shard folder; or a brace pattern, a glob, a tar; or several of those joined by
                `::`; or a list of tars, globs and patterns.
            split: the folder's split to take. Shards named one by one are all taken.

        Raises:
            InputError: nothing there, a shard missing or of another size than its index says, an
                index of another version, no readable pair.
        """
        sets = where.split(SETS) if isinstance(where, str) else [where]
        if "" in sets:
            raise InputError(f"{where}: no set on one side of {SETS}")
        return cls([_open_set(one, split) for one in sets])

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open_tar"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open_tar=_tar_cache())

    def ids(self) -> list[str]:
        """A name for each pair, in order: its key or, where several pairs have that, SHARD/KEY."""
        keys = [self.key(position) for position in range(len(self))]
        taken = Counter(keys)
        if len(taken) == len(keys):
            return keys
        for position, key in enumerate(keys):
            if taken[key] > 1:
                layout, row = self._find(position)
                keys[position] = f"{_path(layout, row).stem}/{key}"
        taken = Counter(keys)  # shards of two sets may have the same names, too
        return [f"{k}#{n}" if taken[k] > 1 else k for n, k in enumerate(keys)]

    def key(self, position: int) -> str:
        """Name of a pair, unique in its shard."""
        layout, row = self._find(position)
        return _key(layout, row)

    def locate(self, position: int) -> str:
        """Where a pair lies, for messages: "train-000003.tar: KEY"."""
        layout, row = self._find(position)
        return f"{_path(layout, row).name}: {_key(layout, row)}"

    def read(self, position: int) -> Sample:
        """One pair.

        Raises:
            IndexError: the position is not in 0..len-1.
            ShardChanged: the shard changed since the index was made.
            InputError: the caption or the facts are no text.
        """
        layout, row = self._find(position)
        tar = self._open_tar(str(_path(layout, row)))
        places = layout.members[row].tolist()
        image, text, about = (tar.read(places[i], places[i + 1]) for i in (0, 2, 4))
        if len(image) + len(text) + len(about) != places[1] + places[3] + places[5]:
            raise ShardChanged(f"{self.locate(position)}: the shard ends before this pair does")
        try:
            caption, facts = text.decode(), _facts(about)
        except ValueError as error:
            where = self.locate(position)
            raise InputError(f"{where}: caption or facts unreadable: {error}") from None
        return Sample(
            _key(layout, row), image, IMAGE_EXTENSIONS[layout.extensions[row]], caption, facts
        )

    def facts(self, position: int) -> dict[str, Any]:
        """KEY.json of a pair alone; {} without it, or where it is no JSON object."""
        layout, row = self._find(position)
        offset, size = layout.members[row, 4:].tolist()
        try:
            return _facts(self._open_tar(str(_path(layout, row))).read(offset, size))
        except ValueError:
            return {}

    def check(self) -> None:
        """Look whether every shard is still there, at its size.

        Raises:
            ShardChanged: one is not; names it.
        """
        for layout in self._layouts:
            for path, size in zip(layout.paths, layout.bytes.tolist(), strict=True):
                if wrong := index_arrays.changed(path, size):
                    raise ShardChanged(wrong)

    def _find(self, position: int) -> tuple[Layout, int]:
        """The layout that holds a pair, and the pair's row there."""
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self._layouts[number], position - int(self._ends[number]) + self.sizes[number]


def _facts(about: bytes) -> dict[str, Any]:
    """Other makers' .json may be anything."""
    known = json.loads(about) if about else {}
    return known if isinstance(known, dict) else {}


def _path(layout: Layout, row: int) -> Path:
    return layout.paths[int(np.searchsorted(layout.starts, row, side="right")) - 1]


def _key(layout: Layout, row: int) -> str:
    return bytes(layout.keys[layout.key_ends[row] : layout.key_ends[row + 1]]).decode()


def _open_set(where: str | Sequence[str], split: str) -> Layout:
    if isinstance(where, str) and _is_folder(where):
        layout = index_arrays.of_folder(Path(where).expanduser(), split)
    else:
        patterns = [where] if isinstance(where, str) else where
        layout = index_arrays.of_tars([path for pattern in patterns for path in expand(pattern)])
    if not len(layout.members):
        raise InputError(f"{where}: no readable pair (an image, then a .txt of the same name)")
    return layout


def _is_folder(where: str) -> bool:
    path = Path(where).expanduser()
    if path.is_dir():
        return True
    if path.exists() or where.endswith(".tar") or re.search(r"[*?\[{]", where):
        return False
    raise InputError(f"{where}: no such shard folder (tools/make_shards.py makes one)")


class _Tar:
    """An open tar, closed when nobody holds it: eviction can't close it under a reader."""

    def __init__(self, path: str) -> None:
        self.path, self.descriptor = path, -1  # __del__ runs even if the next lines fail
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardChanged(f"{path}: {error.strerror}") from None

    def read(self, offset: int, size: int) -> bytes:
        try:  # no file position, so processes that share it after a fork don't meet
            return os.pread(self.descriptor, size, offset) if size else b""
        except OSError as error:
            raise ShardChanged(f"{self.path}: {error.strerror}") from None

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _tar_cache() -> Callable[[str], _Tar]:
    return lru_cache(_OPEN_TARS)(_Tar)
