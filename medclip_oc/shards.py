"""Reading shards: any pair by its position, through an index, without scanning.

A shard folder holds `{split}-{000000..N}.tar`, each pair three members in this order: `KEY.jpg` (or
`.png`), `KEY.txt` (caption, UTF-8), `KEY.json` (facts). `index.json` beside them says where each
member lies (packing.py writes it):

    {"version": 1, "options": {...}, "shards": [
      {"name": "train-000000.tar", "split": "train", "samples": 2, "bytes": 20480, "sha256": "...",
       "keys": ["a", "b"], "extensions": ["jpg", "png"],
       "members": [[image offset, image size, text offset, text size, json offset, json size], ...]}
    ], "files": {"rejects.csv": SHA-256, "sizes.json": SHA-256}, "seal": SHA-256 of all before it}

Tars of another maker, without such an index, get one in memory by a walk over their headers. There
members may come in any order within a pair, `.json` may be absent and further ones are passed over.

N pairs. Offsets and sizes are in bytes.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

VERSION = 1
INDEX, SIZES, REJECTS = "index.json", "sizes.json", "rejects.csv"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = {"name", "split", "samples", "bytes", "sha256", "keys", "extensions", "members"}
ABSENT = [-1, 0]
"""Offset and size of a member that a pair doesn't have."""

# webdataset's rule: the key ends at the first dot of the file name, folders belong to the key
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
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


@dataclass
class _Shard:
    """Where the pairs of one tar lie."""

    path: Path
    keys: list[str]
    extensions: list[str]
    members: np.ndarray
    """(N, 6) int64: offset and size of image, text and json."""
    identity: str
    """Hash of the content or, without an index file, of the layout."""
    skipped: int = 0
    """Entries that are no pair: the image or the caption is absent."""


class ShardSet:
    """Pairs of one split, by position 0..len-1, read through the index without scanning.

    Open files are per process and come back by themselves after a pickle or a fork, so that an
    instance can be handed to DataLoader workers. Several threads may read at once.

    Attributes:
        fingerprint: hash of the index; ties a checkpoint to its data.
        skipped: entries of foreign shards that have no image or no caption.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        counts = [len(shard.keys) for shard in shards]
        self._paths = [str(shard.path) for shard in shards]
        self._starts = np.cumsum([0, *counts])  # (shards + 1,) position of each shard's first pair
        self._members = np.concatenate([shard.members for shard in shards])  # (N, 6)
        # Strings in one block: ten million Python strings would weigh a gigabyte.
        keys = [key.encode() for shard in shards for key in shard.keys]
        self._keys = b"".join(keys)
        self._key_ends = np.cumsum([0, *map(len, keys)])  # (N + 1,)
        codes = [IMAGE_EXTENSIONS.index(e) for shard in shards for e in shard.extensions]
        self._extensions = np.array(codes, dtype=np.int8)
        identities = "\n".join(f"{shard.path.name} {shard.identity}" for shard in shards)
        self.fingerprint = hashlib.sha256(identities.encode()).hexdigest()
        self.skipped = sum(shard.skipped for shard in shards)
        self._open_tar = _tar_cache()

    @classmethod
    def open(cls, where: str | Sequence[str], split: str) -> "ShardSet":
        """Find the shards and their index.

        Args:
            where: a shard folder; or a brace pattern, a glob, a tar, or a list of those.
            split: the folder's split to take. Shards named one by one are all taken.

        Raises:
            InputError: nothing there, a shard missing or of another size than its index says, an
                index of another version, no readable pair.
        """
        if isinstance(where, str) and _is_folder(where):
            shards = _of_folder(Path(where).expanduser(), split)
        else:
            patterns = [where] if isinstance(where, str) else list(where)
            shards = _of_tars([path for pattern in patterns for path in _expand(pattern)])
        if not any(shard.keys for shard in shards):
            raise InputError(f"{where}: no readable pair (an image, then a .txt of the same name)")
        return cls(shards)

    def __len__(self) -> int:
        return len(self._members)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open_tar"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open_tar=_tar_cache())

    def key(self, position: int) -> str:
        """Name of a pair."""
        self._shard_of(position)
        return self._keys[self._key_ends[position] : self._key_ends[position + 1]].decode()

    def locate(self, position: int) -> str:
        """Where a pair lies, for messages: "train-000003.tar: KEY"."""
        return f"{os.path.basename(self._shard_of(position))}: {self.key(position)}"  # noqa: PTH119

    def read(self, position: int) -> Sample:
        """One pair.

        Raises:
            IndexError: the position is not in 0..len-1.
            InputError: the shard changed since the index was made.
        """
        tar = self._open_tar(self._shard_of(position))
        row = self._members[position].tolist()
        image, text, facts = (tar.read(row[i], row[i + 1]) for i in (0, 2, 4))
        if len(image) + len(text) + len(facts) != row[1] + row[3] + row[5]:
            raise InputError(f"{self.locate(position)}: the shard ends before this pair does")
        try:
            caption, known = text.decode(), json.loads(facts) if facts else {}
        except ValueError as error:
            raise InputError(
                f"{self.locate(position)}: caption or facts unreadable: {error}"
            ) from None
        extension = IMAGE_EXTENSIONS[self._extensions[position]]
        return Sample(self.key(position), image, extension, caption, known)

    def _shard_of(self, position: int) -> str:
        """Path of the tar that holds a pair."""
        if not 0 <= position < len(self):
            raise IndexError(f"pair {position} of {len(self)}")
        return self._paths[int(np.searchsorted(self._starts, position, side="right")) - 1]


class _Tar:
    """An open tar, closed when nobody holds it: eviction can't close it under a reader."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1  # __del__ runs even if the next lines fail
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None

    def read(self, offset: int, size: int) -> bytes:
        # pread has no file position, so processes that share the descriptor after a fork don't meet
        return os.pread(self.descriptor, size, offset) if size else b""

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _tar_cache() -> Callable[[str], _Tar]:
    return lru_cache(_OPEN_TARS)(_Tar)


# ---------------------------------------------------------------------------------- finding shards


def _is_folder(where: str) -> bool:
    path = Path(where).expanduser()
    if path.is_dir():
        return True
    if path.exists() or where.endswith(".tar") or re.search(r"[*?\[{]", where):
        return False
    raise InputError(f"{where}: no such shard folder (tools/make_shards.py makes one)")


def _expand(pattern: str) -> list[Path]:
    """The tars that a brace pattern, a glob or a path names, in order."""
    import braceexpand

    try:
        names = list(braceexpand.braceexpand(str(Path(pattern).expanduser())))
    except ValueError as error:
        raise InputError(f"{pattern}: {error}") from None
    found: list[Path] = []
    for name in names:
        if Path(name).is_file():
            found.append(Path(name))
        elif matches := sorted(glob.glob(name)):  # noqa: PTH207 (the pattern may be absolute)
            found += map(Path, matches)
        else:
            kind = "no file matches" if glob.has_magic(name) else "no such shard"
            raise InputError(f"{name}: {kind}" + (f" (from {pattern})" if name != pattern else ""))
    return found


def _of_folder(folder: Path, split: str) -> list[_Shard]:
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: no {INDEX}: not a finished shard folder; pack it again")
    entries = read_index(folder)
    own = [entry for entry in entries if entry["split"] == split]
    if not own:
        there = ", ".join(dict.fromkeys(entry["split"] for entry in entries)) or "none"
        raise InputError(f"{folder}: no split {split!r}; splits there: {there}")
    return [_indexed(folder / entry["name"], entry) for entry in own]


def _of_tars(paths: Sequence[Path]) -> list[_Shard]:
    """Shards named one by one; the index beside them serves those that it knows."""
    known: dict[Path, dict[str, Any]] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        if (folder / INDEX).is_file():
            known |= {folder / entry["name"]: entry for entry in read_index(folder)}
    return [_indexed(path, known[path]) if path in known else _scanned(path) for path in paths]


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The entry of each shard in a folder's index.json (see the top of this module).

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        version = index["version"]
        if version != VERSION:
            raise InputError(f"{path}: version {version!r}, this program reads version {VERSION}")
        entries: list[dict[str, Any]] = index["shards"]
        for entry in entries:
            lengths = {len(entry[name]) for name in ("keys", "extensions", "members")}
            if lengths != {entry["samples"]} or not entry.keys() >= ENTRY:
                raise KeyError
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; pack the folder again") from None
    return entries


def _indexed(path: Path, entry: dict[str, Any]) -> _Shard:
    try:
        size = path.stat().st_size
    except OSError:
        raise InputError(f"{path}: shard missing, and {INDEX} names it") from None
    if size != entry["bytes"]:
        raise InputError(f"{path}: {size} bytes, {INDEX} says {entry['bytes']}; damaged or changed")
    members = np.array(entry["members"], dtype=np.int64).reshape(-1, 6)
    return _Shard(path, entry["keys"], entry["extensions"], members, entry["sha256"])


def _scanned(path: Path) -> _Shard:
    """Index a tar by its headers. As in webdataset, a pair's members follow one another."""
    keys, extensions, rows, skipped = [], [], [], 0
    for key, members in _entries(path):
        image = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if image is None or "txt" not in members:
            skipped += 1
            continue
        keys.append(key)
        extensions.append(image)
        rows.append([*members[image], *members["txt"], *members.get("json", ABSENT)])
    array = np.array(rows, dtype=np.int64).reshape(-1, 6)
    layout = "\n".join(keys).encode() + array.tobytes()
    return _Shard(path, keys, extensions, array, hashlib.sha256(layout).hexdigest(), skipped)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Key and {extension: [offset, size]} of each run of members with the same key."""
    current, members = "", dict[str, list[int]]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if key != current and members:
                    yield current, members
                if key != current:
                    current, members = key, {}
                if extension in members:
                    raise InputError(f"{path}: {member.name} is there twice")
                members[extension] = [member.offset_data, member.size]
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable, uncompressed tar: {error}") from None
    if members:
        yield current, members
