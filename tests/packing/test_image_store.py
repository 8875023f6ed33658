"""What lies in files, zips and tables is read up to a bound."""

import os
import struct
import zipfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medclip_oc.errors import InputError
from medclip_oc.packing import image_store, table_files
from medclip_oc.packing.formats import open_source
from tests.support.tiny_dataset import jpeg

ENDINGS = (".jpe", ".jfif", ".JPG", ".Png", ".pgm", ".bmp", ".webp", ".dicom", ".DCM", ".ima", "")
LOOKED_UP = [  # what is asked for, what there is, what is found
    *(("IM.1", [f"IM.1{ending}", "IM.1.txt", "IM.json"], f"IM.1{ending}") for ending in ENDINGS),
    ("a.jpg", ["a.png", "A.jpg"], "a.png"),
    ("a.jpg", ["a.png", "a.dcm", "A.jpg"], "'a.jpg' may be a.dcm, a.png; name one"),
    ("a", ["a.JPG", "a.jpg"], "'a' may be a.JPG, a.jpg; name one"),
    ("a.png", ["a.jpg", "a.png"], "a.png"),
    ("A", ["a.jpeg", "b.jpg"], "a.jpeg"),
    ("aB", ["ab.jpg", "AB.jpg"], "'aB' may be AB.jpg, ab.jpg; name one"),
    ("\u00e9", ["e\u0301.jpg"], "e\u0301.jpg"),
    ("s1/x", ["s1/X.Dcm", "x.jpg"], "X.Dcm"),
    ("s2/x", ["s1/x.jpg", "y.jpg"], None),
]


@pytest.mark.parametrize(("name", "there", "expected"), LOOKED_UP)
def test_finds_one_image_by_name(
    tmp_path: Path, name: str, there: list[str], expected: str | None
) -> None:
    for each in there:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_bytes(each.encode())
    stores = [image_store.Folder(tmp_path)]
    if "/" not in name:  # an old zip of Windows
        with zipfile.ZipFile(tmp_path / "z", "w") as archive:
            for each in there:
                archive.writestr(f"train\\{each}", each)
        stores.append(image_store.Archive(tmp_path / "z"))
    for store in stores:
        if "name one" in (expected or ""):
            with pytest.raises(InputError, match=expected):
                store.find(name)
            continue
        image = store.find(name)
        assert (image and image.name) == expected
        assert not image or image.read().decode().endswith(image.name)


def test_what_is_too_large_unpacked_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of a zip (also one that says that it is smaller), a file, a cell of Parquet; nor is
    a pipe, which would never end."""
    monkeypatch.setattr(image_store, "MAX_BYTES", 5000)
    monkeypatch.setattr(table_files, "MAX_BYTES", 5000)
    path = tmp_path / "test_images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("large", bytes(5001)), ("liar", bytes(5002)), ("sound", jpeg(1))):
            archive.writestr(f"{name}.jpg", data)
    lie = path.read_bytes().replace(struct.pack("<I", 5002), struct.pack("<I", 9))
    path.write_bytes(lie)
    (tmp_path / "file.jpg").write_bytes(bytes(5001))
    os.mkfifo(tmp_path / "pipe.jpg")
    found = image_store.Archive(path)
    assert found.find("sound").read() == jpeg(1)
    for read, message in (
        (found.find("large").read, "5,001 bytes, of an image at most 5,000 are read"),
        (partial(image_store.read_file, str(tmp_path / "file.jpg")), "5,001 bytes"),
        (found.find("liar").read, "Bad CRC"),
        (partial(image_store.read_file, str(tmp_path / "pipe.jpg")), "no regular file"),
    ):
        with pytest.raises(OSError, match=message):
            read()
    for size in (20, 5001):
        table = {"image_id": list("abc"), "image": [bytes(size)] * 3, "caption": ["x"] * 3}
        pq.write_table(pa.table(table), tmp_path / "test.parquet", row_group_size=2)
        source = open_source(tmp_path / "test.parquet")
        if size == 20:
            assert source.count("test") == 3
        else:
            with pytest.raises(InputError, match=r"rows of 5,\d+ bytes; at most 5,000 are read"):
                source.count("test")
