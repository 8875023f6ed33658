"""Ways in which a shard folder comes to harm, each with what verifying must say of it.

The folder is that of test_verify.py: 7 training pairs in 3 tars, 2 validation pairs in one.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medclip_oc.packing.tar_writer import tar_header
from tests.support.tiny_dataset import jpeg


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Edit JSON as a careless person does."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace(path: Path, old: bytes, new: bytes, times: int = 1) -> None:
    data = path.read_bytes()
    assert data.count(old) == times
    path.write_bytes(data.replace(old, new))


def seal(folder: Path) -> None:
    """Make index.json tell the truth about everything but what is wrong with it."""
    path = folder / "index.json"
    *lines, last = path.read_text().splitlines(keepends=True)
    files, cut = json.loads("{" + last[3:]), '"seal": "'
    for name in files["files"]:
        files["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = "".join(lines) + f'], "files": {json.dumps(files["files"])}, {cut}'
    path.write_text(f'{text}{hashlib.sha256(text.encode()).hexdigest()}"}}\n')


def rehash(folder: Path, name: str = "train-000001.tar") -> None:
    """Accept what a shard now is."""
    *_, entry = (line for line in (folder / "index.json").read_text().splitlines() if name in line)
    old = json.loads(entry.removesuffix(","))["sha256"]
    new = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    replace(folder / "index.json", old.encode(), new.encode())
    seal(folder)


def append(path: Path) -> None:
    """One more member, in the blocks that end the tar."""
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    header = tar_header("extra.jpg", 0)
    path.write_bytes(data[:end] + header + data[end + len(header) :])


def swap(folder: Path) -> None:
    first, second, other = (folder / name for name in ("train-000000.tar", "train-000001.tar", "x"))
    first.rename(other)
    second.rename(first)
    other.rename(second)


CAPTION = b"number 5: upper left bright"
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "shard deleted": (
        lambda folder: (folder / "train-000001.tar").unlink(),
        [r"train-000001.tar: missing, and index.json names it"],
    ),
    "shard cut": (
        lambda folder: os.truncate(folder / "train-000001.tar", 3000),
        [
            "train-000001.tar: 3000 bytes; should be 20480",
            "train-000001.tar: train_0004: the tar ends here; what follows wasn't compared; "
            "should be train_0004.json",
        ],
    ),
    "shard cut between members": (
        lambda folder: os.truncate(folder / "train-000001.tar", 7168),
        ["7168 bytes", "train-000001.tar: train_0006: the tar ends here; what follows"],
    ),
    "shards swapped": (
        swap,
        [
            "train-000000.tar: SHA-256",
            "train-000000.tar: train_0000: a member train_0004.jpg; what follows wasn't compared; "
            "should be train_0000.jpg",
            "train-000001.tar: SHA-256",
            "train-000001.tar: train_0004: a member train_0000.jpg",
        ],
    ),
    "caption of the same length": (
        lambda folder: replace(folder / "train-000001.tar", CAPTION, CAPTION.upper()),
        ["train-000001.tar: SHA-256"],
    ),
    "caption no text": (
        lambda folder: (
            replace(folder / "train-000001.tar", CAPTION, CAPTION[:-1] + b"\xff"),
            rehash(folder),
        ),
        ["train-000001.tar: train_0005: the caption's byte 26 is not UTF-8"],
    ),
    "image changed": (
        lambda folder: (
            replace(folder / "train-000001.tar", jpeg(5), jpeg(5)[:-2] + b"\xff\xd8"),
            rehash(folder),
        ),
        [
            "train-000001.tar: train_0005: the image's SHA-256 is",
            "train-000001.tar: train_0005: the image can't be decoded: undecodable",
        ],
    ),
    "image of another size, and one undecodable": (
        lambda folder: (
            replace(
                folder / "train-000001.tar",
                b'"width": 48, "height": 40, "mode": "L", "sha256"'
                b': "' + hashlib.sha256(jpeg(4)).hexdigest().encode(),
                b'"width": 47, "height": 40, "mode": "L", "sha256"'
                b': "' + hashlib.sha256(jpeg(4)).hexdigest().encode(),
            ),
            replace(folder / "train-000001.tar", jpeg(6), jpeg(6)[:300].ljust(len(jpeg(6)), b"\0")),
            rehash(folder),
        ),
        [
            "train-000001.tar: train_0004: the image is 48 x 40, L; should be 47 x 40, L",
            "train-000001.tar: train_0006: the image's SHA-256 is",
            "train-000001.tar: train_0006: the image can't be decoded: undecodable",
        ],
    ),
    "JSON of another pair": (
        lambda folder: (
            replace(folder / "train-000001.tar", b'{"id": "train_0005"', b'{"id": "train_0006"'),
            replace(
                folder / "train-000001.tar",
                b'"train_0004", "split": "train"',
                b'"train_0004", "split": "tests"',
            ),
            rehash(folder),
        ),
        [
            "train-000001.tar: train_0004: its JSON has the split 'tests'; should be train",
            "train-000001.tar: train_0005: its JSON has the id 'train_0006'",
        ],
    ),
    "no JSON": (
        lambda folder: (
            replace(folder / "train-000001.tar", b'{"id": "train_0005"', b'["id": "train_0005"'),
            rehash(folder),
        ),
        ["train-000001.tar: train_0005: its JSON is no JSON object"],
    ),
    "offset in the index": (
        lambda folder: (
            replace(folder / "index.json", b'"members": [[512, ', b'"members": [[513, ', 4),
            seal(folder),
        ),
        [f"{name}-000000.tar: {name}_000{n}: " for name, n in (("train", 0), ("valid", 1))],
    ),
    "member that the index doesn't know": (
        lambda folder: (
            append(folder / "valid-000000.tar"),
            rehash(folder, "valid-000000.tar"),
        ),
        ["valid-000000.tar: index.json doesn't know its member extra.jpg"],
    ),
    "index edited": (
        lambda folder: replace(
            folder / "index.json", b'"samples_per_shard": 3', b'"samples_per_shard": 4'
        ),
        ["index.json: SHA-256 of itself differs: changed since it was packed, or cut"],
    ),
    "index reformatted": (
        lambda folder: edit(folder / "index.json", lambda index: None),
        [
            "index.json: doesn't end with a SHA-256 of itself",
            "train-000000.tar: index.json doesn't name it",
        ],
    ),
    "index cut": (
        lambda folder: os.truncate(
            folder / "index.json", (folder / "index.json").stat().st_size - 300
        ),
        ["index.json: doesn't end with a SHA-256 of itself"],
    ),
    "entry lost": (
        lambda folder: (
            (folder / "index.json").write_text(
                "".join(
                    line
                    for line in (folder / "index.json").read_text().splitlines(keepends=True)
                    if "train-000001" not in line
                )
            ),
            seal(folder),
        ),
        [
            "train-000001.tar: index.json doesn't name it",
            "index.json: train: 4 packed + 1 rejected; should be 8 rows read",
        ],
    ),
    "entry leads elsewhere": (
        lambda folder: (
            replace(
                folder / "index.json", b'"name": "train-000001.tar"', b'"name": "../train-001.tar"'
            ),
            seal(folder),
        ),
        ["index.json: line 3 describes no shard (name '../train-001.tar', split 'train')"],
    ),
    "sizes edited": (
        lambda folder: edit(
            folder / "sizes.json", lambda sizes: sizes.update({"train-000001.tar": 2, "y": 1})
        ),
        [
            "sizes.json: SHA-256",
            "sizes.json: train-000001.tar: 2; should be 3",
            "sizes.json: y: 1; should be None",
        ],
    ),
    "sizes deleted": (
        lambda folder: (folder / "sizes.json").unlink(),
        ["sizes.json: unreadable: No such file or directory"],
    ),
    "a reject lost": (
        lambda folder: (
            replace(folder / "rejects.csv", b"valid_0000,valid,", b"valid_0000,other,"),
            seal(folder),
        ),
        [
            "index.json: valid: 2 packed + 0 rejected; should be 3 rows read",
            "index.json: other: 0 packed + 1 rejected; should be 0 rows read",
        ],
    ),
    "re-encoded miscounted": (
        lambda folder: (
            replace(folder / "index.json", b'"EXIF orientation 6": 1', b'"EXIF orientation 6": 2'),
            seal(folder),
        ),
        ["index.json: {'EXIF orientation 6': 1} images re-encoded in the shards; should be"],
    ),
    "strays": (
        lambda folder: [
            (folder / name).touch()
            for name in ("train-000003.tar", "valid-000001.tar.partial", "unfinished.jsonl")
        ],
        [
            "train-000003.tar: index.json doesn't name it",
            "unfinished.jsonl: left by a packing that was killed; should be not there",
            "valid-000001.tar.partial: left by",
        ],
    ),
}


class Payload:
    """What a malicious file holds: opening it would run this."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))
