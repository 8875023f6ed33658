"""Checking a shard folder: every byte that index.json tells of, and what stands beside it.

Whatever has changed since packing is found, down to a single bit: index.json ends with a hash of
itself (its seal) and holds the hash of every other file. The rest of the checks says what is wrong
and where (shard_check.py), and that the numbers add up. Memory doesn't grow with the folder: the
index is read line by line, a tar once, pair by pair.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..data.index import ENTRY, INDEX, REJECTS, SIZES, VERSION
from ..errors import InputError
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from . import journal
from .shard_check import Damage, check_shard
from .sources import SPLITS
from .tar_writer import PARTIAL

MAX_LINES = 10
"""Damages that are told of one shard; the rest is a number."""

# What follows the last shard (packing.py writes it)
_END = re.compile(rb'\], "files": (\{.*\}), "seal": "([0-9a-f]{64})"\}\n')
_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass
class Verified:
    """What was looked at, and what is wrong with it."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


class _Index(NamedTuple):
    """What index.json holds besides the shards."""

    head: dict[str, Any]
    files: dict[str, str]
    """Name -> SHA-256 of the other files."""
    lines: int


def verify(folder: Path, *, workers: int = 1, decode: bool = True) -> Verified:
    """Check a shard folder.

    Args:
        folder: made by `packing.pack`.
        workers: processes that read and decode.
        decode: decode the images, too.

    Returns:
        The findings; of one shard at most MAX_LINES.

    Raises:
        InputError: no finished shard folder, or one of another version.
        WorkError: a worker died.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such shard folder")
    if not (folder / INDEX).is_file():
        why = "its packing isn't finished" if (folder / journal.NAME).exists() else f"no {INDEX}"
        raise InputError(f"{folder}: no shard folder to verify: {why}")
    result, named, reencoded = Verified(), dict[str, int](), Counter[str]()
    packed = Counter[str]()
    index = _read_index(folder / INDEX, result.damages)
    entries = _entries(folder / INDEX, index.lines, result.damages)
    with Progress(max(0, index.lines - 2), "shards", "verify") as progress:
        # one shard is work enough to hand over
        for seen in ordered_map(partial(check_shard, folder, decode), entries, workers, batch=1):
            progress.update()
            named[seen.name] = seen.samples
            packed[seen.split] += seen.samples
            reencoded += seen.reencoded
            result.shards += 1
            result.samples += seen.samples
            result.bytes += seen.bytes
            result.damages += seen.damages[:MAX_LINES]
            if (more := len(seen.damages) - MAX_LINES) > 0:
                result.damages.append(Damage(seen.name, f"and {more} more damages"))
    result.damages += _beside(folder, index, named)
    result.damages += _numbers(folder, index, packed, None if result.damages else reencoded)
    return result


# --------------------------------------------------------------------------------------- the index


def _read_index(path: Path, damages: list[Damage]) -> _Index:
    """Compare the seal, and read what is beside the shards."""
    digest, first, last, lines = hashlib.sha256(), b"", b"", 0
    with path.open("rb") as file:
        for line in file:
            digest.update(last)
            first, last = first or line, line
            lines += 1
    end = _END.fullmatch(last)
    digest.update(last[: end.start(2)] if end else b"")
    sealed = end is not None and end[2].decode() == digest.hexdigest()
    if not sealed:
        found = "SHA-256 of itself differs" if end else "doesn't end with a SHA-256 of itself"
        damages.append(Damage(INDEX, f"{found}: changed since it was packed, or cut"))
    try:
        head = json.loads(first.strip() + b"]}")
        files = json.loads(end[1]) if end else {}
        version = head["version"]
    except (ValueError, KeyError, TypeError):
        damages.append(Damage(INDEX, "line 1 is not as packing writes it"))
        return _Index({}, {}, lines)
    if sealed and version != VERSION:
        raise InputError(f"{path}: version {version!r}, this program reads version {VERSION}")
    return _Index(head, files if isinstance(files, dict) else {}, lines)


def _entries(path: Path, lines: int, damages: list[Damage]) -> Iterator[dict[str, Any]]:
    """The shards, each from its own line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 or number == lines:
                continue
            try:
                entry = json.loads(line.strip().removesuffix(b","))
                wrong = _unsound(entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wrong = str(error) or type(error).__name__
            if wrong:
                damages.append(Damage(INDEX, f"line {number} describes no shard ({wrong})"))
            else:
                yield entry


def _unsound(entry: dict[str, Any]) -> str:
    """What is wrong with the form of a shard's entry."""
    if not entry.keys() >= ENTRY:
        return f"lacks {', '.join(sorted(ENTRY - entry.keys()))}"
    if not (match := _NAME.fullmatch(entry["name"])) or match[1] != entry["split"]:
        return f"name {entry['name']!r}, split {entry['split']!r}"
    if {len(entry[name]) for name in ("keys", "extensions", "members")} != {entry["samples"]}:
        return "keys, extensions and members are not as many as samples"
    rows = entry["members"]
    if any(len(row) != 6 or any(type(n) is not int or n < 0 for n in row) for row in rows):
        return "members are not six numbers each"
    return ""


# --------------------------------------------------------------------------------- the other files


def _beside(folder: Path, index: _Index, named: dict[str, int]) -> Iterator[Damage]:
    """Files that are absent, changed, or shouldn't be there."""
    for name in (REJECTS, SIZES):
        try:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield Damage(name, f"unreadable: {error.strerror}")
            continue
        if digest != index.files.get(name):
            yield Damage(name, f"SHA-256 {digest}", index.files.get(name, f"named in {INDEX}"))
            if name == SIZES:
                yield from _sizes(folder / SIZES, named)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar" and path.name not in named:
            yield Damage(path.name, f"{INDEX} doesn't name it")
        if path.suffix == PARTIAL or path.name == journal.NAME:
            yield Damage(path.name, "left by a packing that was killed", "not there")


def _sizes(path: Path, named: dict[str, int]) -> Iterator[Damage]:
    """How the numbers of pairs differ from the index."""
    try:
        sizes = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        yield Damage(SIZES, f"no JSON object: {error}")
        return
    differing = [name for name in {**named, **sizes} if sizes.get(name) != named.get(name)]
    for name in differing[:MAX_LINES]:
        yield Damage(SIZES, f"{name}: {sizes.get(name)}", f"{named.get(name)}")


def _numbers(
    folder: Path, index: _Index, packed: Counter[str], reencoded: Counter[str] | None
) -> Iterator[Damage]:
    """Whether read = packed + rejected, and as many are re-encoded as packing counted.

    Args:
        folder: the shard folder.
        index: see `_Index`.
        packed: split -> pairs in its shards.
        reencoded: reason -> images. None: not all could be read.
    """
    if not index.head:
        return  # told already
    try:
        read = dict(index.head["counts"]["read"])
        counted = dict(index.head["counts"]["reencoded"])
    except (KeyError, TypeError, ValueError):
        yield Damage(INDEX, "has no counts of what was read")
        return
    rejected = Counter[str]()
    try:
        with (folder / REJECTS).open(newline="", encoding="utf-8") as file:
            rejected.update(row[1] for row in islice(csv.reader(file), 1, None))
    except OSError:
        return  # told already
    except (ValueError, csv.Error, IndexError) as error:
        yield Damage(REJECTS, f"not the table that packing writes: {error}")
        return
    for split in dict.fromkeys([*read, *packed, *rejected]):
        found = f"{split}: {packed[split]} packed + {rejected[split]} rejected"
        if read.get(split, 0) != packed[split] + rejected[split]:
            yield Damage(INDEX, found, f"{read.get(split, 0)} rows read")
    if reencoded is not None and counted != reencoded:
        yield Damage(INDEX, f"{dict(reencoded)} images re-encoded in the shards", f"{counted}")
