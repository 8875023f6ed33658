"""Where the pairs of some shards lie.

Shards of ours come with an index.json (see shards.py). Tars of another maker are walked through,
header by header; what that finds is kept beside them, where it can be, in the same form. Its name
holds a hash of the tars' sizes and times of change, so it is never stale.

n pairs of a shard. Offsets and sizes are in bytes.
"""

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from ..errors import InputError, WorkError
from ..runtime.atomic import atomic_file

VERSION = 1
INDEX, SIZES, REJECTS = "index.json", "sizes.json", "rejects.csv"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = {"name", "split", "samples", "bytes", "sha256", "keys", "extensions", "members"}
"""What index.json says of a shard."""

_ABSENT = (-1, 0)  # the place of the .json of a pair that has none
_THREADS = 16  # tars walked through at once: on a shared disk, the time is in waiting


@dataclass(frozen=True)
class Shard:
    """A tar, and where its pairs lie."""

    path: Path
    split: str
    bytes: int
    identity: str
    """Hash of the content or, without an index.json, of where its pairs lie."""
    keys: np.ndarray
    """(n,) UTF-8."""
    extensions: np.ndarray
    """(n,) int8, places in IMAGE_EXTENSIONS."""
    places: np.ndarray
    """(n, 6) int64: offset and size of image, text and JSON."""
    skipped: int
    """Entries without an image or a caption."""

    def __len__(self) -> int:
        return len(self.keys)


def of_folder(folder: Path, split: str) -> list[Shard]:
    """The shards of a split of a shard folder.

    Raises:
        InputError: no index.json, a damaged one or one of another version; no such split; a shard
            that is missing or of another size.
    """
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: no {INDEX}: not a finished shard folder; pack it again")
    shards = _read(folder / INDEX)
    splits = dict.fromkeys(shard.split for shard in shards)
    if split not in splits:
        names = ", ".join(splits) or "none"
        raise InputError(f"{folder}: no split {split!r}; splits there: {names}")
    return _there([shard for shard in shards if shard.split == split])


def of_tars(paths: Iterable[Path]) -> list[Shard]:
    """The shards named one by one; an index.json beside them serves those it names.

    Raises:
        InputError: one that can't be read, or as `of_folder`.
    """
    paths = [path.absolute() for path in paths]
    folders = {path.parent for path in paths if (path.parent / INDEX).is_file()}
    known = {shard.path: shard for folder in folders for shard in _read(folder / INDEX)}
    if foreign := [path for path in paths if path not in known]:
        stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in foreign]
        name = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
        kept = foreign[0].parent / f".index-{name}.json"
        try:
            found = _read(kept)
            if [shard.path for shard in found] != foreign:
                raise InputError(f"{kept}: of other tars")
        except InputError:  # absent, cut or changed
            with ThreadPoolExecutor(_THREADS) as pool:
                entries = list(pool.map(scan, foreign))
            found = [_shard(kept.parent, entry) for entry in entries]
            with suppress(OSError, WorkError), atomic_file(kept, shared=True) as partial:
                content = json.dumps({"version": VERSION, "shards": entries})
                partial.write_text(content, encoding="utf-8")
        known |= {shard.path: shard for shard in found}
    return _there([known[path] for path in paths])


def _there(shards: list[Shard]) -> list[Shard]:
    """The shards, if all are there, at the size that is known."""
    for shard in shards:
        try:
            actual = shard.path.stat().st_size
        except OSError:
            advice = f"shard missing, and {INDEX} names it; restore it, or pack again"
            raise InputError(f"{shard.path}: {advice}") from None
        if actual != shard.bytes:
            sizes = f"{actual} bytes, {INDEX} says {shard.bytes}"
            raise InputError(f"{shard.path}: {sizes}; damaged or changed")
    return shards


def expand_braces(pattern: str) -> list[str]:
    """The names that a brace pattern such as `{000..012}.tar` stands for.

    Raises:
        InputError: its braces don't match.
    """
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{pattern}: {error}") from None


def expand(pattern: str) -> list[Path]:
    """The tars that a brace pattern, a glob or a path names, in order.

    Raises:
        InputError: there is no such file.
    """
    paths: list[Path] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
        if Path(name).is_dir():
            raise InputError(f"{name}: a folder among tars; folders are joined by ::")
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name))  # noqa: PTH207
        if not matches:
            hint = "no such shard folder or tar (tools/make_shards.py packs)"
            reason = "no file matches" if glob.has_magic(name) else hint
            raise InputError(f"{name}: {reason}" + (f", from {pattern}" if name != pattern else ""))
        paths += map(Path, matches)
    return paths


def image_extension(members: dict[str, Any]) -> str | None:
    """Which of a pair's members is the image; None without both an image and a caption."""
    return next((name for name in IMAGE_EXTENSIONS if name in members and "txt" in members), None)


def _read(path: Path) -> list[Shard]:
    """The shards in an index.json."""

    def entry(value: dict[str, Any]) -> Any:
        return _shard(path.parent, value) if "members" in value else value

    try:
        # arrays at once: as objects, the whole of ten million pairs would take many gigabytes
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=entry)
        if content["version"] == VERSION:
            return list(content["shards"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{path}: damaged; pack the folder again") from None
    version = content["version"]
    raise InputError(
        f"{path}: version {version!r}, this program reads version {VERSION}; pack it again"
    )


def _shard(folder: Path, entry: dict[str, Any]) -> Shard:
    """What an entry of the index says; ValueError where it contradicts itself."""
    keys = np.array([key.encode() for key in entry["keys"]], "S")  # (n,)
    kinds = [IMAGE_EXTENSIONS.index(extension) for extension in entry["extensions"]]
    places = np.array(entry["members"], np.int64).reshape(-1, 6)  # (n, 6)
    if not len(keys) == len(kinds) == len(places) == entry["samples"]:
        raise ValueError("lists of different lengths")
    path, about = folder.absolute() / entry["name"], (entry["split"], entry["bytes"])
    extensions, skipped = np.array(kinds, np.int8), entry.get("skipped", 0)  # (n,)
    return Shard(path, *about, entry["sha256"], keys, extensions, places, skipped)


def scan(path: Path) -> dict[str, Any]:
    """Index a tar by its headers: its entry. As in webdataset, a pair's members follow one another.

    Raises:
        InputError: not a tar, a compressed or cut one, or one with a member twice in a pair.
    """
    from webdataset.tariterators import group_by_keys  # imports torch, which packing doesn't need

    keys, extensions, places, skipped = [], [], [], 0
    try:
        for members in group_by_keys(_headers(path)):
            extension = image_extension(members)
            if extension is None:
                skipped += 1
                continue
            keys.append(members["__key__"])
            extensions.append(extension)
            places.append([*members[extension], *members["txt"], *members.get("json", _ABSENT)])
        layout = "\n".join(keys).encode() + np.array(places, np.int64).tobytes()
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable, uncompressed tar: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: {str(error.args[0]).partition(' in tar file')[0]}") from None
    about = {"name": str(path), "split": "", "samples": len(keys), "bytes": path.stat().st_size}
    identity = {"sha256": hashlib.sha256(layout).hexdigest(), "skipped": skipped}
    return {**about, **identity, "keys": keys, "extensions": extensions, "members": places}


def _headers(path: Path) -> Iterator[dict[str, Any]]:
    """The members as webdataset names them, with offset and size in place of the content."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
            if member.isfile():
                place = (member.offset_data, member.size)
                yield {"fname": member.name, "data": place, "__url__": str(path)}
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if file.read().strip(b"\0"):  # tarfile takes one that is cut between members for whole
            raise tarfile.ReadError("cut; a tar ends with zeros")
