"""Shards and their indexes: which tars are meant, and where the members of each pair lie in them.

Shards of ours come with an index.json (see shards.py). Tars of another maker are walked through,
header by header, several at once.

N pairs. Offsets and sizes are in bytes.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

VERSION = 1
INDEX, SIZES, REJECTS = "index.json", "sizes.json", "rejects.csv"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = {"name", "split", "samples", "bytes", "sha256", "keys", "extensions", "members"}
ABSENT = [-1, 0]
"""Offset and size of a member that a pair doesn't have."""

# webdataset's rule: the key ends at the first dot of the file name, folders belong to the key
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_BETWEEN = re.compile(r"[\s,]*")
_CHUNK = 1 << 20
_THREADS = 16  # tars walked through at once: on a shared disk, the time is in waiting


@dataclass
class Shard:
    """Where the pairs of one shard lie."""

    name: str
    size: int
    keys: list[str]
    extensions: list[str]
    members: np.ndarray
    """(N, 6) int64: offset and size of image, text and json."""
    identity: str
    """Hash of its content or, without an index.json, of its layout."""
    skipped: int = 0
    """Entries that are no pair: the image or the caption is absent."""


def expand(pattern: str) -> list[Path]:
    """The tars that a brace pattern, a glob or a path names, in order.

    Raises:
        InputError: there is no such file.
    """
    import braceexpand

    try:
        names = list(braceexpand.braceexpand(str(Path(pattern).expanduser())))
    except ValueError as error:
        raise InputError(f"{pattern}: {error}") from None
    found: list[Path] = []
    for name in names:
        if Path(name).is_dir():
            raise InputError(f"{name}: a folder among tars; folders are joined by ::")
        if Path(name).is_file():
            found.append(Path(name))
        elif matches := sorted(glob.glob(name)):  # noqa: PTH207 (the pattern may be absolute)
            found += map(Path, matches)
        else:
            kind = "no file matches" if glob.has_magic(name) else "no such shard"
            raise InputError(f"{name}: {kind}" + (f" (from {pattern})" if name != pattern else ""))
    return found


def read_index(folder: Path) -> Iterator[dict[str, Any]]:
    """The entry of each shard in a folder's index.json (see shards.py), one after another.

    One entry is in memory at a time: the whole of ten million pairs would take many gigabytes.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = folder / INDEX
    damaged = InputError(f"{path}: damaged; pack the folder again")
    try:
        for entry in _entries_of_json(path):
            lengths = {len(entry[name]) for name in ("keys", "extensions", "members")}
            if lengths != {entry["samples"]} or not entry.keys() >= ENTRY:
                raise damaged
            yield entry
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None


def _entries_of_json(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in the list "shards", which comes last in the file; checks the version."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(_CHUNK)
        begin = re.search(r'"shards"\s*:\s*\[', text)
        head = json.loads(text[: begin.end()] + "]}") if begin else {}
        if begin is None or "version" not in head:  # laid out in another way
            content = json.loads(text + file.read())
            _check_version(path, content["version"])
            yield from content["shards"]
            return
        _check_version(path, head["version"])
        at = begin.end()
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it may be empty
            if text.startswith("]", at):
                rest = text[at + 1 :].lstrip(" \t\r\n,")
                json.loads("{" + rest + file.read())  # it must be whole, too
                return
            try:
                entry, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                more = file.read(max(_CHUNK, len(text) - at))
                if not more:
                    raise
                text, at = text[at:] + more, 0
                continue
            yield entry


def _check_version(path: Path, version: object) -> None:
    if version != VERSION:
        raise InputError(f"{path}: version {version!r}, this program reads version {VERSION}")


def of_split(folder: Path, split: str) -> Iterator[Shard]:
    """The shards of a folder's split, by its index.json.

    Raises:
        InputError: as `read_index`, or there is no such split.
    """
    there = dict[str, None]()
    for entry in read_index(folder):
        there[entry["split"]] = None
        if entry["split"] == split:
            yield _indexed(entry)
    if split not in there:
        found = ", ".join(there) or "none"
        raise InputError(f"{folder}: no split {split!r}; splits there: {found}")


def _indexed(entry: dict[str, Any]) -> Shard:
    members = np.array(entry["members"], dtype=np.int64).reshape(-1, 6)
    keys, extensions = entry["keys"], entry["extensions"]
    return Shard(entry["name"], entry["bytes"], keys, extensions, members, entry["sha256"])


def of_tars(paths: Sequence[Path]) -> Iterator[Shard]:
    """Shards named one by one: by the index.json beside them, or else by a walk over their headers.

    Raises:
        InputError: as `read_index`, or a tar can't be read.
    """
    known = dict[Path, Shard]()
    for folder in dict.fromkeys(path.parent for path in paths):
        if (folder / INDEX).is_file():
            wanted = {path for path in paths if path.parent == folder}
            for entry in read_index(folder):
                if folder / entry["name"] in wanted:
                    known[folder / entry["name"]] = _indexed(entry)
    scanned = _scans([path for path in paths if path not in known])
    for path in paths:
        yield known[path] if path in known else next(scanned)


def _scans(paths: Sequence[Path]) -> Iterator[Shard]:
    """`scan` of each, several at once, in order; few results wait at a time."""
    rest, pending = iter(paths), deque[Future[Shard]]()
    with ThreadPoolExecutor(_THREADS) as pool:
        pending.extend(pool.submit(scan, path) for path in islice(rest, 2 * _THREADS))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(scan, path) for path in islice(rest, 1))


def scan(path: Path) -> Shard:
    """Index a tar by its headers. As in webdataset, a pair's members follow one another."""
    keys, extensions, rows, skipped = [], [], [], 0
    for key, members in _runs(path):
        image = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if image is None or "txt" not in members:
            skipped += 1
            continue
        keys.append(key)
        extensions.append(image)
        rows.append([*members[image], *members["txt"], *members.get("json", ABSENT)])
    array = np.array(rows, dtype=np.int64).reshape(-1, 6)
    identity = hashlib.sha256("\n".join(keys).encode() + array.tobytes()).hexdigest()
    return Shard(path.name, path.stat().st_size, keys, extensions, array, identity, skipped)


def _runs(path: Path) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Key and {extension: [offset, size]} of each run of members with the same key."""
    current, members = "", dict[str, list[int]]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
                match = MEMBER.fullmatch(member.name)
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
        with path.open("rb") as file:  # tarfile takes one that is cut between members for whole
            file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise InputError(f"{path}: cut: a tar ends with zeros")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable, uncompressed tar: {error}") from None
    if members:
        yield current, members
