"""Arrays in one file: written in pieces, whole or not at all, and never trusted if damaged."""

from pathlib import Path

import numpy as np
import pytest

from medclip_oc.data.array_file import ArrayWriter, open_arrays


def write(path: Path) -> dict[str, np.ndarray]:
    rows = np.arange(30_000, dtype=np.int64).reshape(-1, 3)
    codes = np.arange(7, dtype=np.int8)
    with ArrayWriter(path, ("rows", "none", "codes")) as writer:
        for part in np.array_split(rows, 7):
            writer.append("rows", part)
        writer.append("none", np.empty((0, 2), dtype=np.float32))
        writer.append("codes", codes)
        writer.finish({"who": "é", "list": [1, 2]})
    return {"rows": rows, "none": np.empty((0, 2), dtype=np.float32), "codes": codes}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    wanted = write(tmp_path / "a")
    found = open_arrays(tmp_path / "a")
    assert found is not None
    facts, arrays = found
    assert facts == {"who": "é", "list": [1, 2]}
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["absent", "cut", "longer", "empty", "text", "other format"])
def test_a_damaged_file_is_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a"
    write(path)
    content = path.read_bytes()
    changed = {
        "cut": content[:-1],
        "longer": content + b"x",
        "empty": b"",
        "text": b"hello\n" * 1000,
        "other format": content.replace(b'"format": 1', b'"format": 2', 1),
    }
    path.unlink()
    if damage != "absent":
        path.write_bytes(changed[damage])
    assert open_arrays(path) is None


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    wanted = write(tmp_path / "a")
    with ArrayWriter(tmp_path / "a", ("rows",)) as writer:
        writer.append("rows", np.zeros(3))
    found = open_arrays(tmp_path / "a")
    assert found is not None
    assert np.array_equal(found[1]["rows"], wanted["rows"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
