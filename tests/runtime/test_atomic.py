import os
from pathlib import Path

import pytest

from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime.atomic import atomic_file, atomic_folder


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_at_the_end(tmp_path: Path, durable: bool, shared: bool) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")
    with pytest.raises(KeyError), atomic_file(file, durable=durable, shared=shared) as partial:
        partial.write_text({}["after"])
    with atomic_file(file, durable=durable, shared=shared) as partial:
        assert partial.name.endswith(".partial")
        partial.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


def test_what_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    def write(file: Path) -> None:
        with atomic_file(file, durable=True) as partial:
            partial.write_text("x")

    with pytest.raises(WorkError, match=r"gone/a\.txt: can't be written \(No such file"):
        write(tmp_path / "gone" / "a.txt")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"a\.txt: can't be written \(No space left on device\)"):
        write(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), atomic_file(tmp_path / "a"):
        (tmp_path / "source").read_bytes()


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    (tmp_path / "new" / "out.partial" / "old").mkdir(parents=True)  # of a run that was killed
    with atomic_folder(folder) as partial:
        (partial / "a.txt").write_text("one")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["a.txt"]
    with pytest.raises(InputError, match="out: is there already"), atomic_folder(folder):
        pass
    with pytest.raises(KeyError), atomic_folder(folder, replace=True) as partial:
        raise KeyError
    assert (folder / "a.txt").read_text() == "one"
    with atomic_folder(folder, replace=True) as partial:
        (partial / "b.txt").write_text("two")
    assert [file.name for file in folder.iterdir()] == ["b.txt"]
    assert list((tmp_path / "new").iterdir()) == [folder]
