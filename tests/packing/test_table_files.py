"""Every kind of file that a table lies in gives its rows, or is refused in one line."""

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.errors import InputError
from medclip_oc.packing import table_files
from medclip_oc.packing.tables import Table

AB = [["a", "heart"], ["b", "lung"]]
CSV = b"id,t\na,heart\nb,lung\n"
OBJECTS = [{"id": "a", "t": "heart"}, {"id": "b", "t": "lung"}]
LINES = b"".join(json.dumps(each).encode() + b"\n" for each in OBJECTS)
IMAGES = [{"id": 2, "file_name": "b"}, {"id": 1, "file_name": "a"}, {"id": 3, "file_name": "c"}]
NOTES = [{"id": n, "image_id": image, "t": text} for n, image, text in ((7, 1, "x"), (8, 1, "y"))]
R2GEN = {"train": [{"id": "a", "t": "x", "image_path": ["a/0.png", "a/1.png"]}], "val": [7]}
DATES = [["2024-01-05", "1e5"]]
NO_TABLE = "no table: wanted is an array of objects, an object a line, {split: array}"

FILES: dict[str, tuple[bytes | object, str, list[Any] | str]] = {
    "t.csv.gz": (gzip.compress(CSV), "id t", AB),
    "t.tsv.gz": (gzip.compress(CSV.replace(b",", b"\t")), "id t", AB),
    "t.jsonl.gz": (gzip.compress(LINES), "id t", AB),
    "cut.csv.gz": (gzip.compress(CSV * 99)[:-9], "id t", "ended before the end-of-stream marker"),
    "none.csv.gz": (CSV, "id t", AB),
    "latin.csv.gz": (gzip.compress(CSV + b"c,\xe8\n"), "id t", "line 4 ('c,"),
    # pandas would make dates of columns of these names
    "dates.jsonl": (b'{"date": "2024-01-05", "modified": "1e5"}', "date modified", DATES),
    "array.json": ([*OBJECTS, 5, {"id": 3}], "id t", [*AB, "not a JSON object", ["3", ""]]),
    "array.jsonl": (OBJECTS, "id t", AB),
    "arrays.jsonl": (b"[1]\n[2]", "id t", "not JSON: Extra data"),
    "lines.json": (LINES, "id t", AB),
    "r2gen.json": (
        R2GEN,
        "id t image_path split",
        [["a", "x", "a/0.png", "train"], ["a-1", "x", "a/1.png", "train"], "not a JSON object"],
    ),
    "coco.json": (
        {"info": {}, "images": IMAGES, "annotations": NOTES},
        "file_name id t",
        [["a", "7", "x"], ["a", "8", "y"], ["b", "", ""], ["c", "", ""]],  # none is lost
    ),
    "no coco.json": ({"images": IMAGES, "annotations": [{}]}, "id", NO_TABLE),
    "by id.json": ({"a.jpg": "heart"}, "id", NO_TABLE),
    "number.json": (5, "id", NO_TABLE),
    "empty.json": ([], "id", "no rows"),
    "cut.json": (b'[{"id": "a"', "id", "not JSON: Expecting ',' delimiter: line 1"),
    "deep.json": (b"[" * 100_000, "id", "not JSON: maximum recursion"),
    "old.xls": (
        b"\xd0\xcf\x11\xe0" + bytes(99),
        "id",
        "Excel, zip, Arrow, Parquet or UTF-16 by",
    ),
    "none.xlsx": (b"PK", "id", "; save the sheet that counts as CSV in UTF-8"),
    "wide.csv": (b",".join(b"column %d" % n for n in range(300)), "id", "no column 'id'; found"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file(tmp_path: Path, name: str) -> None:
    content, columns, expected = FILES[name]
    (path := tmp_path / name).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            list(Table((path,)).rows(columns.split()))
        line = str(caught.value).removeprefix(f"{path}: ")
        assert expected in line
        assert "\n" not in line
        assert len(line) < 250
    else:
        rows = Table((path,)).rows(columns.split())
        assert [row.problem or row.values for row in rows] == expected


def test_a_cell_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_MOST_LETTERS", 1000)
    (tmp_path / "t.csv").write_text("id,t\na,x\nb," + "x" * 1001)
    with pytest.raises(InputError, match="line 3: not CSV: field larger than field limit"):
        list(Table((tmp_path / "t.csv",)).rows(["id"]))
    csv.field_size_limit(1 << 24)  # it is the process's


def test_excel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="what reads .xlsx isn't there")
    book, path = openpyxl.Workbook(), tmp_path / "t.xlsx"
    for row in (["id", "t", "x", "x"], ["0012", "NA"], [7, None], [True, "nan"]):
        book.active.append(row)
    book.save(path)
    rows = list(Table((path,)).rows(["id", "t"]))
    assert [row.values for row in rows] == [["0012", "NA"], ["7", ""], ["True", "nan"]]
    assert rows[0].location == "row 2"  # as Excel numbers them
    book.create_sheet("more").append(["x"])
    book.save(path)
    with pytest.raises(InputError, match="2 sheets have cells"):
        Table((path,)).names()
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"not readable \(pip install openpyxl\); save"):
        Table((path,)).names()
