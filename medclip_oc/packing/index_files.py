"""What stands beside the tars of a shard folder, written at the end (shards.py describes it)."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.index import INDEX, REJECTS, SIZES
from .tar_writer import appearing

REJECT_COLUMNS = ("id", "split", "reason", "detail")


def write_rejects(folder: Path, rows: Iterable[Iterable[str]]) -> None:
    """rejects.csv: a line for each row of the source that is in no shard."""
    with appearing(folder / REJECTS) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(REJECT_COLUMNS)
        writer.writerows(rows)


def write_index(folder: Path, head: Mapping[str, Any], entries: Iterable[dict[str, Any]]) -> None:
    """index.json and, just before it gets its name, sizes.json.

    A line for each shard; the hashes of the other files and, over all that stands before it, of
    itself come last: verify.py tells by them whether anything changed.

    Args:
        folder: the shard folder; rejects.csv is there.
        head: what the index says before it lists the shards.
        entries: what `write_shards` yielded, in order.
    """
    sizes, seal = dict[str, int](), hashlib.sha256()
    with appearing(folder / INDEX) as file:

        def put(text: str) -> None:
            file.write(text)
            seal.update(text.encode())

        put(json.dumps(head).removesuffix("}") + ', "shards": [')
        for entry in entries:
            put(("," if sizes else "") + "\n" + json.dumps(entry, ensure_ascii=False))
            sizes[entry["name"]] = entry["samples"]
        with appearing(folder / SIZES) as other:
            json.dump(sizes, other, indent=1)
        files = {name: _digest(folder / name) for name in (REJECTS, SIZES)}
        put(f'\n], "files": {json.dumps(files)}, "seal": "')
        file.write(seal.hexdigest() + '"}\n')


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
