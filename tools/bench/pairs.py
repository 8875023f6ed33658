"""Pairs of a source, repeated and packed: what the benchmarks of packing and loading work on.

No package that reads or writes shards is imported with this module: see loader.py.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def gather(source: str, repeat: int, folder: Path) -> tuple[Path, list[Path]]:
    """A table (id, image, caption) of all pairs of a source, each `repeat` times under ids of its
    own, in a folder, which gets the images too; and the image of each row. InputError: no source.
    """
    from medclip_oc.packing.formats import open_source
    from medclip_oc.packing.sources import Pair

    found, images = open_source(Path(source).expanduser()), folder / "images"
    images.mkdir()
    rows: list[tuple[str, Path, str]] = []
    for record in (record for split in found.splits for record in found.records(split)):
        if isinstance(record, Pair):
            key = f"{record.split}_{record.key}"
            path = images / f"{key}{Path(record.image.name).suffix}"
            path.write_bytes(record.image.read())
            rows.append((key, path, record.caption))
    every = [(f"{key}_{turn}", *rest) for turn in range(repeat) for key, *rest in rows]
    return write_table(folder / "table.csv", every), [path for _, path, _ in rows] * repeat


def write_table(path: Path, rows: Iterable[Sequence[object]], *further: str) -> Path:
    """The table of such rows, at `path`; `further` columns come after those."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "image", "caption", *further), *rows])
    return path


def read_captions(file: str) -> list[str]:
    """Those of a table's column Caption that aren't blank. InputError: no such file or column."""
    from medclip_oc.inference.prompts import open_table

    cells = [row.values[0] for row in open_table("--captions", file).rows(["Caption"])]
    return [text for cell in cells if (text := str(cell or "").strip())]


def pack_table(table: Path, out: Path, workers: int = 1, **options: Any) -> int:
    """Pack the pairs of such a table; returns how many. `options`: see `PackOptions`."""
    from medclip_oc.packing.formats import open_table
    from medclip_oc.packing.pack import PackOptions, pack

    source = open_table(table, {"id": "id", "image": "image", "caption": "caption"})
    return pack(source, out, PackOptions(**options), workers=workers).packed["train"]
