"""Checking one shard of a folder against its entry in index.json, member by member, pair by pair.

The tar is walked by its headers, as any reader does it, in one pass that hashes it as well.
"""

import hashlib
import json
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..data.index import INDEX
from ..errors import BadImage
from ..imaging import encode
from .sources import key_of

_READ_BYTES = 1 << 20


class Damage(NamedTuple):
    """One thing that is not as packing left it."""

    where: str
    """A file of the folder; or "train-000003.tar: KEY"."""
    found: str
    wanted: str = ""
    """What it should be, where there is something to say."""

    def __str__(self) -> str:
        return f"{self.where}: {self.found}" + (f"; should be {self.wanted}" if self.wanted else "")


@dataclass
class Seen:
    """Findings on one shard."""

    name: str
    split: str
    samples: int
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    reencoded: Counter[str] = field(default_factory=Counter)


class _HashedFile:
    """A file that tarfile reads through once, front to back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self.size += len(data)
        return data


def check_shard(folder: Path, decode: bool, entry: dict[str, Any]) -> Seen:
    """Check one shard.

    Args:
        folder: the shard folder.
        decode: decode the images, too.
        entry: what index.json says of the shard.
    """
    name = entry["name"]
    seen = Seen(name, entry["split"], entry["samples"])
    try:
        with (folder / name).open("rb") as plain:
            file = _HashedFile(plain)
            _walk(file, entry, seen, decode)
            while file.read(_READ_BYTES):  # what the walk left
                pass
    except FileNotFoundError:
        seen.damages = [Damage(name, f"missing, and {INDEX} names it")]
        return seen
    except OSError as error:
        seen.damages = [Damage(name, f"unreadable: {error.strerror or error}")]
        return seen
    seen.bytes = file.size
    digest = file.digest.hexdigest()
    if file.size != entry["bytes"]:
        seen.damages.insert(0, Damage(name, f"{file.size} bytes", f"{entry['bytes']}"))
    elif digest != entry["sha256"]:
        seen.damages.insert(0, Damage(name, f"SHA-256 {digest}", f"{entry['sha256']}"))
    return seen


def _walk(file: _HashedFile, entry: dict[str, Any], seen: Seen, decode: bool) -> None:
    """Compare the members with the index, until a name differs."""
    name, key = entry["name"], ""
    try:
        # "|" never seeks: each byte is read once, and hashed on its way
        with tarfile.open(fileobj=file, mode="r|", bufsize=_READ_BYTES) as tar:  # type: ignore[call-overload]
            columns = (entry["keys"], entry["extensions"], entry["members"])
            for key, extension, row in zip(*columns, strict=True):
                pair = _Pair(f"{name}: {key}", key, entry["split"])
                for place, suffix in enumerate((extension, "txt", "json")):
                    wanted = (f"{key}.{suffix}", *row[2 * place : 2 * place + 2])
                    pair.contents.append(_member(tar, wanted, pair.where, seen.damages))
                seen.damages += _pair_damages(pair, decode, seen.reencoded)
            if more := _next(tar):
                seen.damages.append(Damage(name, f"{INDEX} doesn't know its member {more.name}"))
    except _OtherMember as error:
        seen.damages.append(error.damage)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises whatever its reader trips over
        seen.damages.append(Damage(f"{name}: {key}", f"no readable tar from here on: {error}"))


class _OtherMember(Exception):
    """Ends a walk: from here on index and tar tell of different members."""

    def __init__(self, where: str, found: str, wanted: str) -> None:
        self.damage = Damage(where, f"{found}; what follows wasn't compared", wanted)


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    found = tar.next()
    tar.members = []  # type: ignore[attr-defined]  # or it remembers each header
    return found


def _member(
    tar: tarfile.TarFile, wanted: tuple[str, int, int], where: str, damages: list[Damage]
) -> bytes | None:
    """Content of the next member. None: it isn't where, or as large as, the index says.

    Raises:
        _OtherMember: it has another name, or the tar ends.
    """
    member = _next(tar)
    if member is None or member.name != wanted[0] or not member.isreg():
        found = "the tar ends here" if member is None else f"a member {member.name}"
        raise _OtherMember(where, found, wanted[0])
    if (member.offset_data, member.size) != wanted[1:]:
        found = f"{member.name} at byte {member.offset_data}, {member.size} bytes"
        damages.append(Damage(where, found, f"at byte {wanted[1]}, {wanted[2]} bytes by {INDEX}"))
        return None
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise _OtherMember(where, f"the tar ends within {member.name}", f"{member.size} bytes")
    return content


@dataclass
class _Pair:
    where: str
    key: str
    split: str
    contents: list[bytes | None] = field(default_factory=list)
    """Image, caption, facts. None: already known as damaged."""


def _pair_damages(pair: _Pair, decode: bool, reencoded: Counter[str]) -> Iterator[Damage]:
    """What is wrong with the contents of a pair."""
    image, caption, text = pair.contents
    try:
        (caption or b"").decode()
    except UnicodeDecodeError as error:
        yield Damage(pair.where, f"the caption's byte {error.start} is not UTF-8")
    facts = dict[str, Any]()
    if text is not None:
        try:
            facts = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            yield Damage(pair.where, f"its JSON is no JSON object: {error}")
            text = None
    if text is not None:
        if "reencoded" in facts:
            reencoded[str(facts["reencoded"])] += 1
        if key_of(str(facts.get("id"))) != pair.key:
            yield Damage(pair.where, f"its JSON has the id {facts.get('id')!r}")
        if facts.get("split") != pair.split:
            yield Damage(pair.where, f"its JSON has the split {facts.get('split')!r}", pair.split)
    if image is not None:
        yield from _image_damages(pair.where, image, facts if text is not None else None, decode)


def _image_damages(
    where: str, image: bytes, facts: dict[str, Any] | None, decode: bool
) -> Iterator[Damage]:
    """What is wrong with an image; None: its facts are unreadable."""
    if facts is not None and "reencoded" not in facts:  # the source's own bytes
        digest = hashlib.sha256(image).hexdigest()
        if digest != facts.get("sha256"):
            yield Damage(where, f"the image's SHA-256 is {digest}", f"{facts.get('sha256')}")
    if not decode:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which packing let in as well
            picture = encode.decode(image, max_pixels=sys.maxsize)
    except BadImage as error:
        yield Damage(where, f"the image can't be decoded: {error}")
        return
    found = (picture.width, picture.height, picture.mode)
    if facts is not None and found != (wanted := _picture(facts)):
        yield Damage(
            where, "the image is {} x {}, {}".format(*found), "{} x {}, {}".format(*wanted)
        )


def _picture(facts: dict[str, Any]) -> tuple[Any, Any, Any]:
    return facts.get("width"), facts.get("height"), facts.get("mode")
