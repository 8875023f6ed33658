"""Each row of a caption table becomes one pair, or one line that says why not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclip_oc.errors import InputError
from medclip_oc.packing import tables
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.image_store import stem
from medclip_oc.packing.sources import Pair, Reject, clean, key_of, unfit_id

Table = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Writes a one-split source: the table as given, and an (unopened) file for each image."""

    def write(text: str | bytes, images: tuple[str, ...] = (), concepts: str | None = None) -> Path:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "train_captions.csv").write_bytes(data)
        folder = tmp_path / "train_images" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        for name in images:
            (folder / name).touch()
        if concepts is not None:
            (tmp_path / "train_concepts.csv").write_text(concepts)
        return tmp_path

    return write


def records(folder: Path) -> list[Pair | Reject]:
    source = open_source(folder, ["train"])
    found = list(source.records("train"))
    assert len(found) == source.count("train")
    return found


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.png", "a.JPG", "a.JPEG", "a.PNG"])
def test_finds_the_image(table: Table, name: str) -> None:
    [pair] = records(table("ID,Caption\na,heart\n", (name, "b.jpg")))
    assert isinstance(pair, Pair)
    assert pair.image.name == name


def test_ids_with_odd_characters_get_a_safe_key(table: Table) -> None:
    """UIDs have dots, MIMIC's ids have folders; both keep their name in the sample's JSON."""
    folder = table("ID,Caption\n1.2.840,one\ns5/x,two\ns5_x,three\n", ("1.2.840.jpg", "s5_x.png"))
    (folder / "train_images" / "train" / "s5").mkdir()
    (folder / "train_images" / "train" / "s5" / "x.jpg").touch()
    pairs = [each for each in records(folder) if isinstance(each, Pair)]
    assert [pair.id for pair in pairs] == ["1.2.840", "s5/x", "s5_x"]
    assert [pair.key[:-10] for pair in pairs[:2]] == ["1_2_840-", "s5_x-"]
    assert pairs[2].key == "s5_x"


def test_the_extension_in_the_table_chooses_the_image(table: Table) -> None:
    [pair] = records(table("ID,Caption\na.png,heart\n", ("a.jpg", "a.png")))
    assert isinstance(pair, Pair)
    assert (pair.id, pair.image.name) == ("a", "a.png")


def test_of_equal_ids_the_first_usable_row_counts(table: Table) -> None:
    text = "ID,Caption\na,\na.jpg,heart\na,heart again\nb,lung\n"
    found = records(table(text, ("a.jpg", "b.jpg")))
    outcome = [each.reason if isinstance(each, Reject) else each.caption for each in found]
    assert outcome == ["caption empty", "heart", "duplicate id", "lung"]


def test_concepts(table: Table) -> None:
    folder = table(
        "ID,Caption\na,one\nb,two\nc,three\n",
        ("a.jpg", "b.jpg", "c.jpg"),
        concepts="ID,CUIs\nb,\na.jpg,C0040405; C0007776;\n",
    )
    pairs = [each for each in records(folder) if isinstance(each, Pair)]
    assert [each.facts.get("concepts") for each in pairs] == [["C0040405", "C0007776"], [], None]
    (folder / "train_concepts.csv").unlink()
    assert all(not each.facts for each in records(folder) if isinstance(each, Pair))


def test_a_broken_concept_table_is_found_as_early(table: Table) -> None:
    folder = table("ID,Caption\na,one\n", ("a.jpg",), concepts="ID,CUIs\na,C1,C2\n")
    with pytest.raises(InputError, match=r"train_concepts.csv: line 2: more fields"):
        open_source(folder, ["train"]).count("train")


def test_missing_parts_are_named(table: Table) -> None:
    folder = table("ID,Caption\na,one\n", ("a.jpg",))
    with pytest.raises(InputError, match=r"nowhere: no such source folder"):
        open_source(folder / "nowhere", ["train"])
    with pytest.raises(InputError, match=r"valid_captions.csv: no such file.*--splits"):
        open_source(folder)
    (folder / "valid_captions.csv").write_text("ID,Caption\na,one\n")
    with pytest.raises(InputError, match=r"valid_images.*valid: no such image folder"):
        open_source(folder, ["train", "valid"])


@pytest.mark.parametrize("splits", [["validation"], ["train", "Test"], []])
def test_a_wrong_split_is_named(table: Table, splits: list[str]) -> None:
    with pytest.raises(InputError, match="allowed are train, valid, test"):
        open_source(table("ID,Caption\na,one\n"), splits)


def test_a_split_named_twice_is_read_once(table: Table) -> None:
    folder = table("ID,Caption\na,one\n")
    assert open_source(folder, ["train", "train"]).splits == ("train",)


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


@given(st.text())
def test_cleaning_twice_changes_nothing(caption: str) -> None:
    assert clean(clean(caption)) == clean(caption)


def test_a_json_text_stays_text_whatever_its_column_is_called(tmp_path: Path) -> None:
    """pandas would make dates of columns such as "date" and "modified"."""
    (tmp_path / "t.jsonl").write_text('{"id": "0012", "date": "2024-01-05", "modified": "1e5"}\n')
    rows = list(tables.Table((tmp_path / "t.jsonl",)).rows(["id", "date", "modified"]))
    assert [row.values for row in rows] == [["0012", "2024-01-05", "1e5"]]
