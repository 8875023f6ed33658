"""What a packing has done so far: one JSON line per event, so that a killed one can go on.

    {"head": {"version": 1, "options": {...}, "source": {...}}}
    {"reject": ["id", "split", "reason", "detail"]}
    {"shard": {...}, "read": 1007, "reencoded": {"mode CMYK": 2}}
    {"end": "train", "read": 1200}

"shard" is the shard's entry in index.json, "read" counts the rows of its split until then. A line
is written after what it tells of is on disk. Everything after the last "shard" or "end" is
as if it had not been: a new start cuts it off, and does that work again. The files that readers
use (index.json, sizes.json, rejects.csv) are made from the journal at the end.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

NAME = "unfinished.jsonl"

Event = dict[str, Any]

_CHANGED = {  # what stands in a head as a hash
    "tables": "the source's tables, or which of them are read, changed",
    "images": "the images are others, or in another place",
    "dropped": "other pairs leak",
}


class Journal:
    """The journal of a shard folder, opened to go on where it ends.

    Args:
        folder: the shard folder.
        head: what decides the content of the shards. An earlier journal must have the same.

    Raises:
        InputError: an unfinished packing with another head is there; says how they differ. Or the
            journal is damaged.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            self._cut()
            self._check(folder, head)
        except BaseException:
            self._file.close()
            raise

    def events(self) -> Iterator[Event]:
        """What happened so far, the head left out."""
        self._file.flush()
        with self.path.open("rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    raise InputError(
                        f"{self.path}: damaged; begin again with --overwrite"
                    ) from None
                if "head" not in event:
                    yield event

    def write(self, event: Event) -> None:
        """Append an event; the end of a shard or split is on disk when this returns."""
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        if "reject" not in event:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process go on."""
        self._file.close()

    def remove(self) -> None:
        """The work is finished: nothing to go on with."""
        self.path.unlink()

    def _cut(self) -> None:
        """Forget what stands after the last event that is on disk for sure."""
        end = position = 0
        for line in self._file:
            position += len(line)
            # a line that a killed process left half written is the last one
            if line.endswith(b"\n") and not line.startswith(b'{"reject"'):
                end = position
        self._file.truncate(end)
        self._file.seek(end)

    def _check(self, folder: Path, head: Mapping[str, Any]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        self._file.seek(0, os.SEEK_END)
        if not first:
            self.write({"head": head})
            return
        try:
            there = dict(json.loads(first)["head"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path}: damaged; begin again with --overwrite") from None
        if different := differences(there, json.loads(json.dumps(head))):
            raise InputError(
                f"{folder}: holds an unfinished packing with other settings: {different}; give "
                "those again to finish it, another --out, or --overwrite"
            )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other packings out of a folder meanwhile.

    Raises:
        InputError: another process is packing into it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder}: another process is packing into this folder") from None
    except OSError:
        pass  # some network file systems have no locks
    try:
        yield
    finally:
        os.close(descriptor)


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """How two heads differ, in words: "samples_per_shard 500, not 1000". Empty: they don't."""
    found: list[str] = []
    for group in dict.fromkeys([*there, *wanted]):
        old, new = there.get(group), wanted.get(group)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(differences(old, new))
        elif old != new:
            found.append(_CHANGED.get(group) or f"{group} {old}, not {new}")
    return ", ".join(filter(None, found))
