"""What a packing has done so far, so that a killed one resumes; and the files made of that.

`unfinished.jsonl` holds what the shards depend on, then one line per finished shard or split:

    {"journal": 2, "head": {"version": 1, "options": {...}, "source": {...}}}
    {"split": "train", "shard": {...}, "read": 1007, "reencoded": {...}, "rejects": [[...], ...]}
    {"split": "train", "shard": null, "read": 1200, "reencoded": {}, "rejects": []}

"shard" is the shard's entry in index.json (null: the split ends), "read" counts the rows of the
split until then, the rest is what came since the line before. A line is written once its shard is
on disk: what a killed process did after its last whole line is done again. index.json, sizes.json
and rejects.csv, which readers use, are made from these lines, one at a time.
"""

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..data.index import ENTRY, INDEX, REJECTS, SIZES, VERSION
from ..errors import InputError
from ..runtime.atomic import atomic_file

JOURNAL = "unfinished.jsonl"
_FORMAT = 2
_CHANGED = {  # what stands in a head as a hash
    "tables": "the source's tables, or which of them are read, changed",
    "images": "the images are others, or in another place",
    "dropped": "other pairs leak",
}


class Journal:
    """The journal of a shard folder, opened to resume where it ends; a context manager.

    Raises:
        InputError: an unfinished packing that depends on other things is there (says how they
            differ), or the journal is damaged.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.path.touch()
        self._file = self.path.open("r+b")
        try:
            # a line that a killed process left half written is the last one
            end = sum(len(line) for line in self._file if line.endswith(b"\n"))
            self._file.truncate(end)
            self._file.seek(end)
            if not end:
                self.write({"journal": _FORMAT, "head": head})
            else:
                refuse_other(folder, read_head(self.path), head)
        except BaseException:
            self._file.close()
            raise

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was done so far, the head left out."""
        with self.path.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def write_rejects(self, more: Sequence[Sequence[str]] = ()) -> None:
        """rejects.csv: a row for each row of the source that is in no shard."""
        with (
            atomic_file(self.folder / REJECTS, durable=True) as partial,
            partial.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "split", "reason", "detail"))
            for line in self.lines():
                writer.writerows(line["rejects"])
            writer.writerows(more)

    def write_index(self, head: Mapping[str, Any]) -> None:
        """index.json and, just before it, sizes.json. A line per shard; rejects.csv is there."""
        sizes, out = dict[str, int](), self.folder
        with (
            atomic_file(out / INDEX, durable=True) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.write(json.dumps(head).removesuffix("}") + ', "shards": [')
            for shard in filter(None, (line["shard"] for line in self.lines())):
                file.write(("," if sizes else "") + "\n" + json.dumps(shard, ensure_ascii=False))
                sizes[shard["name"]] = shard["samples"]
            with atomic_file(out / SIZES, durable=True) as other:
                other.write_text(json.dumps(sizes, indent=1))
            hashes = {name: file_hash(out / name) for name in (REJECTS, SIZES)}
            file.write(f'\n], "files": {json.dumps(hashes)}}}\n')

    def remove(self) -> None:
        """The work is finished: nothing is left to resume."""
        self.path.unlink()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_head(path: Path) -> dict[str, Any]:
    """All of an index.json, or the head of a journal: what the shards depend on.

    Raises:
        InputError: it is not as packing writes it, or of another version.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(file.read() if path.name == INDEX else file.readline())
        if path.name != INDEX:
            head: Any = content["head"] if content["journal"] == _FORMAT else None
            return dict(head, options=dict(head["options"]), source=dict(head["source"]))
        if content["version"] != VERSION:
            version = content["version"]
            raise InputError(f"{path}: version {version!r}, this program reads version {VERSION}")
        for entry in content["shards"]:
            lengths = {len(entry[name]) for name in ("keys", "extensions", "members")}
            if not entry.keys() >= ENTRY or lengths != {entry["samples"]}:
                raise ValueError("entry")
        for part in (content["options"], content["source"], *content["counts"].values()):
            dict(part)
        return dict(content)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: damaged or of another version; begin again with --overwrite"
        ) from None


def refuse_other(folder: Path, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a folder whose shards depend on other things than those given.

    Raises:
        InputError: they do; says how they differ.
    """
    if changes := _differences({name: there.get(name) for name in given}, given):
        raise InputError(
            f"{folder}: holds a packing with other settings: {changes}; give those again, choose "
            "another --out, or --overwrite"
        )


def _differences(there: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Such as "samples_per_shard 500, not 1000"."""
    changes: list[str] = []
    for name in dict.fromkeys([*there, *given]):
        old, new = there.get(name), given.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes.append(_differences(old, new))
        elif old != new:
            changes.append(_CHANGED.get(name) or f"{name} {old}, not {new}")
    return ", ".join(filter(None, changes))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other packings out of a folder meanwhile.

    Raises:
        InputError: another process is packing into it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another process is packing into this folder") from None
        yield
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
