"""How the rows of a table of labels find their images."""

from pathlib import Path

import numpy as np
import pytest

from medclip_oc.errors import InputError
from medclip_oc.inference.image_inputs import ImageSet
from medclip_oc.inference.labels import Labels

IMAGES = ImageSet([Path("/data/well/0.png"), Path("/data/sick/0.png"), Path("/data/sick/1.jpg")])
FOUND = {  # rows of image and label -> which of IMAGES has which label
    "by path": ("/data/well/0.png,a\n/data/sick/0.png,b\n", {0: "a", 1: "b"}),
    "by its end": ("well/0.png,a\n./sick/0.png,b\nsick\\1.jpg,a\n", {0: "a", 1: "b", 2: "a"}),
    "by its end, without extension": ("well/0,a\nsick/1,b\n", {0: "a", 2: "b"}),
    "by file name": ("1.jpg,b\n", {2: "b"}),
    "the longest": ("0.png,a\nwell/0.png,a\nsick/0.png,b\n", {0: "a", 1: "b"}),
    "not another folder's": ("well/0.png,a\nwell/1.jpg,b\n", {0: "a"}),
    "folders of another place": ("/home/x/1.jpg,b\n/home/x/7.jpg,a\n", {2: "b"}),
    "files of another kind": ("../scans/1.dcm,b\n", {2: "b"}),
    "by paths of another place, each name once": ("x/0.png,a\ny/1.png,b\n", {2: "b"}),
}
REFUSED = {
    "0.png,a\n": "0.png is the end of '/data/well/0.png' and '/data/sick/0.png': write more of it",
    "x/0.png,a\n": "an image of --images: 'x/0.png', '/data/well/0.png'; write paths or file names",
    "well/0.png,a\nwell\\0.png,b\n": "well/0.png has another label before",
}


def labels_of(rows: str, folder: Path) -> dict[int, str]:
    (folder / "labels.csv").write_text("filename,label\n" + rows)
    labels = Labels(str(folder / "labels.csv"), ["a", "b"], IMAGES)
    labels.add([0, 1, 2], np.arange(3))
    assert labels.missing == 3 - len(labels._rows)
    assert labels.unused == rows.count("\n") - len(labels._rows)
    return {int(place): "ab"[label] for label, place in labels._rows}


@pytest.mark.parametrize("name", FOUND)
def test_rows_find_their_images(name: str, tmp_path: Path) -> None:
    rows, found = FOUND[name]
    assert labels_of(rows, tmp_path) == found


@pytest.mark.parametrize("rows", REFUSED)
def test_rows_that_find_none_or_two(rows: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        labels_of(rows, tmp_path)
    assert REFUSED[rows] in str(refused.value)
