"""Tables of labels: what they say, how their rows find images, and every mistake in a line."""

from pathlib import Path

import numpy as np
import pytest

from medclip_oc.errors import InputError
from medclip_oc.inference import labels
from medclip_oc.inference.prompt_sets import PromptClass

PNEUMONIA = PromptClass("Pneumonia", ())
TWO = [
    PromptClass("Edema", (), aliases=("edema",)),
    PromptClass("Lung Mass", (), aliases=("mass",)),
]
CLASSES = [TWO[0], PNEUMONIA, TWO[1]]
U = -1
FORMS = {  # a table of 0.png and 1.png -> their rows
    "names": ("image,label\n0.png,Edema | lung mass\n1.png,No Finding\n", [[1, 0, 1], [0, 0, 0]]),
    "NIH": ("image index,Finding Labels\n0.png,MASS|edema\n1.png,NONE\n", [[1, 0, 1], [0] * 3]),
    "columns": ("id,Edema,Mass,x\n0.png,1,,7\n1.png,-1.0,0.0,\n", [[1, U, U], [U, U, 0]]),
    "bool": ("id,PNEUMONIA\n./0.png,True\n0.png,1\n1.png,False\n", [[U, 1, U], [U, 0, U]]),
}  # fmt: skip


def read(folder: Path, text: str, *how: object) -> labels.LabelTable:
    (folder / "labels.csv").write_text(text)
    return labels.read("--labels", str(folder / "labels.csv"), *how)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    text, rows = FORMS[form]
    table = read(tmp_path, text, CLASSES)
    assert [*table.truth] == ["Edema", "Pneumonia", "Lung Mass"]
    assert [*table.truth.index] == ["0.png", "1.png"]
    assert np.array_equal(table.truth, rows)


def test_what_is_uncertain(tmp_path: Path) -> None:
    for policy, value in {"ones": 1, "zeros": 0, "ignore": -1}.items():
        table = read(tmp_path, "id,Edema\n0,-1\n1,\n", TWO[:1], policy)
        assert table.truth["Edema"].to_list() == [value, -1]
    read(tmp_path, "id,Edema,Mass\n0,1,\n1,-1,1\n", TWO).check_single()  # the one true class counts


def test_a_table_names_the_classes_itself(tmp_path: Path) -> None:
    table = read(tmp_path, "id,class\n0,b\n1,a\n2,c|a\n", None)
    assert [*table.truth] == ["a", "b", "c"]
    assert table.truth.loc["2"].to_list() == [1, 0, 1]
    assert [*read(tmp_path, "id,class\n0,b\n1,a\n2,A\n", None).truth] == ["A", "b"]
    with pytest.raises(InputError, match="some candidates differ in capitals alone"):
        read(tmp_path, "id,class\n0,ct\n", [PromptClass("CT", ()), PromptClass("Ct", ())])
    table = read(tmp_path, "id,b,split,a\n0,1,train,0\n1,0,test,1\n", None)
    assert [*table.truth] == ["b", "a"]
    assert table.truth.to_numpy().tolist() == [[1, 0], [0, 1]]
    with pytest.raises(InputError, match="1,001 different labels: a col"):
        read(tmp_path, "id,findings\n" + "".join(f"{n},text {n}\n" for n in range(1001)), None)


REFUSED = {
    "id,Edema,Mass\n0,0,-1\n": "labels.csv: 0: true are none; one class is wanted",
    "id,label\n0,Edema|No Finding\n": "line 2: 'No Finding' beside a class",
    "id,Edema,Mass\n0,1,1\n": "0: true are ['Edema', 'Lung Mass']; one class is wanted",
    "id,Edema,Mass\n0,0,0\n": "0: true are none; one class is wanted",
    "id,label\n0,Edema|Mass\n": "0: true are ['Edema', 'Lung Mass']; one class is wanted",
    "id,label\n0,Edema\n1,Edma\n": "line 3: 'Edma' is no candidate; the nearest are Edema",
    "id,label\n0,gout\n": "line 2: 'gout' is no candidate; the nearest are Edema, Lung Mass",
    "id,label\n0,Edema|\n": "line 2: '' is no candidate; the nearest are Edema, Lung Mass",
    "id,label\n0,\n": "line 2: no text in label",
    "id,label\n,Edema\n": "line 2: no text in id",
    "id,label\n": "labels.csv: no rows",
    "id,Edema\n0,yes\n": "line 2: Edema: 'yes': wanted is 0, 1, -1 (uncertain) or nothing (unknow",
    "id,Edema\n0,0\n1,2\n": "line 3: Edema: '2': wanted is 0, 1, -1 (uncertain) or nothing",
    "id,Edema,Mass\n0,1\n": "line 2: 2 fields, the header has 3",
    "id,Edema,Edema\n0,1,1\n": "several columns of one class: Edema",
    "id,Mass,lung mass\n0,1,1\n": "several columns of one class: Mass, lung mass",
    "id,Edema,label\n0,1,Edema\n": "has id, Edema, label; wanted are columns of images (im",
    "id,gout\n0,1\n": "and either of labels or of each class",
    "x,Edema\n0,1\n": "has x, Edema; wanted are columns of images",
    "id,label\na/0,Edema\na\\0,Mass\n": "line 3: a/0 has another label before",
    "id,Edema\n0,1\n0,0\n": "line 3: 0 has another label before",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_tables(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, text, TWO).check_single()
    assert REFUSED[text] in str(refused.value)
    assert f"--labels: {tmp_path / 'labels.csv'}: " in str(refused.value)


IMAGES = ["/data/well/0.png", "/data/sick/0.png", "/data/sick/1.jpg"]
FOUND = {  # rows -> which of IMAGES each names
    "by path": (["/data/well/0.png", "/data/sick/0.png"], [0, 1]),
    "by its end": (["well/0.png", "sick/0.png", "sick/1.jpg"], [0, 1, 2]),
    "by its end, without extension": (["well/0", "sick/1"], [0, 2]),
    "by file name": (["1.jpg"], [2]),
    "the longest": (["0.png", "well/0.png", "sick/0.png"], [None, 0, 1]),
    "not another folder's": (["well/0.png", "well/1.jpg"], [0, None]),
    "folders of another place": (["/home/x/1.jpg", "/home/x/7.jpg"], [2, None]),
    "files of another kind": (["../scans/1.dcm"], [2]),
    "by paths of another place, each name once": (["x/0.png", "y/1.png"], [None, 2]),
}


@pytest.mark.parametrize("name", FOUND)
def test_rows_find_their_images(name: str) -> None:
    rows, images = FOUND[name]
    found = {n: row for row, n in zip(rows, images, strict=True) if n is not None}
    assert labels.match("--labels", rows, IMAGES) == found


BOTH = "0.png is the end of '/data/well/0.png' and '/data/sick/0.png': write more of it"
NONE = "one of the images: 'x/0.png', '/data/well/0.png'; write paths or file names"


@pytest.mark.parametrize(("row", "line"), [("0.png", BOTH), ("x/0.png", NONE)])
def test_rows_that_find_none_or_two(row: str, line: str) -> None:
    with pytest.raises(InputError) as refused:
        labels.match("--labels", [row], IMAGES)
    assert line in str(refused.value)
