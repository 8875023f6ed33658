"""Where the pairs of some shards lie: two plain numpy arrays, made once and mapped into memory.

Shards of ours come with an index.json (see shards.py); tars of another maker are walked through,
header by header. The result is kept as two `.npy` files, beside the shards or, where those can't be
written, in the user's cache folder. Their name holds a hash of the size and the time of change of
what they were made from: a set of ten million pairs is opened at once, and never a stale one.

N pairs, S shards. Offsets and sizes are in bytes.
"""

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import braceexpand
import numpy as np

from ..errors import InputError, WorkError
from ..runtime.atomic import atomic_file

VERSION = 1
INDEX, SIZES, REJECTS = "index.json", "sizes.json", "rejects.csv"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ENTRY = {"name", "split", "samples", "bytes", "sha256", "keys", "extensions", "members"}
"""What index.json says of a shard."""

_PLACES = ["image_offset", "image_size", "text_offset", "text_size", "json_offset", "json_size"]
_ABSENT = (-1, 0)  # the place of the .json of a pair that has none
_THREADS = 16  # tars walked through at once: on a shared disk, the time is in waiting


@dataclass(frozen=True)
class ShardIndex:
    """Where the pairs of some shards lie."""

    folder: Path
    file: Path
    """Start of the names of both arrays' files."""
    shards: np.ndarray
    """(S,) of name (a path from `folder`), bytes, pairs, skipped (entries without an image or a
    caption), identity (hash of the content or, without an index.json, of where its pairs lie)."""
    pairs: np.ndarray
    """(N,) of six offsets and sizes, shard, extension (place in IMAGE_EXTENSIONS), key (UTF-8)."""

    @property
    def paths(self) -> list[Path]:
        """The S shards."""
        return [self.folder / os.fsdecode(name) for name in self.shards["name"].tolist()]

    def problem(self) -> str | None:
        """What is wrong with a shard that is missing or of another size; None: nothing."""
        for path, size in zip(self.paths, self.shards["bytes"].tolist(), strict=True):
            try:
                actual = path.stat().st_size
            except OSError:
                return f"{path}: shard missing, and {INDEX} names it; restore it, or pack again"
            if actual != size:
                return f"{path}: {actual} bytes, {INDEX} says {size}; damaged or changed"
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.folder, self.file)  # another process maps the files again


class _Shard(NamedTuple):
    name: str
    split: str
    bytes: int
    identity: str
    pairs: np.ndarray
    skipped: int = 0


def of_folder(folder: Path, split: str) -> ShardIndex:
    """The index of a split of a shard folder.

    Raises:
        InputError: no index.json, a damaged one or one of another version; no such split; a shard
            that is missing or of another size.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX}: not a finished shard folder; pack it again")

    def read() -> list[_Shard]:
        shards = _read_index(folder)
        splits = dict.fromkeys(shard.split for shard in shards)
        if split not in splits:
            names = ", ".join(splits) or "none"
            raise InputError(f"{folder}: no split {split!r}; splits there: {names}")
        return [shard for shard in shards if shard.split == split]

    return _open(folder, f"{split}-{_hash(_stamp(path))}", read)


def of_tars(paths: Sequence[Path]) -> ShardIndex:
    """The index of tars named one by one; an index.json beside them serves those it names.

    Raises:
        InputError: no tar at all, one that can't be read, or as `of_folder`.
    """
    if not paths:
        raise InputError("no shards are named, so there is no readable pair")
    paths = [path.absolute() for path in paths]
    folders = [folder for folder in {path.parent for path in paths} if (folder / INDEX).is_file()]
    made_from = [*paths, *sorted(folder / INDEX for folder in folders)]

    def read() -> list[_Shard]:
        named = {folder / shard.name: shard for folder in folders for shard in _read_index(folder)}
        with ThreadPoolExecutor(_THREADS) as pool:
            scanned = pool.map(scan, [path for path in paths if path not in named])
            shards = [named[path] if path in named else next(scanned) for path in paths]
        return [shard._replace(name=str(path)) for shard, path in zip(shards, paths, strict=True)]

    name = _hash([[str(path), *_stamp(path)] for path in made_from])
    return _open(paths[0].parent, name, read)


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


def user_cache() -> Path:
    """Where the user's programs keep what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "medclip_oc"


def _open(folder: Path, name: str, read: Callable[[], list[_Shard]]) -> ShardIndex:
    """The index under this name, made of what `read` returns if there is none."""
    files = [folder / f".index-{name}", user_cache() / f"{_hash(str(folder.absolute()))}-{name}"]
    for file in files:
        with suppress(InputError):  # absent, or cut
            index = _load(folder, file)
            break
    else:
        index = _load(folder, _write(files, read()))
    if problem := index.problem():
        raise InputError(problem)
    return index


def _load(folder: Path, file: Path) -> ShardIndex:
    names = (f"{file}.{name}.npy" for name in ("shards", "pairs"))
    try:
        # viewed as plain arrays, whose rows are cheaper to take than a memmap's
        return ShardIndex(
            folder, file, *(np.load(name, mmap_mode="r").view(np.ndarray) for name in names)
        )
    except (OSError, ValueError, EOFError):
        raise InputError(f"{file}: removed or replaced while in use") from None


def _write(files: Sequence[Path], shards: Sequence[_Shard]) -> Path:
    """Write both arrays in the first place that can be written."""
    rows = [
        (os.fsencode(s.name), s.bytes, len(s.pairs), s.skipped, s.identity.encode()) for s in shards
    ]
    names = "name,bytes,pairs,skipped,identity"
    table = np.rec.fromrecords(rows, names=names)  # type: ignore[call-overload]  # (S,)
    pairs = np.concatenate([shard.pairs for shard in shards])  # (N,)
    pairs["shard"] = np.repeat(np.arange(len(shards)), table["pairs"])
    for file in files:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, array in (("pairs", pairs), ("shards", table)):
                path = Path(f"{file}.{name}.npy")
                with atomic_file(path, shared=True) as partial, partial.open("wb") as output:
                    np.save(output, array)
            return file
        except (OSError, WorkError):
            continue
    tried = ", ".join(str(file.parent) for file in files)
    raise InputError(f"the index of the shards can't be written in {tried}; set XDG_CACHE_HOME")


def _pairs(keys: list[str], extensions: list[str], places: list[list[int]]) -> np.ndarray:
    """The pairs of one shard: (n,)."""
    columns = [
        *np.array(places, np.int64).reshape(-1, len(_PLACES)).T,
        np.zeros(len(keys), np.int32),  # the shard, numbered when all are there
        np.array([IMAGE_EXTENSIONS.index(extension) for extension in extensions], np.int8),
        np.array([key.encode() for key in keys], "S"),
    ]
    names = [*_PLACES, "shard", "extension", "key"]
    return np.rec.fromarrays(columns, names=names)  # type: ignore[call-overload]


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _read_index(folder: Path) -> list[_Shard]:
    """The shards in a folder's index.json."""
    path = folder / INDEX
    try:
        # arrays at once: as objects, the whole of ten million pairs would take many gigabytes
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_entry)
        if content["version"] == VERSION:
            return list(content["shards"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged; pack the folder again") from None
    version = content["version"]
    raise InputError(
        f"{path}: version {version!r}, this program reads version {VERSION}; pack it again"
    )


def _entry(value: dict[str, Any]) -> Any:
    """A shard's entry as a `_Shard`; any other object as it is."""
    if "members" not in value:
        return value
    pairs = _pairs(value["keys"], value["extensions"], value["members"])
    if len(pairs) != value["samples"]:
        raise ValueError("lists of different lengths")
    return _Shard(value["name"], value["split"], value["bytes"], value["sha256"], pairs)


def scan(path: Path) -> _Shard:
    """Index a tar by its headers. As in webdataset, a pair's members follow one another.

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
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable, uncompressed tar: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: {str(error.args[0]).partition(' in tar file')[0]}") from None
    layout = "\n".join(keys).encode() + np.array(places, np.int64).tobytes()
    identity, pairs = hashlib.sha256(layout).hexdigest(), _pairs(keys, extensions, places)
    return _Shard(path.name, "", path.stat().st_size, identity, pairs, skipped)


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
