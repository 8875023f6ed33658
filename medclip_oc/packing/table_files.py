"""The kinds of files that tables lie in, each opened by one function: `open_file`.

pandas reads text and Excel, pyarrow Parquet; a CSV, JSON lines and Parquet in chunks, because they
may be larger than the memory. Text is UTF-8, with or without a byte-order mark, with any line
ending, and may be compressed (.gz); anything else is an error that names the line.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from ..errors import InputError
from ..runtime.extras import needed
from .image_store import MAX_BYTES

_CHUNK = 1000  # rows of text that are in memory at once
_PARQUET_CHUNK, _PARQUET_BYTES = 64, 1 << 26  # fewer, because they may hold images
_MOST_LETTERS = 1 << 24  # of a cell of CSV; a quote left open runs on until then
PROBLEM = "\0problem"  # no key of JSON
_NO_TEXT = re.compile(rb"PK\x03\x04|\xd0\xcf\x11\xe0|ARROW1|\xff{4}|PAR1|\xff\xfe|\xfe\xff")

Frames = Iterator[pd.DataFrame]
"""Some rows of the chosen columns and, last, PROBLEM: what is wrong with each, if it is text. The
index is the line on which a row begins, or its number."""
Opened = tuple[list[str], str, Callable[[list[str]], Frames]]
"""The columns of a file, what its rows are counted in, and what reads the columns given."""


def open_file(path: Path) -> Opened:
    """Open a table by the ending of its name; InputError: no such file, or no such table in it.

    `.parquet`; `.xlsx`; `.jsonl` (an object a line); `.json` (see `_json_file`); anything else has
    separated cells: by commas, semicolons, tabs or bars, as its first line tells.
    """
    name = path.name.lower().removesuffix(".gz")
    kinds = {".parquet": _parquet, ".xlsx": _excel, ".jsonl": _json_lines, ".json": _json_file}
    return kinds.get(Path(name).suffix, _csv)(path)


def _whole(path: Path, frame: pd.DataFrame) -> Opened:
    """A table that is in memory; its index counts from 0."""
    names = [str(name) for name in frame if name != PROBLEM]
    if frame.empty or not names:
        raise InputError(f"{path}: no rows with named columns")
    frame = frame.assign(**{PROBLEM: frame.get(PROBLEM)}).set_axis(frame.index + 1)
    return names, "row", lambda chosen: iter([frame[[*chosen, PROBLEM]]])


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """A text file. What goes wrong while it is read is an InputError that names the line."""
    unpack: Any = open
    try:
        with path.open("rb") as raw:
            start = raw.read(6)
        if _NO_TEXT.match(start):
            kind = "Excel, zip, Arrow, Parquet or UTF-16 by its first bytes"
            raise InputError(f"{path}: {kind}; save the table as CSV in UTF-8")
        unpack = gzip.open if start.startswith(b"\x1f\x8b") else open
        with unpack(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError:
        with unpack(path, "rb") as raw:
            lines = enumerate((line.decode(errors="replace") for line in raw), start=1)
            n, text = next((n, text) for n, text in lines if "\ufffd" in text)
        where = f"{path}: line {n} ({text[:40]!a})"
        raise InputError(f"{where} is not UTF-8; save the table as CSV in UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _batches(file: TextIO) -> Iterator[pd.Series]:
    """The lines that aren't blank, under their numbers, a chunk at a time."""
    lines = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
    while batch := dict(islice(lines, _CHUNK)):
        yield pd.Series(batch, dtype=object)


def read_lines(path: Path, names: list[str], chosen: list[str]) -> Frames:
    """Lines without quoting or header: all that follows the first tabs belongs to the last cell."""
    with _open_text(path) as file:
        for lines in _batches(file):
            cells = lines.str.rstrip("\r\n").str.split("\t", n=len(names) - 1, expand=True)
            frame = cells.reindex(columns=range(len(names))).set_axis(names, axis=1)
            yield frame.reindex(columns=[*chosen, PROBLEM])


def _csv(path: Path) -> Opened:
    """The first line that isn't blank has the names, and tells the separator; Excel may put a line
    such as `sep=;` before it. Columns without a name at the end are none.
    """
    csv.field_size_limit(_MOST_LETTERS)  # pandas reads through this module, which stops at 131,072
    with _open_text(path) as file:
        lines = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
        n, line = next(lines, (0, ""))
        if told := re.match(r"sep=(.)\s*$", line):
            n, line = next(lines, (0, ""))
    if not line or "\0" in line:
        raise InputError(f"{path}: " + ("NUL bytes: UTF-16? Save it as UTF-8" if line else "empty"))
    bare = re.sub('"[^"]*"', "", line)
    separator = told[1] if told else "\t" if "\t" in bare else max(",;|", key=bare.count)
    [header] = csv.reader([line], delimiter=separator)
    names = [name.strip() for name in header]
    while names[-1:] == [""]:
        names.pop()
    return names, "line", partial(_csv_frames, path, names, len(header) + 2, separator, n)


def _csv_frames(
    path: Path, names: list[str], width: int, separator: str, line: int, chosen: list[str]
) -> Frames:
    # pandas' Python engine alone tells a short row (NaN) from an empty cell, and refuses a quote
    # left open. `width` cells, more than there are names, show long rows; with a function for
    # `usecols` they neither end the table nor shift it.
    options: dict[str, Any] = {"engine": "python", "sep": separator, "header": None}
    options |= {"names": range(width), "usecols": lambda name: True}
    options |= {"skip_blank_lines": False, "index_col": False, "skiprows": line}
    options |= {"dtype": object, "keep_default_na": False, "chunksize": _CHUNK}
    with _open_text(path) as file:
        try:
            for chunk in filter(len, pd.read_csv(file, **options)):
                counts, text = chunk.notna().sum(axis=1), chunk.fillna("")
                breaks = (text + " ").sum(axis=1).str.count(r"\r\n|\r|\n")
                ends = line + (breaks + 1).cumsum()
                line = ends.iloc[-1]
                frame = chunk[[names.index(name) for name in chosen]].set_index(ends - breaks)
                # empty cells at the end, but for the last that is seen, are no more than a habit
                more = (text.iloc[:, len(names) :] != "").any(axis=1) | (counts == width)
                told = counts.astype(str).mask(more, "more")
                problems = told + f" fields, the header has {len(names)}"
                frame[PROBLEM] = problems.where(more | (counts < len(names)), None).to_numpy()
                # a line of blanks is no row
                yield frame[((counts > 1) | (text[0].str.strip() != "")).to_numpy()]
        except (pd.errors.ParserError, csv.Error) as error:
            where = f"{path}: line {_broken_line(path, separator)}"
            raise InputError(f"{where}: not CSV: {error} (a quote left open?)") from None


def _broken_line(path: Path, separator: str) -> int:
    """Where the row begins that is no CSV: pandas doesn't say."""
    with _open_text(path) as file, suppress(csv.Error):
        reader, line = csv.reader(file, delimiter=separator, strict=True), 1
        for _ in reader:
            line = reader.line_num + 1
    return line


def _json_lines(path: Path) -> Opened:
    """Its columns are the keys of the first lines; one that a line hasn't got is empty there."""
    with _open_text(path) as file:
        if file.read(1) == "[":
            return _json_file(path)
        file.seek(0)
        frame = next(map(_json_frame, _batches(file)), pd.DataFrame())
    if names := [str(name) for name in frame if name != PROBLEM]:
        return names, "line", partial(_json_frames, path)
    raise InputError(f"{path}: none of its first {_CHUNK} lines is a JSON object")


def _json_frames(path: Path, chosen: list[str]) -> Frames:
    with _open_text(path) as file:
        for lines in _batches(file):
            yield _json_frame(lines).reindex(columns=[*chosen, PROBLEM])


def _json_frame(lines: pd.Series) -> pd.DataFrame:
    """One row for each line: the values of its object, or what is wrong with it."""
    try:
        if not lines.str.lstrip().str.startswith("{").all():
            raise ValueError("not an object")
        frame = pd.read_json(io.StringIO("".join(lines)), lines=True, dtype=False)
        if len(frame) != len(lines):
            raise ValueError("not one object")
    except (ValueError, RecursionError) as error:
        if len(lines) > 1:  # the rows of one bad line can't be told apart in a chunk
            return pd.concat([_json_frame(lines.iloc[n : n + 1]) for n in range(len(lines))])
        frame = pd.DataFrame({PROBLEM: [f"not JSON: {error}"]})
    return frame.set_index(lines.index)


def _json_file(path: Path) -> Opened:
    """An array of objects; or objects by split, as R2Gen has them; or COCO's images, joined with
    their annotations; or JSON lines. A list in `image_path` is a row for each.
    """
    with _open_text(path) as file:
        text = file.read()
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data") and text[:1] != "[":
            return _json_lines(path)
        raise InputError(f"{path}: not JSON: {error}") from None
    try:
        if isinstance(tree, list):
            frame = _records(tree)
        elif {"images", "annotations"} <= tree.keys():
            images, captions = _records(tree["images"]), _records(tree["annotations"])
            images = images.rename(columns={"id": "image_id"})
            frame = images.merge(captions, "outer", "image_id", suffixes=("_image", ""))
        else:
            parts = [_records(records, split=split) for split, records in tree.items()]
            frame = pd.concat(parts, ignore_index=True)
        if "image_path" in frame:  # a study's second image is another pair
            frame = frame.explode("image_path")
            if "id" in frame:
                places = zip(frame["id"], frame.groupby(level=0).cumcount(), strict=True)
                frame["id"] = [f"{name}-{n}" if n else name for name, n in places]
    except (ValueError, KeyError, TypeError, AttributeError):
        wanted = "an array of objects, an object a line, {split: array}, or COCO's two arrays"
        raise InputError(f"{path}: no table: wanted is {wanted} (see docs/data.md)") from None
    return _whole(path, frame)


def _records(objects: Any, **more: str) -> pd.DataFrame:
    """A row for each object."""
    if not isinstance(objects, list):
        raise TypeError("no array")
    wrong = {PROBLEM: "not a JSON object"}
    rows = [{**more, **(each if isinstance(each, dict) else wrong)} for each in objects]
    return pd.DataFrame(rows, dtype=object)


def _excel(path: Path) -> Opened:
    """The one sheet that isn't empty; its first row has the names."""
    try:
        sheets = pd.read_excel(path, None, header=None, dtype=object, keep_default_na=False)
        filled = [cells for cells in sheets.values() if not cells.empty]
        if len(filled) != 1:
            raise ValueError(f"{len(filled)} sheets have cells")
    except Exception as error:  # openpyxl isn't there, or raises whatever it trips over
        reason = "pip install openpyxl" if isinstance(error, ImportError) else str(error)
        advice = "save the sheet that counts as CSV in UTF-8"
        raise InputError(f"{path}: not readable ({reason:.120}); {advice}") from None
    names = [str(name).strip() for name in filled[0].iloc[0]]
    return _whole(path, filled[0][1:].set_axis(names, axis=1))


def _parquet(path: Path) -> Opened:
    parquet = needed("pyarrow.parquet", "parquet")
    try:
        file = parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's own are among them
        raise InputError(f"{path}: not a readable Parquet file: {error}") from None
    return file.schema_arrow.names, "row", partial(_parquet_frames, path, file)


def _parquet_frames(path: Path, file: Any, chosen: list[str]) -> Frames:
    done = 0
    with file:
        try:
            groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
            # bytes of a row, unpacked: fewer are read at once where they are large
            size = max([1, *(group.total_byte_size // max(1, group.num_rows) for group in groups)])
            if size > MAX_BYTES:
                raise ValueError(f"rows of {size:,} bytes; at most {MAX_BYTES:,} are read")
            rows = min(_PARQUET_CHUNK, _PARQUET_BYTES // size) or 1
            for batch in file.iter_batches(rows, columns=list(dict.fromkeys(chosen))):
                frame = pd.DataFrame(batch.to_pylist(), dtype=object)
                frame.index += done + 1
                done += len(frame)
                yield frame.reindex(columns=[*chosen, PROBLEM])
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: after row {done}: unreadable: {error}") from None
