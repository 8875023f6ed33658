"""Checking a shard folder: every tar against index.json, every pair against itself, the counts.

A tar is walked through by its headers, as any reader does it.
Any change of a tar, of rejects.csv or of sizes.json is found by its SHA-256; the other checks say
what is wrong, and where. Memory doesn't grow with the tars: they are read pair by pair.
"""

import csv
import hashlib
import json
import re
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..data.index import INDEX, REJECTS, SIZES
from ..errors import BadImage, InputError, WorkError
from ..imaging.decode import decode as decode_image
from ..runtime.atomic import PARTIAL
from ..runtime.progress import Progress
from ..runtime.workers import ordered_map
from .journal import JOURNAL, file_hash, read_head
from .sources import SPLITS, key_of

MAX_LINES = 10
"""Damages that are told of one shard; the rest is a number."""
_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass
class Verified:
    """What was looked at, and what is wrong with it, a line each."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    damages: list[str] = field(default_factory=list)


def verify(folder: Path, *, workers: int = 1, decode: bool = True) -> Verified:
    """Check a shard folder.

    Args:
        folder: made by `packing.pack`.
        workers: processes that read and decode.
        decode: decode the images, too.

    Returns:
        The findings; of one shard at most MAX_LINES.

    Raises:
        InputError: no finished shard folder, or its index.json is damaged or of another version.
        WorkError: a worker died.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such shard folder")
    if not (folder / INDEX).is_file():
        reason = "its packing isn't finished" if (folder / JOURNAL).exists() else f"no {INDEX}"
        raise InputError(f"{folder}: no shard folder to verify: {reason}")
    index = read_head(folder / INDEX)
    entries = index["shards"]
    verified, packed = Verified(), Counter[str]()
    with Progress(len(entries), "shards", "verify") as progress:
        check = partial(check_shard, folder, decode)
        # one shard is work enough to hand over
        checked = ordered_map(check, entries, workers, batch=1)
        for entry, (size, damages) in zip(entries, checked, strict=True):
            progress.update()
            verified.shards += 1
            verified.samples += entry["samples"]
            verified.bytes += size
            packed[entry["split"]] += entry["samples"]
            verified.damages += damages[:MAX_LINES]
            if (more := len(damages) - MAX_LINES) > 0:
                verified.damages.append(f"{entry['name']}: and {more} more damages")
    names, hashes = {entry["name"] for entry in entries}, index.get("files", {})
    verified.damages += _other_files(folder, names, hashes)
    verified.damages += _counts(folder, index["counts"]["read"], packed)
    return verified


def report(folder: Path, *, workers: int = 1, decode: bool = True) -> None:
    """Check a shard folder, and print what is damaged and how much was looked at.

    Raises:
        WorkError: something is damaged.
        InputError: see `verify`.
    """
    verified = verify(folder, workers=workers, decode=decode)
    for damage in verified.damages:
        print(damage)
    size = verified.bytes / 1e6
    amount = f"{verified.shards:,} shards, {verified.samples:,} samples, {size:,.1f} MB"
    if verified.damages:
        raise WorkError(f"{folder}: damaged: {len(verified.damages)} findings in {amount}")
    print(f"{folder}: {amount}: all well")


def _other_files(folder: Path, shards: set[str], hashes: Mapping[str, str]) -> Iterator[str]:
    """Files that are absent, changed, or shouldn't be there."""
    for name in (REJECTS, SIZES):
        try:
            digest = file_hash(folder / name)
        except OSError as error:
            yield f"{name}: unreadable: {error.strerror}"
            continue
        if digest != hashes.get(name):
            yield f"{name}: SHA-256 {digest}; should be {hashes.get(name, f'named in {INDEX}')}"
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tar" and path.name not in shards:
            yield f"{path.name}: {INDEX} doesn't name it"
        if path.suffix == PARTIAL or path.name == JOURNAL:
            yield f"{path.name}: left by a packing that was killed"


def _counts(folder: Path, read: dict[str, int], packed: Counter[str]) -> Iterator[str]:
    """Whether read = packed + rejected, split by split."""
    try:
        with (folder / REJECTS).open(newline="", encoding="utf-8") as file:
            rejected = Counter(row["split"] for row in csv.DictReader(file))
    except OSError:
        return  # told already
    except (ValueError, csv.Error, KeyError) as error:
        yield f"{REJECTS}: not the table that packing writes: {error}"
        return
    for split in dict.fromkeys([*read, *packed, *rejected]):
        if read.get(split, 0) != packed[split] + rejected[split]:
            counts = f"{packed[split]} packed + {rejected[split]} rejected"
            yield f"{INDEX}: {split}: {counts}; should be {read.get(split, 0)} rows read"


# --------------------------------------------------------------------------------------- one shard


def check_shard(folder: Path, decode: bool, entry: dict[str, Any]) -> tuple[int, list[str]]:
    """Check one shard against its entry in index.json.

    Returns:
        Its bytes, and what is wrong, a line each.
    """
    name = entry["name"]
    if not (match := _NAME.fullmatch(name)) or match[1] != entry["split"]:
        return 0, [f"{INDEX}: describes no shard (name {name!r}, split {entry['split']!r})"]
    path = folder / name
    try:
        size, digest = path.stat().st_size, file_hash(path)
        damages = [f"{name}: {damage}" for damage in _walk(path, entry, decode)]
    except OSError as error:
        return 0, [f"{name}: unreadable: {error.strerror or error}"]
    if size != entry["bytes"]:
        damages.insert(0, f"{name}: {size} bytes; should be {entry['bytes']}")
    elif digest != entry["sha256"]:
        damages.insert(0, f"{name}: SHA-256 {digest}; should be {entry['sha256']}")
    return size, damages


def _walk(path: Path, entry: dict[str, Any], decode: bool) -> Iterator[str]:
    """Compare the members with the index, and look into them, until another one is met."""
    key = ""
    try:
        with tarfile.open(path, "r|") as tar:  # front to back, as a stock reader does
            columns = entry["keys"], entry["extensions"], entry["members"]
            for key, extension, places in zip(*columns, strict=True):
                contents = list[bytes]()
                suffixes = (extension, "txt", "json")
                for suffix, *place in zip(suffixes, places[::2], places[1::2], strict=True):
                    member, content = _next_member(tar, f"{key}.{suffix}")
                    contents.append(content)
                    if [member.offset_data, member.size] != place:
                        yield f"{member.name} is not where {INDEX} says"
                for damage in _pair_damages(key, entry["split"], contents, decode):
                    yield f"{key}: {damage}"
            if more := tar.next():
                yield f"{INDEX} doesn't know its member {more.name}"
    except OSError:
        raise
    except Exception as error:  # a damaged header raises whatever its reader trips over
        yield f"{key}: {error or 'no readable tar'}; what follows wasn't compared"


def _next_member(tar: tarfile.TarFile, name: str) -> tuple[tarfile.TarInfo, bytes]:
    """The next member and its content.

    Raises:
        tarfile.ReadError: it has another name, or the tar ends.
    """
    member = tar.next()
    tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
    if member is None or member.name != name or not member.isreg():
        there = f"a member {member.name}" if member else "the tar ends"
        raise tarfile.ReadError(f"{there} where {name} should be")
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"the tar ends within {name}")
    return member, content


def _pair_damages(key: str, split: str, contents: list[bytes], decode: bool) -> Iterator[str]:
    """What is wrong with the image, caption and facts of a pair."""
    image, caption, about = contents
    try:
        caption.decode()
        facts = dict(json.loads(about))
    except (ValueError, TypeError) as error:
        yield f"its caption is no text, or its JSON no object: {error}"
        return
    if key_of(str(facts.get("id"))) != key or facts.get("split") != split:
        yield f"its JSON is of {facts.get('id')!r} in split {facts.get('split')!r}"
    # without the word for it, these are the source's own bytes
    if "reencoded" not in facts and hashlib.sha256(image).hexdigest() != facts.get("sha256"):
        yield "the image's SHA-256 is another than its JSON says"
    if not decode:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which packing let in as well
            decoded = decode_image(image, max_pixels=sys.maxsize)
    except BadImage as error:
        yield f"the image can't be decoded: {error}"
        return
    size = decoded.width, decoded.height, decoded.mode
    if size != (told := tuple(facts.get(name) for name in ("width", "height", "mode"))):
        yield f"the image is {size}; should be {told}"
