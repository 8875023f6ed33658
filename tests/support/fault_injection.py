"""Ways in which a shard folder comes to harm, each with what verifying must say of it.

The folder is that of test_verify.py: 7 training pairs in 3 tars, 2 validation pairs in one. Also a
small source with a fault of each common kind, and what packing it leaves in a folder.
"""

import copy
import csv
import hashlib
import json
import os
import random
import re
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medclip_oc.data.shards import Sample
from medclip_oc.errors import InputError, WorkError
from tests.support.image_files import file
from tests.support.tiny_dataset import jpeg, write_kaggle


def contents(folder: Path) -> dict[str, bytes]:
    # without what readers keep there for themselves
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def rejected(folder: Path) -> list[dict[str, str]]:
    with (folder / "rejects.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_faulty_source(folder: Path) -> Path:
    """23 training rows, of which 17 are sound, and 3 sound validation rows."""
    write_kaggle(folder, {"train": 18, "valid": 3})
    pictures = folder / "train_images" / "train"
    (pictures / "train_0003.jpg").write_bytes(jpeg(3)[:-50])  # cut
    (pictures / "black.png").write_bytes(file(Image.new("L", (30, 20)), "PNG"))
    (pictures / "empty.jpg").touch()
    with (folder / "train_captions.csv").open("a", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerows([["black", "night"], ["empty", "-"], ["absent", "-"]])
        writer.writerows([["train_0000", "again"], ["up/../x", "-"]])
    (folder / "train_concepts.csv").write_text("ID,CUIs\ntrain_0000,C0040405;C0007776\n")
    return folder


TARS = [*(f"train-{n:06}" for n in range(3)), "valid-000000"]
TAR = "train-000001.tar"  # holds train_0004, 5 and 6


def replace(path: Path, old: bytes, new: bytes, times: int = 1) -> None:
    data = path.read_bytes()
    assert data.count(old) == times
    path.write_bytes(data.replace(old, new))


def accept(folder: Path) -> None:
    """Make index.json tell the hash that TAR now has."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    digest = hashlib.sha256((folder / TAR).read_bytes()).hexdigest()
    for shard in index["shards"]:
        if shard["name"] == TAR:
            shard["sha256"] = digest
    path.write_text(json.dumps(index))


def append(folder: Path) -> None:
    """One more member, in the blocks that end the tar."""
    path = folder / TAR
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % tarfile.BLOCKSIZE
    header = tarfile.TarInfo("extra.jpg").tobuf()
    path.write_bytes(data[:end] + header + data[end + len(header) :])
    accept(folder)


def swap(folder: Path) -> None:
    (folder / "train-000000.tar").rename(folder / "x")
    (folder / TAR).rename(folder / "train-000000.tar")
    (folder / "x").rename(folder / TAR)


def blot(folder: Path) -> None:
    replace(folder / TAR, jpeg(6), jpeg(6)[:300].ljust(len(jpeg(6)), b"\0"))
    accept(folder)


def lose_entry(folder: Path) -> None:
    lines = (folder / "index.json").read_text().splitlines(keepends=True)
    (folder / "index.json").write_text("".join(line for line in lines if TAR not in line))


def leave(folder: Path) -> None:
    for name in ("train-000003.tar", "valid-000001.tar.partial", "unfinished.jsonl"):
        (folder / name).touch()


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "shard deleted": (
        lambda folder: (folder / TAR).unlink(),
        [f"{TAR}: unreadable: No such file or directory"],
    ),
    "shard cut": (
        lambda folder: os.truncate(folder / TAR, 3000),
        [f"{TAR}: 3000 bytes; should be 20480", f"{TAR}: train_0004.json: "],
    ),
    "shards swapped": (
        swap,
        [
            "train-000000.tar: SHA-256",
            "train-000000.tar: train_0000.jpg: a member train_0004.jpg where it should be; what",
            f"{TAR}: SHA-256",
            f"{TAR}: train_0004.jpg: a member train_0000.jpg",
        ],
    ),
    "image undecodable": (blot, [f"{TAR}: train_0006.jpg can't be decoded: undecodable"]),
    "offset in the index": (
        lambda folder: replace(folder / "index.json", b'": [[512, ', b'": [[513, ', 4),
        [
            f"{tar}.tar: {tar[:5]}_{n:04d}.jpg is not where index.json says"
            for tar, n in zip(TARS, (0, 4, 7, 1), strict=True)
        ],
    ),
    "member unknown": (append, [f"{TAR}: index.json doesn't know its member extra.jpg"]),
    "entry lost": (
        lose_entry,
        [
            f"{TAR}: index.json doesn't name it",
            "index.json: train: 4 packed + 1 rejected; should be 8 rows read",
        ],
    ),
    "entry leads elsewhere": (
        lambda folder: replace(folder / "index.json", b'"train-000001.tar', b'"../train-001.tar'),
        ["index.json: describes no shard (name '../train-001.tar'", f"{TAR}: index.json doesn't"],
    ),
    "strays": (
        leave,
        [
            "train-000003.tar: index.json doesn't name it",
            "unfinished.jsonl: left by a packing that was killed",
            "valid-000001.tar.partial: left by",
        ],
    ),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost or doubled; or where it is JSON, a value lost, changed or moved."""
    start, size = rng.randrange(len(data)), rng.choice((1, 8, 64))
    head, part, tail = data[:start], data[start : start + size], data[start + size :]
    flipped = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:]
    try:
        tree = json.loads(data if rng.random() < 0.6 else b"")
    except ValueError:
        return rng.choice((head + flipped + tail, head + tail, head + part + part + tail, head))
    places: list[Any] = [(tree, key) for key in tree]
    for one, key in places:  # grows
        value = one[key]
        places += [(value, each) for each in (value if isinstance(value, dict) else ())]
        places += [(value, n) for n in (range(len(value)) if isinstance(value, list) else ())]
    (one, key), (other, name) = rng.sample(places, 2)
    match rng.randrange(4):
        case 0:
            del one[key]
        case 1:
            one[key] = rng.choice((None, -1, 1 << 70, 0.5, "x", [], {}, True, [[]], float("nan")))
        case 2 if isinstance(one, list):
            one.insert(rng.randrange(len(one)), one[key])
        case _:
            one[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(one[key])
    return json.dumps(tree).encode()


class Payload:
    """What a malicious file holds: opening it would run this."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


Member = tuple[str, bytes, dict[str, Any]]


def member(name: str, content: bytes = b"", **header: Any) -> Member:
    """`header`: what it says otherwise than the content does."""
    return name, content, header


def pair(key: str, end: str = "jpg", **header: Any) -> tuple[Member, Member]:
    image = member(f"{key}.{end}", f"image {key}".encode(), **header)
    return image, member(f"{key}.txt", f"words {key}".encode())


def tar_of(*members: Member, how: int = tarfile.PAX_FORMAT) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=how) as tar:
        for name, content, header in members:
            info = tarfile.TarInfo(name)
            for field, value in {"size": len(content), **header}.items():
                setattr(info, field, value)
            tar.addfile(info)
            file.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return file.getvalue()


_A, _B, _C = pair("a"), pair("b"), pair("c")
_LINK, _GNU = {"type": b"1", "linkname": "a.jpg"}, tarfile.GNU_FORMAT
_LONG, _DEEP = ["d/" * 60 + "é" * n for n in (8, 9)], "d/" * 60 + "e"
ODD_TARS: dict[str, tuple[bytes, list[str] | str]] = {
    "long names": (tar_of(*pair(_LONG[0]), *pair(_LONG[1])), _LONG),
    "long names, GNU": (tar_of(*pair(_LONG[0]), *pair(_LONG[1]), how=_GNU), _LONG),
    "long names, ustar": (tar_of(*pair(_DEEP), how=tarfile.USTAR_FORMAT), [_DEEP]),
    "capitals": (tar_of(*pair("a", "JPG"), *pair("A", "JPEG")), ["a", "A"]),
    "exact dates, old type": (tar_of(*pair("a", mtime=1.5, type=tarfile.AREGTYPE)), ["a"]),
    **{
        f"caption {text!r}": (tar_of(_B[0], member("b.txt", text), *_A), ["a", "1 entries"])
        for text in (b"", b" ", "\u200b".encode(), bytes(3))
    },
    "twice": (tar_of(*_A, _A[0]), "a.jpg: duplicate file name"),
    "apart": (tar_of(_B[0], *_A, _B[1]), ["a", "2 entries"]),
    "links": (tar_of(*_A, member("b.jpg", type=b"2"), _B[1]), ["a", "1 entries"]),
    "joined": (tar_of(*_A, *_B) * 2, "ends at byte 4,096, 19,968 too early: cut, damaged, or "),
    "damaged": (tar_of(*_A, *_B).replace(b"b.jpg", b"b.jpx"), "ends at byte 2,048, 9,728 too"),
    "cut": (tar_of(*_A, *_B)[:2048], "ends at byte 2,048, without the zeros that end a tar: cut"),
    "zeros": (bytes(20480), "ends at byte 0, 19,968 too early: cut"),
    "too large": (tar_of(*_A, member("x.jpg", size=1 << 24)), "unexpected end of data"),
    "absurd": (tar_of(*_A, member("x", size=1 << 40), how=_GNU), "1,099,511,627,776 bytes"),
    "negative": (tar_of(*_A, member("x", size=-4096), how=_GNU), "-4,096 bytes; allowed are 1,073"),
    "in PAX": (tar_of(*_A, member("x", pax_headers={"size": "-1024"})), "-1,024 bytes; allowed"),
    "long PAX": (tar_of(*_A, member("x", size=1 << 32, type=b"x"), how=_GNU), "6 bytes; allowed"),
}
"""Tars of other tools, or as a disk leaves them: the keys of the pairs in them and what is passed
over, or what is said.
"""
HARD_LINKS = tar_of(*_A, member("b.jpg", **_LINK), _B[1], member("c.jpg", **_LINK), _C[1])


def read_odd_tar(name: str, folder: Path, read: Callable[[Path], tuple[list[Sample], str]]) -> None:
    """Each pair with its own caption, and what is passed over said; or one line."""
    content, expected = ODD_TARS[name]
    (path := folder / "a.tar").write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises((InputError, WorkError), match=re.escape(expected)):
            read(path)
        return
    keys = [key for key in expected if " " not in key]
    found, said = read(path)
    assert [sample.key for sample in found] == keys
    assert [sample.caption for sample in found] == [f"words {key}" for key in keys]
    assert said == "".join(expected[len(keys) :])
