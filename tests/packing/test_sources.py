"""Each row of a caption table becomes one pair, or one line that says why not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclip_oc.errors import InputError
from medclip_oc.packing.formats import open_source, open_table
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


CAPTIONS = {
    "plain": ("a,heart", "heart"),
    "outer blanks, thin and narrow ones too": ("a, \u2009heart\u202f\t", "heart"),
    "decomposed letters": ("a,ede\u0300me", "ed\u00e8me"),
    "NA is text": ("a,NA", "NA"),
    "None is text": ("a,None", "None"),
    "null is text": ("a,null", "null"),
    "nan is text": ("a,nan", "nan"),
    "a number is text": ("a,007", "007"),
    "newline and quotes": ('a,"two\nlines, ""quoted"""', 'two\nlines, "quoted"'),
    "a quote inside": ('a,5" mass', '5" mass'),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_keep_their_meaning(table: Table, name: str) -> None:
    row, expected = CAPTIONS[name]
    [pair] = records(table(f"ID,Caption\n{row}\n", ("a.jpg",)))
    assert isinstance(pair, Pair)
    assert pair.caption == expected


@pytest.mark.parametrize(
    "text",
    [
        b"ID,Caption\na,heart\nb,lung\n",
        b"\xef\xbb\xbfID,Caption\na,heart\nb,lung\n",
        b"ID,Caption\r\na,heart\r\nb,lung\r\n",
        b'"ID","Caption"\n"a","heart"\n"b","lung"',
        b"\n ID , Caption \n\na,heart\n\nb,lung\n\n",
        b"Caption,other,ID\nheart,x,a\nlung,y,b\n",
        b"id,caption\na,heart\nb,lung\n",
        b"ID,Caption\na.jpg,heart\n b.JPG ,lung\n",
        b"ID\tCaption\na\theart\nb\tlung\n",
    ],
    ids=[
        *("plain", "BOM", "CRLF", "quoted", "blanks", "other columns", "lower case", "extensions"),
        "tabs",
    ],
)
def test_tables_as_people_have_them(table: Table, text: bytes) -> None:
    found = records(table(text, ("a.jpg", "b.JPG")))
    assert [(each.id, each.caption) for each in found if isinstance(each, Pair)] == [
        ("a", "heart"),
        ("b", "lung"),
    ]


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


REJECTS = {
    "no caption": ("a,", "caption empty"),
    "blanks for a caption": ("a, \u00a0 ", "caption empty"),
    "nothing to see for a caption": ("a,\u200b\ufeff", "caption empty"),
    "no image": ("b,lung", "image missing"),
    "a folder up": ("../a,heart", "unsafe id"),
    "an absolute path": ("/etc/passwd,heart", "unsafe id"),
    "a backslash": ("..\\a,heart", "unsafe id"),
    "a folder up on the way": ("a/../../b,heart", "unsafe id"),
    "a blank step": ("a//b,heart", "unsafe id"),
    "dots alone": ("...,heart", "unsafe id"),
    "an extension twice": ("a.jpg.jpg,heart", "image missing"),
    "a newline": ('"a\nb",heart', "unsafe id"),
    "a control character": ("a\x07,heart", "unsafe id"),
    "an unseen character": ("a\u200b,heart", "unsafe id"),
    "no id": (",heart", "unsafe id"),
    "an extension alone": (".jpg,heart", "unsafe id"),
    "an endless id": ("a" * 999 + ",heart", "image missing"),
    "a comma too many": ("a,heart, enlarged", "malformed row"),
    "a field too few": ("a", "malformed row"),
}


@pytest.mark.parametrize("name", REJECTS)
def test_rejects(table: Table, name: str) -> None:
    row, reason = REJECTS[name]
    first, reject = records(table(f"ID,Caption\ngood,one\n{row}\n", ("a.jpg", "good.jpg")))
    assert isinstance(first, Pair)
    assert isinstance(reject, Reject)
    assert (reject.split, reject.reason) == ("train", reason)
    assert "line 3" in reject.detail


def test_an_id_with_half_a_surrogate_pair_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text(r'{"image": "\udce9.jpg", "text": "heart"}' + "\n")
    source = open_table(tmp_path / "table.jsonl", image_column="image", caption_column="text")
    [reject] = source.records("train")
    assert isinstance(reject, Reject)
    assert (reject.id, reject.reason) == (r"\udce9.jpg", "malformed row")


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


WRONG_TABLES = {
    "no column": (b"ID,Text\na,heart\n", r"train_captions.csv: no column 'Caption'.*'ID', 'Text'"),
    "semicolons": (b"ID;Caption\na;heart\n", r"no column 'ID'.*'ID;Caption'"),
    "empty": (b"", "train_captions.csv: empty"),
    "a header alone": (b"ID,Caption\n", "no rows"),
    "Latin-1": ("ID,Caption\na,heart\nb,œdème\n".encode("cp1252"), r"line 3 .*0x9c is not UTF-8"),
    "Latin-1 after a caption of two lines": (
        'ID,Caption\na,"two\nlines"\nb,è\n'.encode("latin-1"),
        r"line 4 \('b'\)",
    ),
    "UTF-16": ("ID,Caption\na,heart\n".encode("utf-16"), r"train_captions.csv: is UTF-16; save"),
    "UTF-16 without a mark": ("ID,Caption\na,x\n".encode("utf-16-be"), "NUL bytes: UTF-16 without"),
    "an open quote": (b'ID,Caption\na,heart\nb,"lung\nc,brain\n', "line 3: not CSV"),
    "an open quote, and a huge rest": (b'ID,Caption\na,"lung\n' + b"b,x\n" * 50000, "line 2: not"),
    "text after a quote": (b'ID,Caption\na,"heart" of a child\n', "line 2: not CSV"),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_a_broken_table_is_an_error_before_any_work(table: Table, name: str) -> None:
    data, message = WRONG_TABLES[name]
    source = open_source(table(data, ("a.jpg",)), ["train"])
    with pytest.raises(InputError, match=message):
        source.count("train")


def test_a_broken_concept_table_is_found_as_early(table: Table) -> None:
    folder = table("ID,Caption\na,one\n", ("a.jpg",), concepts="ID,CUIs\na,C1,C2\n")
    with pytest.raises(InputError, match=r"train_concepts.csv: line 2: 3 fields"):
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
