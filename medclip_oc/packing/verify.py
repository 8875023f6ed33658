"""Checking a shard folder: every file against its SHA-256, every tar's members against index.json,
the counts; and that the images can still be decoded.
"""

import csv
import re
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.index import INDEX, JOURNAL, REJECTS, SIZES
from ..errors import BadImage, InputError, WorkError
from ..imaging.decode import decode as decode_image
from ..runtime.atomic import PARTIAL
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .journal import file_hash, read_head
from .sources import SPLITS

MAX_LINES = 10  # damages that are told of one shard; the rest is a number
_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


def verify(folder: Path, *, workers: int = 1, decode: bool = True) -> list[str]:
    """Check a shard folder, with so many processes; `decode`: its images, too.

    Returns what is wrong, a line each; of one shard at most MAX_LINES. InputError: no finished
    shard folder, or its index.json is damaged or of another version.
    """
    if not (folder / INDEX).is_file():
        reason = "its packing isn't finished" if (folder / JOURNAL).exists() else f"no {INDEX}"
        raise InputError(f"{folder}: no shard folder to verify: {reason}; pack it (again)")
    index = read_head(folder / INDEX)
    found, entries = list[str](), index["shards"]
    with Progress(len(entries), "shards", "verify") as progress:
        # one shard is work enough to hand over
        checked = ordered_map(partial(check_shard, folder, decode), entries, workers, batch=1)
        for entry, damages in zip(entries, checked, strict=True):
            progress.update()
            found += damages[:MAX_LINES]
            if (more := len(damages) - MAX_LINES) > 0:
                found.append(f"{entry['name']}: and {more} more damages")
    return [*found, *_other_files(folder, index), *_counts(folder, index)]


def report(folder: Path, *, workers: int = 1, decode: bool = True) -> None:
    """`verify`, and print what is damaged (WorkError) and how much was looked at."""
    found = verify(folder, workers=workers, decode=decode)
    print("".join(f"{damage}\n" for damage in found), end="")
    entries = read_head(folder / INDEX)["shards"]
    samples, size = (sum(entry[name] for entry in entries) for name in ("samples", "bytes"))
    amount = f"{len(entries):,} shards, {samples:,} samples, {size / 1e6:,.1f} MB"
    if found:
        advice = "restore it, or pack it again with --overwrite"
        raise WorkError(f"{folder}: damaged: {len(found)} findings in {amount}; {advice}")
    print(f"{folder}: {amount}: all well")


def _other_files(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Files that are absent, changed, or shouldn't be there."""
    for name in (REJECTS, SIZES):
        try:
            digest = file_hash(folder / name)
        except OSError as error:
            yield f"{name}: unreadable: {error.strerror}"
            continue
        if digest != (told := index.get("files", {}).get(name, f"named in {INDEX}")):
            yield f"{name}: SHA-256 {digest}; should be {told}"
    shards = {entry["name"] for entry in index["shards"]}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar" and path.name not in shards:
            yield f"{path.name}: {INDEX} doesn't name it"
        if path.suffix == PARTIAL or path.name == JOURNAL:
            yield f"{path.name}: left by a packing that was killed"


def _counts(folder: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Whether read = packed + further + rejected, split by split."""
    counts, packed = index["counts"], Counter[str]()
    read, further = counts["read"], counts.get("further", {})
    for entry in index["shards"]:
        packed[entry["split"]] += entry["samples"]
    try:
        with (folder / REJECTS).open(newline="", encoding="utf-8") as file:
            rejected = Counter(row["split"] for row in csv.DictReader(file))
    except (OSError, ValueError, csv.Error, KeyError):
        return  # it isn't what packing wrote, which its hash has told
    for split in dict.fromkeys([*read, *packed, *rejected]):
        more = further.get(split, 0)
        if read.get(split, 0) != packed[split] + more + rejected[split]:
            found = f"{packed[split]} packed + " + f"{more} further + " * bool(more)
            found += f"{rejected[split]} rejected"
            yield f"{INDEX}: {split}: {found}; should be {read.get(split, 0)} rows read"


def check_shard(folder: Path, decode: bool, entry: dict[str, Any]) -> list[str]:
    """What is wrong with one shard, by its entry in index.json; a line each."""
    name = entry["name"]
    if not (match := _NAME.fullmatch(name)) or match[1] != entry["split"]:
        return [f"{INDEX}: describes no shard (name {name!r}, split {entry['split']!r})"]
    path, damages = folder / name, list[str]()
    try:
        size, digest = path.stat().st_size, file_hash(path)
        if size != entry["bytes"]:
            damages.append(f"{name}: {size} bytes; should be {entry['bytes']}")
        elif digest != entry["sha256"]:
            damages.append(f"{name}: SHA-256 {digest}; should be {entry['sha256']}")
        with warnings.catch_warnings(action="ignore"):  # of odd metadata, as packing let it in
            damages += [f"{name}: {damage}" for damage in _walk(path, entry, decode)]
    except OSError as error:
        return [f"{name}: unreadable: {error.strerror or error}"]
    return damages


def _walk(path: Path, entry: dict[str, Any], decode: bool) -> Iterator[str]:
    """Compare the members with the index, and decode the images, until another one is met."""
    wanted, place = "", [0, 0]
    suffixes = zip(entry["keys"], entry["extensions"], strict=True)
    names = [f"{key}.{each}" for key, image in suffixes for each in (image, "txt", "json")]
    places = [row[n : n + 2] for row in entry["members"] for n in (0, 2, 4)]
    try:
        with tarfile.open(path, "r:") as tar:
            for n, (wanted, place) in enumerate(zip(names, places, strict=True)):
                member = tar.next()
                tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
                if member is None or member.name != wanted:
                    there = f"a member {member.name}" if member else "the tar ends"
                    raise tarfile.ReadError(f"{there} where it should be")
                if [member.offset_data, member.size] != place:
                    yield f"{wanted} is not where {INDEX} says"
                if decode and n % 3 == 0 and (file := tar.extractfile(member)):
                    try:
                        decode_image(file.read(), max_pixels=sys.maxsize)
                    except BadImage as error:
                        yield f"{wanted} can't be decoded: {error}"
            if more := tar.next():
                yield f"{INDEX} doesn't know its member {more.name}"
    except OSError:
        raise
    except Exception as error:  # a damaged header raises whatever its reader trips over
        yield f"{wanted}: {error or 'no readable tar'}; what follows wasn't compared"
