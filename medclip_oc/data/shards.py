"""Reading shards: any pair by its position, through an index, without scanning.

A shard folder holds `{split}-{000000..N}.tar`, each pair three neighbouring members: `KEY.jpg` (or
`.png`), `KEY.txt` (caption, UTF-8), `KEY.json` (facts). `index.json` beside them says where each
member lies (packing writes it):

    {"version": 1, "options": {...}, "shards": [
      {"name": "train-000000.tar", "split": "train", "samples": 2, "bytes": 20480, "sha256": "...",
       "keys": ["a", "b"], "extensions": ["jpg", "png"],
       "members": [[image offset, image size, text offset, text size, json offset, json size], ...]}
    ], "files": {"rejects.csv": SHA-256, "sizes.json": SHA-256}}

Tars of another maker, without such an index, get one by a walk over their headers. There members
may come in any order within a pair, `.json` may be absent and further ones are passed over.
"""

import hashlib
import os
import resource
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError, ShardChanged
from ..imaging.decode import decode
from .index import CAPTION, IMAGE_EXTENSIONS, RESTORE, Shard, choose_captions, find, parse_facts
from .tars import BLOCK, has_extended_member

SETS = "::"  # stands between sets that are read as one
_OPEN_TARS = min(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)  # per process


@dataclass(frozen=True)
class Sample:
    """One pair as it lies in its shard."""

    key: str  # name of the pair, unique in its shard
    image: bytes  # encoded
    extension: str  # jpg, jpeg, png or webp
    caption: str
    facts: dict[str, Any]
    """KEY.json: id, split, width, height, mode, sha256, concepts. {} without that file."""
    further: tuple[str, ...] = ()  # captions that are as right


class Studies(NamedTuple):
    """Which pairs are of one study: S studies of N pairs, numbered by their first pairs."""

    names: list[str]  # (S,) `study` of KEY.json; "": a pair without it, which is one of its own
    of_pair: np.ndarray  # (N,) int64, number of each pair's study


class ShardSet:
    """Pairs of one split, by position 0..len-1, read through the index without scanning.

    Other processes may get an instance, by a pickle or a fork; several threads may read at once.
    `sizes` has the pairs of each of the sets that were joined by `::`; the `fingerprint`, a hash of
    the index, ties a checkpoint to its data; `studies` are set by `balance.read_studies`, where
    somebody asks for them.
    """

    def __init__(self, sets: Sequence[Sequence[Shard]], caption_key: str = CAPTION) -> None:
        self._sets, self._caption_key = sets, caption_key
        self._shards = [shard for shards in sets for shard in shards]
        self._ends = np.cumsum([len(shard) for shard in self._shards])  # (S,), S shards
        self.sizes = [sum(map(len, shards)) for shards in sets]
        identities = "\n".join(f"{shard.path.name} {shard.identity}" for shard in self._shards)
        self.fingerprint = hashlib.sha256(identities.encode()).hexdigest()
        self._open_tar = lru_cache(_OPEN_TARS)(_Tar)
        self.studies: Studies | None = None

    @classmethod
    def open(
        cls, where: str | Sequence[str], split: str, caption_key: str = CAPTION, bare: bool = False
    ) -> "ShardSet":
        """Find the shards and their index. What foreign ones hold besides pairs is said on stderr.

        `where` is a shard folder, whose `split` is taken; or a brace pattern, a glob, a tar; or
        several of those joined by `::`; or a list of tars, globs and patterns. Shards named one by
        one are all taken. `caption_key` as in `DataConfig`; `bare` takes images without a caption.
        InputError: nothing there, a shard missing or of another size than its index says, an index
        of another version, no readable pair.
        """
        names = where.split(SETS) if isinstance(where, str) else [where]
        if "" in names:
            raise InputError(f"{where}: no set on one side of {SETS}")
        return cls([find(name, split, caption_key, bare) for name in names], caption_key)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        # open files stay in their process
        return ShardSet, (self._sets, self._caption_key), {"studies": self.studies}

    def ids(self) -> list[str]:
        """A name for each pair, in order: its key or, where several pairs have that, SHARD/KEY."""
        keys = [key.decode() for shard in self._shards for key in shard.keys.tolist()]
        times = Counter(keys)
        for position, key in enumerate(keys):
            if times[key] > 1:
                keys[position] = f"{self._find(position)[0].stem}/{key}"
        times = Counter(keys)  # shards of two sets may have the same names, too
        return [f"{k}#{n}" if times[k] > 1 else k for n, k in enumerate(keys)]

    def key(self, position: int) -> str:
        """Name of a pair, unique in its shard."""
        return self._find(position)[1]

    def locate(self, position: int) -> str:
        """Where a pair lies, for messages: "train-000003.tar: KEY"."""
        path, key, *_ = self._find(position)
        return f"{path.name}: {key}"

    def read(self, position: int, *, image: bool = True) -> Sample:
        """One pair; `image` says whether with its image. IndexError: the position is not in
        0..len-1. ShardChanged: the shard isn't the one that its index describes, or went away.
        InputError: the caption is no text.
        """
        path, key, extension, members = self._find(position)
        tar = self._open_tar(path)
        picture = tar.read(*members[0]) if image else b""
        text, content = (tar.read(*member) for member in members[1:])
        facts = parse_facts(content)
        try:
            caption, *further = choose_captions(read_caption(text), facts, self._caption_key)
        except ValueError as error:
            raise InputError(f"{path.name}: {key}: {error}") from None
        return Sample(key, picture, extension, caption, facts, tuple(further))

    def pictures(
        self, keys: Set[str]
    ) -> tuple[dict[str, tuple[str, Image.Image]], dict[str, BadImage]]:
        """Captions and decoded images of those pairs that are there, by key; and what can't be."""
        pairs, bad = {}, {}
        for position, key in enumerate(self.ids()):
            if key in keys:
                sample = self.read(position)
                try:
                    pairs[key] = sample.caption, decode(sample.image)
                except BadImage as error:
                    bad[key] = error
        return pairs, bad

    def facts(self, position: int) -> dict[str, Any]:
        """KEY.json of a pair alone."""
        path, *_, members = self._find(position)
        return parse_facts(self._open_tar(path).read(*members[2]))

    def has_key(self, position: int) -> bool:
        """Whether a pair has what `caption_key` names: a member, or a text in KEY.json."""
        name, key = self._find(position)[3][1][0], self._caption_key
        return name.endswith(f".{key}") or choose_captions("", self.facts(position), key) != [""]

    def _find(self, position: int) -> tuple[Path, str, str, list[tuple[str, int, int]]]:
        """Shard, key and image extension of a pair; name, offset and size of its members there."""
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard, row = self._shards[number], position - int(self._ends[number])  # from its end
        key, extension = shard.keys[row].decode(), IMAGE_EXTENSIONS[shard.extensions[row]]
        names = (f"{key}.{end}" for end in (extension, "txt", "json"))
        places = zip(names, *shard.places[row].reshape(3, 2).T.tolist(), strict=True)
        members = [(shard.names.get(offset, name), offset, size) for name, offset, size in places]
        return shard.path, key, extension, members


def read_caption(text: bytes) -> str:
    """KEY.txt; ValueError where it is no UTF-8."""
    try:
        return text.decode()
    except ValueError as error:
        raise ValueError(f"caption unreadable: {error}") from None


class _Tar:
    """An open tar, closed when nobody holds it: eviction can't close it under a reader."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1  # __del__ runs even if the next lines fail
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardChanged(f"{path}: {error.strerror}") from None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member; b"" without a place. The one place where shards are read."""
        if offset < 0:
            return b""
        own = name.encode(errors="surrogateescape").ljust(100, b"\0")
        plain = b"%b%011o0\0" % (own, size)  # its name, size and type; no prefix
        try:  # no file position, so processes that share it after a fork don't meet
            header = os.pread(self.descriptor, BLOCK, offset - BLOCK) if offset >= BLOCK else b""
            there = header[:100] + header[124:135] + header[156:157] + header[345:346] == plain
            there = there or has_extended_member(self.descriptor, name, offset, size)
            content = os.pread(self.descriptor, size, offset) if there else b""
        except OSError as error:
            raise ShardChanged(f"{self.path}: {error.strerror}") from None
        if not there or len(content) != size:
            raise ShardChanged(f"{self.path.name}: {name}: not where the index says; {RESTORE}")
        return content

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
