"""Each row of a caption table becomes one pair, or one line that says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclip_oc.errors import InputError
from medclip_oc.packing.formats import open_source, open_table
from medclip_oc.packing.image_store import stem
from medclip_oc.packing.sources import Pair, Reject, key_of, unfit_id

Read = Callable[..., list[Pair | Reject]]


def write(folder: Path, text: str, images: tuple[str, ...] = (), split: str = "train") -> Path:
    """A one-split source: the table as given, and an (unopened) file for each image."""
    (folder / f"{split}_captions.csv").write_text(text)
    for name in images:
        path = folder / f"{split}_images" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def read(folder: Path) -> list[Pair | Reject]:
    source = open_source(folder, ["train"])
    found = list(source.records("train"))
    assert len(found) == source.count("train")
    return found


def test_finds_the_image(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpeg", "c.png", "d.JPG", "e.PNG", "f.jpg", "f.png"]
    cells = ["a", "b", "c", "d", "e", "f.png"]  # the extension in the table chooses
    table = "ID,Caption\n" + "".join(f"{cell},heart\n" for cell in cells)
    pairs = [each for each in read(write(tmp_path, table, tuple(names))) if isinstance(each, Pair)]
    assert [pair.id for pair in pairs] == list("abcdef")
    assert [pair.image.name for pair in pairs] == [*names[:5], "f.png"]


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
    assert isinstance(found, Pair)
    assert found.image.name == "0001.jpg"
    assert isinstance(missing, Reject)
    assert "3: no '0002', whatever its ending (--image-root says where paths" in missing.detail
    assert missing.detail.endswith(f" or {tmp_path}/images")
    assert isinstance(empty, Reject)


def test_ids_with_odd_characters_get_a_safe_key(tmp_path: Path) -> None:
    """UIDs have dots, MIMIC's ids have folders; both keep their name in the sample's JSON."""
    text = "ID,Caption\n1.2.840,one\ns5/x,two\ns5_x,three\n"
    pairs = read(write(tmp_path, text, ("1.2.840.jpg", "s5_x.png", "s5/x.jpg")))
    assert [pair.id for pair in pairs] == ["1.2.840", "s5/x", "s5_x"]
    keys = [pair.key for pair in pairs if isinstance(pair, Pair)]
    assert [*(key[:-10] for key in keys[:2]), keys[2]] == ["1_2_840-", "s5_x-", "s5_x"]


def test_of_equal_ids_the_first_usable_row_counts(tmp_path: Path) -> None:
    text = "ID,Caption\na,\na.jpg,heart\na,heart again\nb,lung\n"
    found = read(write(tmp_path, text, ("a.jpg", "b.jpg")))
    outcome = [each.reason if isinstance(each, Reject) else each.caption for each in found]
    assert outcome == ["caption empty", "heart", "duplicate id", "lung"]


def test_concepts(tmp_path: Path) -> None:
    write(tmp_path, "ID,Caption\na,one\nb,two\nc,three\n", ("a.jpg", "b.jpg", "c.jpg"))
    table = tmp_path / "train_concepts.csv"
    table.write_text("ID,CUIs\nb,\na.jpg,C0040405; C0007776;\n")
    facts = [each.facts for each in read(tmp_path) if isinstance(each, Pair)]
    assert [each.get("concepts") for each in facts] == [["C0040405", "C0007776"], [], None]
    table.write_text("ID,CUIs\na,C1,C2\n")  # a broken one is found as early
    with pytest.raises(InputError, match=r"train_concepts.csv: line 2: more fields"):
        open_source(tmp_path, ["train"]).count("train")
    table.unlink()
    assert all(not each.facts for each in read(tmp_path) if isinstance(each, Pair))


BOTH = ("C1;C0040405", "C1,C0040405", "C1|C0040405", "C1 C0040405", "C1\tC0040405;")
BOTH_LISTED = ("['C1', 'C0040405']", "['C1' 'C0040405']", ["C1", "nan", "C0040405"])
NONE = ("", "[]", [], "nan", "None", ["nan"])
ODD = ("heart failure", "C1 (CT)", "C1C2", "7", ["CT"], "c0040405", "nano")


@pytest.mark.parametrize("cell", [*BOTH, *BOTH_LISTED, *NONE, *ODD])
def test_concepts_are_split_by_whatever_is_between_and_what_holds_no_cui_is_refused(
    tmp_path: Path, cell: Any
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"i": "a.jpg", "t": "x", "c": cell}))
    (tmp_path / "a.jpg").touch()
    columns = {"image": "i", "caption": "t", "concepts": "c"}
    [found] = open_table(tmp_path / "t.jsonl", columns).records("train")
    if cell in ODD:
        assert isinstance(found, Reject)
        assert found.reason == "malformed row"
        assert "wanted are CUIs such as C0040405" in found.detail
    else:
        assert isinstance(found, Pair)
        assert found.facts == {"concepts": [] if cell in NONE else ["C1", "C0040405"]}


def test_missing_parts_are_named(tmp_path: Path) -> None:
    text = "ID,Caption\na,one\n"
    write(tmp_path, text, ("a.jpg",))
    with pytest.raises(InputError, match=r"nowhere: no such source folder"):
        open_source(tmp_path / "nowhere", ["train"])
    with pytest.raises(InputError, match=r"valid_captions.csv: no such file.*--splits"):
        open_source(tmp_path)
    write(tmp_path, text, split="valid")
    with pytest.raises(InputError, match=r"valid_images.*valid: no such image folder or zip"):
        open_source(tmp_path, ["train", "valid"])
    (tmp_path / "valid").touch()
    with pytest.raises(InputError, match=r"valid: no such image folder"):
        open_source(tmp_path, ["train", "valid"])
    for splits in (["validation"], ["train", "Test"], list[str]()):
        with pytest.raises(InputError, match="allowed are train, valid, test"):
            open_source(tmp_path, splits)
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
