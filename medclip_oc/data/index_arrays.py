"""Where the pairs of some shards lie, as arrays mapped into memory: made once, then opened at once.

The arrays lie in a file beside the shards or, where that can't be written, in the user's cache
folder. One made from an index.json holds its hash, and is taken while that is the same; one made
from tars of another maker holds their names, sizes and times of change.

N pairs, S shards. Offsets and sizes are in bytes.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import index as shard_index
from .array_file import ArrayWriter, open_arrays
from .index import IMAGE_EXTENSIONS, INDEX, Shard

_ARRAYS = ("starts", "bytes", "members", "keys", "key_ends", "extensions")


@dataclass
class Layout:
    """Where the pairs of some shards lie."""

    paths: list[Path]
    starts: np.ndarray
    """(S + 1,) int64: number of each shard's first pair, and N."""
    bytes: np.ndarray
    """(S,) int64: size of each shard."""
    members: np.ndarray
    """(N, 6) int64: offset and size of image, text and json."""
    keys: np.ndarray
    """All keys in UTF-8, one after another: uint8."""
    key_ends: np.ndarray
    """(N + 1,) int64: 0, and where each key ends."""
    extensions: np.ndarray
    """(N,) int8: place in IMAGE_EXTENSIONS."""
    identities: list[str]
    """Per shard: hash of its content or, without an index.json, of its layout."""
    skipped: int
    """Entries that are no pair: the image or the caption is absent."""
    file: Path
    """The array file."""

    def __getstate__(self) -> tuple[list[Path], Path, list[str]]:
        # not the arrays: another process maps the file again
        return self.paths, self.file, self.identities

    def __setstate__(self, state: tuple[list[Path], Path, list[str]]) -> None:
        paths, file, identities = state
        found = open_arrays(file)
        if found is None or found[0].get("identities") != identities:
            raise InputError(f"{file}: removed or replaced while it was in use")
        vars(self).update(vars(_layout(file, lambda _: paths, *found)))


def of_folder(folder: Path, split: str) -> Layout:
    """The layout of a split of a shard folder.

    Raises:
        InputError: no index.json, a damaged one or one of another version; no such split; a shard
            that is missing or of another size.
    """
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"{folder}: no {INDEX}: not a finished shard folder; pack it again")
    facts = {"stamp": _stamp(index), "sha256": ""}

    def current(known: dict[str, Any]) -> bool:
        if known.get("stamp") == facts["stamp"]:
            return True
        facts["sha256"] = facts["sha256"] or _hash(index)
        return bool(known.get("sha256") == facts["sha256"])

    def paths(names: list[str]) -> list[Path]:
        return [folder / name for name in names]

    name = f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}-{split}.arrays"
    places = _places(folder / f".index-{split}.arrays", name)
    layout = _cached(places, current, paths)
    if layout is None:
        facts["sha256"] = facts["sha256"] or _hash(index)
        layout = _build(places, shard_index.of_split(folder, split), facts, paths)
    _check_sizes(layout)
    return layout


def of_tars(paths: Sequence[Path]) -> Layout:
    """The layout of tars named one by one; an index.json beside them serves those it knows.

    Raises:
        InputError: no tar at all, one that can't be read, or as `of_folder`.
    """
    if not paths:
        raise InputError("no shards are named, so there is no readable pair")
    indexes = {path.parent / INDEX for path in paths if (path.parent / INDEX).is_file()}
    stamps = [[str(path.resolve()), *_stamp(path)] for path in (*paths, *sorted(indexes))]
    key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    places = _places(paths[0].parent / f".index-{key[:16]}.arrays", f"{key[:16]}.arrays")
    layout = _cached(places, lambda known: known.get("key") == key, lambda _: list(paths))
    if layout is None:
        shards = shard_index.of_tars(paths)
        layout = _build(places, shards, {"key": key}, lambda _: list(paths))
    _check_sizes(layout)
    return layout


def changed(path: Path, size: int) -> str | None:
    """What is wrong with a shard of which the index says that it has `size` bytes; or None."""
    try:
        found = path.stat().st_size
    except OSError:
        return f"{path}: shard missing, and {INDEX} names it"
    if found != size:
        return f"{path}: {found} bytes, {INDEX} says {size}; damaged or changed"
    return None


def _check_sizes(layout: Layout) -> None:
    for path, size in zip(layout.paths, layout.bytes.tolist(), strict=True):
        if wrong := changed(path, size):
            raise InputError(wrong)


def user_cache() -> Path:
    """Where the user's programs keep what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "medclip_oc"


def _places(beside: Path, name: str) -> list[Path]:
    """Where the array file may lie, the best place first."""
    places = [beside, user_cache() / name]
    spare = Path(tempfile.gettempdir()) / f"medclip_oc-{os.getuid()}"
    if not spare.exists() or spare.stat().st_uid == os.getuid():  # nobody else's: it is trusted
        places.append(spare / name)
    return places


def _cached(
    places: Sequence[Path],
    current: Callable[[dict[str, Any]], bool],
    paths: Callable[[list[str]], list[Path]],
) -> Layout | None:
    """The layout in the first place that holds a current one."""
    for place in places:
        found = open_arrays(place)
        if found is not None and current(found[0]):
            return _layout(place, paths, *found)
    return None


def _build(
    places: Sequence[Path],
    shards: Iterable[Shard],
    facts: dict[str, Any],
    paths: Callable[[list[str]], list[Path]],
) -> Layout:
    """Write the array file in the first place that can be written, and open it."""
    names, identities, skipped, pairs, end = list[str](), list[str](), 0, 0, 0
    with _writer(places) as writer:
        writer.append("starts", np.zeros(1, dtype=np.int64))
        writer.append("key_ends", np.zeros(1, dtype=np.int64))
        for shard in shards:
            keys = [key.encode() for key in shard.keys]
            codes = [IMAGE_EXTENSIONS.index(extension) for extension in shard.extensions]
            ends = end + np.cumsum([len(key) for key in keys], dtype=np.int64)
            pairs += len(keys)
            end = int(ends[-1]) if keys else end
            writer.append("starts", np.array([pairs], dtype=np.int64))
            writer.append("bytes", np.array([shard.size], dtype=np.int64))
            writer.append("members", shard.members)
            writer.append("keys", np.frombuffer(b"".join(keys), dtype=np.uint8))
            writer.append("key_ends", ends)
            writer.append("extensions", np.array(codes, dtype=np.int8))
            names.append(shard.name)
            identities.append(shard.identity)
            skipped += shard.skipped
        about = {"shards": names, "identities": identities, "skipped": skipped}
        try:
            writer.finish({**facts, **about})
        except OSError as error:
            raise InputError(f"{writer.path}: can't be written ({error.strerror})") from None
    found = open_arrays(writer.path)
    assert found is not None
    return _layout(writer.path, paths, *found)


def _writer(places: Sequence[Path]) -> ArrayWriter:
    for place in places:
        try:
            if place is not places[0]:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return ArrayWriter(place, _ARRAYS)
        except OSError:
            continue
    tried = ", ".join(str(place.parent) for place in places)
    raise InputError(f"no place for the index of the shards can be written: {tried}")


def _layout(
    place: Path,
    paths: Callable[[list[str]], list[Path]],
    facts: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> Layout:
    values: dict[str, Any] = {**arrays, **{key: facts[key] for key in ("identities", "skipped")}}
    return Layout(paths=paths(facts["shards"]), file=place, **values)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
