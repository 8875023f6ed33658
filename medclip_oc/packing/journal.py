"""What a packing has done so far, so that a killed one resumes; and the files made of that.

`unfinished.jsonl` holds what the shards depend on, then one line per finished shard or split:

    {"journal": 2, "head": {"version": 1, "options": {...}, "source": {...}}}
    {"split": "train", "shard": {...}, "rows": 1007, "read": 1007, "rejects": [[...], ...], ...}
    {"split": "train", "shard": null, "rows": 1200, "read": 1200, "rejects": [], ...}

"shard" is the shard's entry in index.json (null: the split ends), "rows" and "read" count those of
the split until then (see report.py), the rest is what came since the line before. A line is written
once its shard is on disk: what a killed process did after its last whole line is done again.
index.json, sizes.json and rejects.csv, which readers use, are made from these lines, one at a time.
"""

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config.fields import shorten
from ..data.index import DAMAGED, INDEX, JOURNAL, REJECTS, SIZES, VERSION, parse_shard
from ..errors import InputError
from ..runtime.atomic import atomic_file

_FORMAT = 2
_CHANGED = {  # what stands in a head as a hash
    "tables": "the source's tables, or which of them are read, changed",
    "images": "the images are others, or in another place",
    "dropped": "other pairs leak",
    "salt": "the salt of its names is another (--group-salt)",
    "places": "pairs are in other splits",
}


class Journal:
    """The journal of a shard folder, to resume where it ends.

    `head`: what the shards depend on, `version`, `options`, `source`. InputError: there is a
    damaged journal, or one of a packing that depends on other things.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.folder, self._head, self._path = folder, head, folder / JOURNAL
        self._path.touch()
        with self._path.open("r+b") as file:
            # a line that a killed process left half written is the last one
            end = sum(len(line) for line in file if line.endswith(b"\n"))
            file.truncate(end)
        if end:
            refuse_other(folder, read_head(self._path), head)
        else:
            self.write({"journal": _FORMAT, "head": head})

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was done so far, the head left out."""
        with self._path.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def rejects(self) -> Iterator[Any]:
        """A csv.writer of rejects.csv: a row for each row of the source that is in no shard."""
        with (
            atomic_file(self.folder / REJECTS, durable=True) as partial,
            partial.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "split", "reason", "detail"))
            yield writer

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Write rejects.csv, sizes.json and, last, index.json; then the journal goes."""
        sizes, out = dict[str, int](), self.folder
        with (
            atomic_file(out / INDEX, durable=True) as partial,
            partial.open("w", encoding="utf-8") as index,
        ):
            head = json.dumps({**self._head, "counts": counts})
            index.write(head.removesuffix("}") + ', "shards": [')
            with self.rejects() as rejects:
                for line in self.lines():
                    rejects.writerows(line["rejects"])
                    if shard := line["shard"]:
                        index.write("," * bool(sizes) + "\n")
                        index.write(json.dumps(shard, ensure_ascii=False))
                        sizes[shard["name"]] = shard["samples"]
            with atomic_file(out / SIZES, durable=True) as other:
                other.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
            hashes = {name: file_hash(out / name) for name in (REJECTS, SIZES)}
            index.write(f'\n], "files": {json.dumps(hashes)}}}\n')
        self._path.unlink()


def read_head(path: Path) -> dict[str, Any]:
    """All of an index.json, or the head of a journal; InputError: damaged or of another version."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read() if path.name == INDEX else file.readline())
        head: dict[str, Any] = content if path.name == INDEX else content["head"]
        if (version := head["version"]) != VERSION:
            raise InputError(f"{path}: version {version!r}, this program reads version {VERSION}")
        for part in (head["options"], head["source"], head.get("files", {})):
            dict(**part)
        if path.name == INDEX:
            for entry in head["shards"]:
                parse_shard(path.parent, entry)
            counts = head["counts"]
            further = counts.get("further", {}).values()
            sum([*counts["read"].values(), *counts["reencoded"].values(), *further])
        elif content["journal"] != _FORMAT:
            raise ValueError("journal")
    except InputError:
        raise
    except DAMAGED:
        raise InputError(f"{path}: damaged or of another version; pack with --overwrite") from None
    return head


def refuse_other(folder: Path, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse shards that depend on other things than those given: "samples_per_shard 3, not 4"."""
    old, new = ({**each["options"], **each.get("source", {})} for each in (there, given))
    changes = [
        _CHANGED.get(name) or f"{name} {shorten(old.get(name))}, not {shorten(new.get(name))}"
        for name in {**old, **new}
        if (old.get(name) or None) != (new.get(name) or None)  # an option that came later was off
    ]
    if changes:
        ways = "give those again, choose another --out, or --overwrite"
        raise InputError(f"{folder}: a packing with other settings: {', '.join(changes)}; {ways}")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other packings out of a folder meanwhile; InputError: one is at work there."""
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
