"""Reading shards: packed by us or by another tool, named in any way, from any process."""

import csv
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.data import index as shard_index
from medclip_oc.data import shards
from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.errors import InputError, ShardChanged, WorkError
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.tiny_dataset import write_kaggle, write_pairs, write_tar


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder: 7 training pairs in 3 tars, 2 validation pairs in one."""
    folder = tmp_path_factory.mktemp("made")
    write_kaggle(folder / "source", {"train": 7, "valid": 2})
    source = open_source(folder / "source", ["train", "valid"])
    pack(source, folder / "shards", PackOptions(samples_per_shard=3))
    return folder / "shards"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to damage."""
    ignore = shutil.ignore_patterns(".*")  # the arrays, which another test may have left
    return Path(shutil.copytree(made, tmp_path / "shards", ignore=ignore))


def samples(shard_set: ShardSet) -> list[Sample]:
    return [shard_set.read(position) for position in range(len(shard_set))]


def test_reads_a_folder_by_its_index(made: Path) -> None:
    shard_set = ShardSet.open(str(made), "train")
    assert len(shard_set) == 7
    source = made.parent / "source"
    with (source / "train_captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["ID"], row["Caption"]) for row in csv.DictReader(file)]
    for position, sample in enumerate(samples(shard_set)):
        name = f"train_{position:04}"
        image = (source / "train_images" / "train" / f"{name}.jpg").read_bytes()
        assert (sample.key, sample.image, sample.extension) == (name, image, "jpg")
        assert (sample.key, sample.caption) == rows[position]
        assert (sample.facts["id"], sample.facts["split"]) == (name, "train")
        assert shard_set.locate(position) == f"train-{position // 3:06}.tar: {name}"
    assert len(ShardSet.open(str(made), "valid")) == 2


@pytest.mark.parametrize("position", [-1, 7])
def test_positions_end(made: Path, position: int) -> None:
    shard_set = ShardSet.open(str(made), "train")
    for read in (shard_set.read, shard_set.locate):
        with pytest.raises(IndexError):
            read(position)


def test_named_in_any_way_or_without_an_index_the_pairs_are_the_same(
    made: Path, folder: Path
) -> None:
    whole = ShardSet.open(str(made), "train")
    for where in (
        f"{made}/train-{{000000..000002}}.tar",
        f"{made}/train-*.tar",
        [f"{made}/train-000000.tar", f"{made}/train-00000[12].tar"],
    ):
        named = ShardSet.open(where, "valid")  # shards named one by one are all taken
        assert samples(named) == samples(whole)
        assert named.fingerprint == whole.fingerprint
    (folder / "index.json").unlink()
    scanned = ShardSet.open(f"{folder}/train-*.tar", "train")
    assert samples(scanned) == samples(whole)
    assert scanned.skipped == 0


def test_fingerprint_tells_data_apart(made: Path, tmp_path: Path) -> None:
    prints = {ShardSet.open(str(made), split).fingerprint for split in ("train", "valid")}
    prints.add(ShardSet.open(f"{made}/train-000000.tar", "train").fingerprint)
    for name, image in (("a", b"longer"), ("b", b"longer"), ("a", b"short")):
        tar = write_tar(tmp_path / "a.tar", {f"{name}.jpg": image, f"{name}.txt": b""})
        prints.add(ShardSet.open(str(tar), "train").fingerprint)
    assert len(prints) == 6


def test_tars_of_other_tools(tmp_path: Path) -> None:
    """Any order within a pair, long names, folders, strays."""
    long = "deep/" * 30 + "é" * 60
    path = write_tar(
        tmp_path / "other.tar",
        {
            "README": b"no pair",
            "b.txt": b"second",
            "b.seg.png": b"a mask",
            "b.JPEG": b"image b",
            f"{long}.webp": b"image long",
            f"{long}.json": b'{"id": 1}',
            f"{long}.txt": b"long",
            "alone.jpg": b"no caption",
            "silent.txt": b"no image",
        },
    )
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("b.jpg"))  # a key again, later: another pair, as in webdataset
    shard_set = ShardSet.open(str(path), "train")
    assert samples(shard_set) == [
        Sample("b", b"image b", "jpeg", "second", {}),
        Sample(long, b"image long", "webp", "long", {"id": 1}),
    ]
    assert shard_set.skipped == 3


def edit_index(folder: Path, edit: Callable[[str], str]) -> None:
    index = folder / "index.json"
    index.write_text(edit(index.read_text()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), r"shards: no index.json"),
        (lambda f: edit_index(f, lambda text: text.rstrip()[:-1]), r"index.json: damaged"),
        (lambda f: edit_index(f, lambda _: "[]"), r"index.json: damaged"),
        (
            lambda f: edit_index(f, lambda _: '{"version": 9}'),
            r"index.json: version 9, .* 1; pack it again$",
        ),
        (
            lambda f: edit_index(f, lambda t: t.replace('"samples": 3', '"samples": 4', 1)),
            "damaged",
        ),
        (lambda f: (f / "train-000001.tar").unlink(), r"000001.tar: shard missing, and index.json"),
        (lambda f: os.truncate(f / "train-000001.tar", 3000), r"001.tar: 3000 bytes, index.json"),
    ],
)
def test_a_damaged_folder_is_an_error_on_opening(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        ShardSet.open(str(folder), "train")


def test_what_is_not_there_is_named(made: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", {"README": b"no pair"})
    (tmp_path / "text.tar").write_text("no tar")
    tarfile.open(tmp_path / "packed.tar", "w:gz").close()
    for where, message in {
        f"{tmp_path}/nowhere": "nowhere: no such shard folder",
        f"{tmp_path}/no.tar": "no.tar: no such shard",
        f"{tmp_path}/none-*.tar": "no file matches",
        f"{made}/train-{{000000..000004}}.tar": r"train-000003.tar: no such .*, from ",
        f"{made}/train-{{000000..2.tar": "no such|nbalanced|no file",
        f"{tmp_path}/empty.tar": "no readable pair",
        f"{tmp_path}/text.tar": "text.tar: not a readable, uncompressed tar",
        f"{tmp_path}/packed.tar": "packed.tar: not a readable, uncompressed tar",
        f"{made}::{tmp_path}/nowhere": "nowhere: no such shard folder",
        f"{made}::": "no set on one side of ::",
    }.items():
        with pytest.raises(InputError, match=message):
            ShardSet.open(where, "train")
    with pytest.raises(InputError, match="no split 'test'; splits there: train, valid"):
        ShardSet.open(str(made), "test")
    with pytest.raises(InputError, match="no readable pair"):
        ShardSet.open([], "train")


def test_a_member_twice_or_a_tar_cut_between_members_is_an_error(tmp_path: Path) -> None:
    members = {f"{name}.{end}": b"x" * 600 for name in "abc" for end in ("jpg", "txt")}
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("c.jpg"))
    with pytest.raises(InputError, match=r"a.tar: c.jpg: duplicate file name$"):
        ShardSet.open(str(path), "train")
    os.truncate(path, 4 * (512 + 1024))  # a and b in full
    with pytest.raises(InputError, match=r"a.tar: not a readable, .*: cut; a tar ends with zeros"):
        ShardSet.open(str(path), "train")


def test_ids_are_unique_where_keys_are_not(tmp_path: Path) -> None:
    pair = {"x.jpg": b"1", "x.txt": b"text", "x.json": b'{"n": 1}'}
    first, second = write_tar(tmp_path / "a.tar", pair), tmp_path / "b.tar"
    write_tar(second, {**pair, "y.jpg": b"", "y.txt": b""})
    both = ShardSet.open(f"{tmp_path}/[ab].tar", "train")
    assert both.ids() == ["a/x", "b/x", "y"]
    assert [both.facts(n) for n in range(3)] == [{"n": 1}, {"n": 1}, {}]
    assert ShardSet.open(f"{first}::{first}", "train").ids() == ["a/x#0", "a/x#1"]
    assert ShardSet.open(str(first), "train").ids() == ["x"]


def test_a_shard_that_changed_meanwhile_is_named(folder: Path) -> None:
    shard_set = ShardSet.open(str(folder), "train")
    os.truncate(folder / "train-000001.tar", 3000)
    (folder / "train-000002.tar").unlink()
    assert shard_set.read(2).key == "train_0002"
    with pytest.raises(ShardChanged, match=r"train-000001.tar: train_0005: the shard ends before"):
        shard_set.read(5)
    with pytest.raises(ShardChanged, match=r"train-000002.tar: No such file"):
        shard_set.read(6)
    with pytest.raises(ShardChanged, match=r"train-000001.tar: 3000 bytes, index.json says \d+"):
        shard_set.check()


def test_captions_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": b"1", "a.txt": b"\xff\xfe", "b.jpg": b""})
    with pytest.raises(InputError, match=r"a.tar: a: caption unreadable"):
        ShardSet.open(str(path), "train").read(0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(made: Path, method: str) -> None:
    shard_set = ShardSet.open(str(made), "train")
    expected = samples(shard_set)  # the files are open now
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(shard_set.read, range(7)) == expected
        pool.close()
        pool.join()
    assert samples(pickle.loads(pickle.dumps(shard_set))) == expected


def test_open_files_stay_few_are_shared_by_threads_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_TARS", 3)
    names = [str(write_pairs(tmp_path / f"{n}.tar", range(n, n + 1))) for n in range(8)]
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    shard_set = ShardSet.open(names, "train")
    expected = samples(shard_set)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(shard_set.read, [*range(8)] * 20)) == expected * 20
    assert len(list(descriptors.iterdir())) == before + 3 + 2  # the mapped arrays
    del shard_set
    assert len(list(descriptors.iterdir())) == before


# ------------------------------------------------------------------------------ the arrays


def arrays(folder: Path) -> int:
    """Index files in the folder."""
    return len(list(folder.rglob("*.npy")))


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Names of what this function of the index's module is called with from now on."""
    names: list[str] = []
    real = getattr(shard_index, name)
    monkeypatch.setattr(shard_index, name, lambda path: (names.append(path.name), real(path))[1])
    return names


def test_foreign_tars_are_walked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = recorded(monkeypatch, "scan")
    names = [f"{n:02}.tar" for n in range(20)]
    for n, name in enumerate(names):
        write_pairs(tmp_path / name, range(n, n + 2))
    keys = [f"pair{k}" for n in range(20) for k in (n, n + 1)]
    for _ in range(2):
        assert [s.key for s in samples(ShardSet.open(f"{tmp_path}/*.tar", "train"))] == keys
        assert sorted(walked) == names
    write_pairs(tmp_path / names[3], range(70, 75))
    assert len(ShardSet.open(f"{tmp_path}/*.tar", "train")) == 43


def test_an_index_is_read_once_and_again_when_it_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = recorded(monkeypatch, "_read_index")
    first = ShardSet.open(str(folder), "train")
    assert samples(ShardSet.open(str(folder), "train")) == samples(first)
    assert (arrays(folder), len(read)) == (2, 1)
    for array in folder.glob(".index-train-*"):
        content = array.read_bytes()[:-1]  # cut
        array.unlink()  # `first` still maps it
        array.write_bytes(content)
        assert samples(ShardSet.open(str(folder), "train")) == samples(first)
    assert len(read) == 3
    index = json.loads((folder / "index.json").read_text())
    del index["shards"][0]
    (folder / "index.json").write_text(json.dumps(index))
    assert len(ShardSet.open(str(folder), "train")) == 4
    assert len(read) == 4


def test_where_the_shards_cannot_be_written_the_cache_folder_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = shard_index.atomic_file
    read_only = [folder]

    def refuse(path: Path, *, shared: bool) -> Any:
        if path.parent in read_only:  # the tests may run as root, who may write anywhere
            raise WorkError(f"{path}: can't be written")
        return real(path, shared=shared)

    monkeypatch.setattr(shard_index, "atomic_file", refuse)
    first = ShardSet.open(str(folder), "train")
    assert (arrays(folder), arrays(tmp_path / "cache" / "medclip_oc")) == (0, 2)
    walked = recorded(monkeypatch, "scan")
    assert samples(ShardSet.open(str(folder), "train")) == samples(first)
    assert len(ShardSet.open(f"{folder}/train-*.tar", "train")) == 7
    assert arrays(tmp_path / "cache" / "medclip_oc") == 4
    assert walked == [], "index.json serves tars named one by one, too"
    read_only.append(tmp_path / "cache" / "medclip_oc")
    with pytest.raises(InputError, match=r"can't be written in .*; set XDG_CACHE_HOME"):
        ShardSet.open(str(folder), "valid")


def test_sets_can_be_joined(made: Path, tmp_path: Path) -> None:
    foreign = write_pairs(tmp_path / "foreign.tar", range(3))
    joined = ShardSet.open(f"{made}::{foreign}::{made}/valid-*.tar", "train")
    assert joined.sizes == [7, 3, 2]
    parts = [ShardSet.open(where, "train") for where in (str(made), str(foreign))]
    parts.append(ShardSet.open(str(made), "valid"))
    assert samples(joined) == [sample for part in parts for sample in samples(part)]
    assert joined.locate(8) == "foreign.tar: pair1"
    with pytest.raises(IndexError):
        joined.read(12)


def test_an_index_of_many_pairs_is_opened_without_being_read(tmp_path: Path) -> None:
    """150,000 pairs here."""
    per, entries = 2_000, []
    for shard in range(75):
        entry = dict.fromkeys(shard_index.ENTRY, "0") | {"split": "train", "samples": per}
        entry |= {"name": f"train-{shard:06}.tar", "bytes": 1 << 20, "extensions": ["jpg"] * per}
        entry["keys"] = [f"k{shard * per + n}" for n in range(per)]
        entry["members"] = [[n, 1, n + 1, 1, n + 2, 1] for n in range(per)]
        entries.append(entry)
        (tmp_path / entry["name"]).touch()
        os.truncate(tmp_path / entry["name"], 1 << 20)  # takes no room
    (tmp_path / "index.json").write_text(json.dumps({"version": 1, "shards": entries}))
    opened = ShardSet.open(str(tmp_path), "train")
    assert opened._indexes[0].pairs["shard"].nbytes == 4 * per * 75
    tracemalloc.start()
    again = ShardSet.open(str(tmp_path), "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "mapped, not read"
    for shard_set in (opened, again):
        assert len(shard_set) == per * 75
        assert shard_set.locate(123_456) == "train-000061.tar: k123456"
