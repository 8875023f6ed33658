"""Each row of a caption table becomes one pair, or one line that says why not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.errors import InputError
from medclip_oc.packing.formats import open_source, open_table
from medclip_oc.packing.image_store import stem
from medclip_oc.packing.sources import Reject, key_of, unfit_id
from tests.support.tiny_dataset import jpeg, pairs_of, records_of, write_split

CELLS = ["0001", "0001.jpg", "images/0001.jpg", "images\\0001.JPG", "ROOT/images/0001.jpg"]
CELLS += ["file://ROOT/images/0001.jpg", "~/images/0001", "file://ROOT/im%61ges/0001.png"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("image_root", [None, "other"])
def test_finds_the_image_of_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, image_root: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("images", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "0001.jpg").touch()
    rows = f"file,text\n{cell.replace('ROOT', str(tmp_path))},heart\n0002,lung\n,none\n"
    (tmp_path / "t.csv").write_text(rows)
    root, columns = image_root and tmp_path / image_root, {"image": "file", "caption": "text"}
    source = open_table(tmp_path / "t.csv", columns, image_root=root)
    found, missing, empty = source.records("train")
    assert found.image.name == "0001.jpg"
    assert "3: no '0002', nor one of that file name (--image-root" in missing.detail
    assert missing.detail.endswith(f" or {tmp_path}/images")
    assert isinstance(empty, Reject)


ENDS = [  # cells; files; which file each finds, or why none
    ("/h/p1/v.jpg /h/p2/v.jpg /h/p3/v", "p1/v.jpg p2/v.png", ["p1/v", "p2/v", "no '/h/p3/v'"]),
    ("d1 d2.jpg d3", "p/s1/d1.jpg p/D2.JPG", ["p/s1/d1.jpg", "p/D2.JPG", "no 'd3'"]),
    ("/home/d1.jpg d2", "a/d1.jpg b/d1.png .d2", ["a/d1.jpg", "no 'd2'"]),
    ("d1", "a/d1.jpg b/d1.png", ["'d1' may be a/d1.jpg, b/d1.png; name one"]),
    ("a/d1.jpg b/d1.png", "c/d1.jpg", ["no 'a/d1.jpg'", "no 'b/d1.png'"]),
    ("train/d1.jpg d2", "test/d1.jpg train/d2", ["no 'train/d1.jpg'", "train/d2"]),
    ("http://h/1.png /9j/4AA", "1", ["1", "'/9j/4AA' is a URL or in base64; save"]),
    ("b/a.jpg;b/c.jpg b/c.PNG|b/a.jpg", "b/a.jpg b/c.png", ["several images in one cell"] * 2),
    ("s3://h/2 data:image/png;b", "1", ["'s3://h/2' is a URL", "'data:image/png;b' is a"]),
]


@pytest.mark.parametrize(("cells", "files", "expected"), ENDS)
def test_finds_the_image_at_the_end_of_a_path(
    tmp_path: Path, cells: str, files: str, expected: list[str]
) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "t.csv").write_text("file,text\n" + "".join(f"{it},x\n" for it in cells.split()))
    source = open_table(tmp_path / "t.csv", {"image": "file", "caption": "text"})
    for record, wanted in zip(source.records("train"), expected, strict=True):
        is_reject = isinstance(record, Reject)
        told = record.detail.partition(": ")[2] if is_reject else record.image.read().decode()
        assert told.startswith(wanted)


def test_concepts(tmp_path: Path) -> None:
    def facts() -> list[Mapping[str, Any]]:
        return [pair.facts for pair in pairs_of(open_source(tmp_path, ["train"]), "train")]

    images = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), b"")
    write_split(tmp_path, "train", "ID,Caption\na,one\nb,two\nc,three\n", images)
    table = tmp_path / "train_concepts.csv"
    table.write_text("ID,CUIs\nb,\na.jpg,C0040405; C0007776;\n")
    assert [each.get("concepts") for each in facts()] == [["C0040405", "C0007776"], [], None]
    table.write_text("ID,CUIs\na,C1,C2\n")  # a broken one is found as early
    with pytest.raises(InputError, match=r"train_concepts.csv: line 2: more fields"):
        open_source(tmp_path, ["train"]).count("train")
    table.unlink()
    assert facts() == [{}] * 3


BOTH = "C1306645", "C0040405"
BETWEEN = (";", ",", "|", " ", "\t", ":X-ray;", ": Plain x-ray ")
SPELLINGS = [
    *(between.join(BOTH) for between in BETWEEN),
    *(str([*BOTH]), "['C1306645' 'C0040405']", ["C1306645", "nan", "C0040405"]),
    *("c1306645;C0040405:CT scan;", "{'C1306645': 'X-ray', 'C0040405': 'CT'}"),
]
NONE = ("", "[]", [], "nan", "None", ["nan"])
ODD = ("heart failure", "C0040405 (CT)", "C0040405C0040405", "7", ["CT"], "C40405", "nano")
ODD += ("C0040405:X-ray, CT", "CT:C0040405")


@pytest.mark.parametrize("cell", [*SPELLINGS, *NONE, *ODD])
def test_concepts_are_split_by_whatever_is_between_and_what_holds_no_cui_is_refused(
    tmp_path: Path, cell: Any
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"i": "a.jpg", "t": "x", "c": cell}))
    (tmp_path / "a.jpg").touch()
    columns = {"image": "i", "caption": "t", "concepts": "c"}
    [found] = open_table(tmp_path / "t.jsonl", columns).records("train")
    if cell in ODD:
        assert found.reason == "malformed row"
        assert "wanted are CUIs such as C0040405" in found.detail
    else:
        assert found.facts == {"concepts": [] if cell in NONE else [*BOTH]}


def test_a_table_whose_paths_are_the_ids(tmp_path: Path) -> None:
    (tmp_path / "p1" / "s.2").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "p1" / "s.2" / f"{name}.jpg").touch()
    rows = "".join(f"p1/s.2/{name}.jpg,x\n" for name in "abca")
    (tmp_path / "t.csv").write_text(f"image,text\n{rows}")
    source = open_table(tmp_path / "t.csv", {"image": "image", "caption": "text"})
    assert source.splits == ("train",)
    first, second, missing, again = source.records("train")
    assert (first.id, second.id) == ("p1/s.2/a", "p1/s.2/b")
    assert first.key.startswith("p1_s_2_a-")
    assert (missing.reason, again.reason) == ("image missing", "duplicate id")
    assert "line 5: line 2 has this id (--id-column" in again.detail


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BYTES = [{"bytes": jpeg(n), "path": None} for n in range(2)]
IMAGES: dict[str, tuple[Any, list[str]]] = {  # of an image column, and the ids or details they give
    "bytes": ([jpeg(0), jpeg(1)], ["t-1", "t-2"]),
    "structs without paths": (pa.array(BYTES, STRUCT), ["t-1", "t-2"]),
    "nulls": (pa.array([None, BYTES[1]], STRUCT), ["row 1: no image in the row", "t-2"]),
    "structs of one path": (pa.array([{**it, "path": "x"} for it in BYTES], STRUCT), ["x", "t-2"]),
    "lists of one": ([[jpeg(0)], [jpeg(1)]], ["t-1", "t-2"]),
    "lists": ([[jpeg(0)] * 2] * 2, [f"row {n}: several images in one cell" for n in (1, 2)]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_in_a_table_need_no_id_column(tmp_path: Path, name: str) -> None:
    images, expected = IMAGES[name]
    for file in ("t.parquet", "test.parquet"):
        pq.write_table(pa.table({"image": images, "text": ["a", "b"]}), tmp_path / file)
    table = open_table(tmp_path / "t.parquet", {"image": "image", "caption": "text"})
    for source, start in ((table, "t"), (open_source(tmp_path / "test.parquet"), "test")):
        records = records_of(source, source.splits[0])
        for record, wanted in zip(records, expected, strict=True):
            told = record.detail if isinstance(record, Reject) else record.id
            assert told.startswith(wanted.replace("t-", f"{start}-"))


def test_several_tables_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files or a folder; their columns are kept as text; a column of splits is said."""
    for n in range(2):
        cells = {"image": [jpeg(n)], "text": ["x"], "Split": ["7"], "finding": ["mass"], "n": [n]}
        (tmp_path / "default").mkdir(exist_ok=True)
        pq.write_table(pa.table({**cells, "list": [["a"]]}), tmp_path / "default" / f"{n}.parquet")
    columns, kept = {"image": "image", "caption": "text"}, ["finding", "n", "list"]
    files = sorted((tmp_path / "default").iterdir())
    for paths in (files, tmp_path, [tmp_path]):
        source = open_table(paths, columns, kept=kept)
        pairs = pairs_of(source, "train")
        assert [pair.id for pair in pairs] == ["0-1", "1-1"]
        assert pairs[1].facts == {"finding": "mass", "n": "1", "list": '["a"]'}
        said = f"warning: {files[0]}: all rows go to the split train (its column Split has none)"
        assert capsys.readouterr().err.strip() == said
    assert source.fingerprints() != open_table(files, columns).fingerprints()
    capsys.readouterr()
    names = ("x/0", "y/0"), ("validate-0", "test-0"), ("val/0", "testing/0")
    for pair, splits in zip(names, (("train",), *[("valid", "test")] * 2), strict=True):
        for file, name in zip(files, pair, strict=True):
            path = tmp_path / pair[0].replace("/", "-") / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)
        source = open_table(tmp_path / pair[0].replace("/", "-"), columns)
        found = [pair.id for split in splits for pair in pairs_of(source, split)]
        assert (source.splits, len(found)) == (splits, 2)
    capsys.readouterr()
    shutil.copy(files[0], tmp_path / "my_test_table.parquet")
    assert open_table(tmp_path / "my_test_table.parquet", columns).splits == ("test",)
    assert "all rows go to the split test (its column Split has none)" in capsys.readouterr().err
    (tmp_path / "dev.csv").write_text("image,text\na.png,x\n")
    assert open_table(tmp_path / "dev.csv", columns).splits == ("valid",)
    assert "all rows go to the split valid (as it is called)" in capsys.readouterr().err
    config = MakeShardsConfig("o", table="t", image_column="i", caption_column="c", splits=["Val"])
    assert config.splits == ["valid"]
    for name, message in (("license", "columns: license: each pair's"), ("x", "no column 'x'")):
        with pytest.raises(InputError, match=message):
            open_table(files, columns, kept=[name])
    (tmp_path / "empty").mkdir()
    for path in ("nowhere.csv", "empty"):
        with pytest.raises(
            InputError, match=f"{path}: no such table, or folder of .parquet files .no pattern"
        ):
            open_table(tmp_path / path, columns)


def test_a_source_or_a_split_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such source folder \(patterns aren't"):
        open_source(tmp_path / "nowhere", ["train"])
    write_split(tmp_path, "train", "ID,Caption\na,one\n", {"a.jpg": b""})
    image = tmp_path / "train_images" / "train" / "a.jpg"
    with pytest.raises(
        InputError, match=r"a.jpg: a folder or a .parquet file is wanted; unpack a zip"
    ):
        open_source(image)
    assert open_source(tmp_path, ["train", "train"]).splits == ("train",)


@given(st.text(max_size=30))
def test_a_key_is_one_name_and_one_webdataset_key(name: str) -> None:
    identity = stem(name)
    if unfit_id(identity) is None:
        key = key_of(identity)
        path = Path("/folder", key + ".jpg")
        assert path.resolve() == path
        assert path.parent == Path("/folder")
        assert path.name.split(".", 1) == [key, "jpg"]  # webdataset's key rule
        assert key_of(key) == key


@given(st.text(max_size=300), st.text(max_size=300))
def test_ids_that_differ_have_keys_that_differ(one: str, other: str) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)
    assert len(key_of(one).encode()) <= 200
