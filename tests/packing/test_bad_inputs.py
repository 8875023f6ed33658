"""What people's data really holds, through the whole of packing: each case with its outcome.

A case stands beside a sound pair in a folder of the Kaggle layout. It comes out of the shard with
these pixels or this caption, or stands in rejects.csv with this reason, or the table is refused in
one line. Rows read are always those packed and those rejected.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.errors import InputError
from medclip_oc.packing.formats import open_source, open_table
from medclip_oc.packing.pack import pack
from medclip_oc.packing.sources import Pair, Reject
from tests.support.bad_inputs import (
    BAD_ROWS,
    BROKEN,
    CAPTIONS,
    FILES,
    HEAD,
    IMAGES,
    LINES,
    WHOLE,
    Kept,
    Refused,
)
from tests.support.fault_injection import rejected
from tests.support.tiny_dataset import jpeg, records_of, write_split

Packed = tuple[dict[str, Sample], list[dict[str, str]]]


def packed(folder: Path, out: Path) -> Packed:
    """Pack and read everything back, by id, and the rejected; nothing may have disappeared."""
    source = open_source(folder, ["test"])
    report, rejects = pack(source, out), rejected(out)
    shard_set = ShardSet.open(str(out), "test")
    samples = [shard_set.read(n) for n in range(len(shard_set))]
    assert report.read["test"] == len(samples) + len(rejects) == source.count("test")
    assert report.packed["test"] == len(samples)
    assert report.rejected.total() == len(rejects)
    by_id = {sample.facts["id"]: sample for sample in samples}
    assert len(by_id) == len(samples)
    return by_id, rejects


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """All images in one folder, packed together; the ids are their places in the list."""
    rows, files = ["ID,Caption"], {}
    for number, (file_name, data, _) in enumerate(IMAGES.values()):
        rows.append(f"{number},caption {number}")
        files[f"{number}{Path(file_name).suffix}"] = data
    path = tmp_path_factory.mktemp("images")
    source = write_split(path / "in", "test", "\n".join(rows), files)
    found = packed(source, path / "out")
    counts = json.loads((path / "out" / "index.json").read_text())["counts"]
    assert counts["multi_frame"] == 4  # APNG, GIF, MPO, WebP
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_image(images: Packed, name: str) -> None:
    (samples, rejects), key = images, str(list(IMAGES).index(name))
    file_name, data, outcome = IMAGES[name]
    if isinstance(outcome, Refused):
        [row] = [row for row in rejects if row["id"] == key]
        assert (row["split"], row["reason"]) == ("test", outcome.reason)
        assert row["detail"].startswith(f"{key}{Path(file_name).suffix}: ")
        assert re.search(outcome.detail, row["detail"])
        return
    sample = samples[key]
    shown = np.asarray(Image.open(io.BytesIO(sample.image)))
    assert sample.caption == f"caption {key}"
    assert (sample.facts["height"], sample.facts["width"]) == shown.shape[:2]
    if isinstance(outcome, Kept):
        assert (sample.image, sample.extension) == (data, outcome.extension)
        assert not sample.facts["reencoded"]
        return
    assert sample.facts["reencoded"] == outcome.reencoded
    assert sample.facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert sample.extension == ("jpg" if data.startswith(b"\xff\xd8") else "png")
    assert sample.facts["mode"] == ("L" if shown.ndim == 2 else "RGB")
    assert shown.shape == outcome.pixels.shape
    assert np.abs(shown.astype(float) - outcome.pixels).max() <= outcome.slack + 0.5


# ------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that the tables name; a test brings its own table."""
    pictures = {name: jpeg(n) for n, name in enumerate(FILES)}
    return write_split(tmp_path_factory.mktemp("tables"), "test", HEAD, pictures)


def read(files: Path, table: str | bytes) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Captions by id, and [id, reason] of the rejected."""
    (files / "test_captions.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    source = open_source(files, ["test"])
    records = records_of(source, "test")
    rejects = [record for record in records if isinstance(record, Reject)]
    assert all(reject.detail.startswith("line ") for reject in rejects)
    pairs = {record.id: record.caption for record in records if isinstance(record, Pair)}
    return pairs, [(reject.id, reject.reason) for reject in rejects]


def test_captions_and_ids_are_read_as_they_are(files: Path) -> None:
    for name, whole in WHOLE.items():
        assert read(files, whole) == ({"a": "heart", "b": "lung"}, []), name
    for cell, caption in CAPTIONS:
        assert read(files, f"{HEAD}a,{cell}\n") == ({"a": caption}, [])
    ids = [Path(name).with_suffix("").as_posix() for name in FILES]
    table = HEAD + "".join(f"{name},heart\n" for name in ids)
    assert read(files, table) == (dict.fromkeys(ids, "heart"), [])


def test_each_bad_row_has_its_reason(files: Path) -> None:
    """None of them takes the id from a sound row after it."""
    table = "".join(f"{row}\n" for row in ("a,heart", *(row for row, _, _ in BAD_ROWS), "b,lung"))
    outcome = [(key, reason) for _, key, reason in BAD_ROWS]
    assert read(files, HEAD + table) == ({"a": "heart", "b": "lung"}, outcome)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_one_line(files: Path, name: str) -> None:
    table, message = BROKEN[name]
    with pytest.raises(InputError, match=message) as caught:
        read(files, table)
    assert "\n" not in str(caught.value)


def test_each_reject_names_the_line_it_begins_on(files: Path) -> None:
    table = 'ID,Caption\r\n\r\na,"two\r\nlines"\r\n  \r\nb\r\nz,"x\n\ny"\r\nz2,x\r\n'
    (files / "test_captions.csv").write_bytes(table.encode() + b"a,again\r\n" * 1200)
    records = list(open_source(files, ["test"]).records("test"))
    details = [record.detail.split(":")[0] for record in records if isinstance(record, Reject)]
    assert details == ["line 6", "line 7", *(f"line {n}" for n in range(10, 1211))]


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere.jpg"),
}


def test_what_is_no_file_is_a_missing_image(tmp_path: Path) -> None:
    makers = {**NO_FILES, "a pipe": os.mkfifo}
    table = f"{HEAD}a,heart\n" + "".join(f"{name},lung\n" for name in makers)
    source = write_split(tmp_path / "in", "test", table, {"a.jpg": jpeg(1)})
    for name, make in makers.items():
        make(source / "test_images" / "test" / f"{name}.jpg")
    samples, found = packed(source, tmp_path / "out")
    assert (list(samples), {row["reason"] for row in found}) == (["a"], {"image missing"})


@pytest.mark.parametrize("name", NO_FILES)
def test_a_table_that_is_none(tmp_path: Path, name: str) -> None:
    table = write_split(tmp_path, "test", "", {}) / "test_captions.csv"
    table.unlink()
    NO_FILES[name](table)
    with pytest.raises(InputError, match=r"Is a directory|no test_captions.csv|no such") as caught:
        open_source(tmp_path, ["test"]).count("test")
    assert "\n" not in str(caught.value)


def outcomes(files: Path, table: str) -> list[tuple[str, str]]:
    """Reason and detail of each row of a table with the columns i and t; none of a pair."""
    columns, root = {"image": "i", "caption": "t"}, files / "test_images" / "test"
    source = open_table(files / table, columns, image_root=root, splits=["test"])
    records = source.records("test")
    return [(r.reason, r.detail) if isinstance(r, Reject) else ("", "") for r in records]


def test_each_bad_line_of_json_has_its_reason(files: Path) -> None:
    good = [json.dumps({"i": name, "t": "heart"}) for name in ("a.jpg", "c.jpg")]
    for line, reason in LINES:
        (files / "table.jsonl").write_text(f"{good[0]}\n\n{line}\n{good[1]}\n")
        first, (found, detail), last = outcomes(files, "table.jsonl")
        assert (first[0], found, last[0]) == ("", reason, "")
        assert detail.startswith("line 3: ")
        assert ("the caption is a boolean" in detail) == ("true" in line)


def test_each_type_of_parquet_is_a_caption_or_has_its_reason(files: Path) -> None:
    day = datetime(2020, 1, 1)
    for values, reason in (
        (["nan", "NA"], ""),
        (pa.array([None, None], pa.string()), "caption empty"),
        (pa.array([None, day], pa.timestamp("ns")), "caption empty"),  # NaT
        ([float("nan"), 1.0], "caption empty"),
        ([1, 2], "malformed row"),
        ([True, None], "malformed row"),
        ([day, None], "malformed row"),
        ([b"text", None], "malformed row"),
    ):
        pq.write_table(pa.table({"i": ["a.jpg", "c.jpg"], "t": values}), files / "t.parquet")
        assert outcomes(files, "t.parquet")[0][0] == reason
