"""Reading shards: packed by us or by another tool, named in any way, from any process."""

import csv
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medclip_oc.data import index, shards
from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.errors import InputError, ShardChanged, WorkError
from tests.support.fault_injection import HARD_LINKS, ODD_TARS, pair, read_odd_tar, tar_of
from tests.support.tiny_dataset import (
    OTHER_SAMPLES,
    OTHER_TOOLS,
    write_pairs,
    write_shards,
    write_tar,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder: 7 training pairs in 3 tars, 2 validation pairs in one."""
    folder = tmp_path_factory.mktemp("made")
    return write_shards(folder, {"train": 7, "valid": 2}, samples_per_shard=3)


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
    (folder / "valid-000000.tar").unlink()  # as of a partial download
    assert samples(ShardSet.open(f"{folder}/train-00000{{0..2}}.tar", "train")) == samples(whole)
    (folder / "index.json").unlink()
    scanned = ShardSet.open(f"{folder}/train-*.tar", "train")
    assert samples(scanned) == samples(whole)


def test_fingerprint_tells_data_apart(made: Path, tmp_path: Path) -> None:
    prints = {ShardSet.open(str(made), split).fingerprint for split in ("train", "valid")}
    prints.add(ShardSet.open(f"{made}/train-000000.tar", "train").fingerprint)
    for name, image in (("a", b"longer"), ("b", b"longer"), ("a", b"short")):
        tar = write_tar(tmp_path / "a.tar", {f"{name}.jpg": image, f"{name}.txt": b"x"})
        prints.add(ShardSet.open(str(tar), "train").fingerprint)
    assert len(prints) == 6


def test_tars_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any order within a pair, long names, folders, strays."""
    path = write_tar(tmp_path / "other.tar", OTHER_TOOLS)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("b.jpg"))  # a key again, later: another pair, as in webdataset
    shard_set = ShardSet.open(str(path), "train")
    assert samples(shard_set) == OTHER_SAMPLES
    hint = "tar --sort=name brings the members of a pair together"
    line = f"{path}: 3 entries passed over: no image, or no caption beside it; {hint}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ODD_TARS)
def test_odd_tars(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(path: Path) -> tuple[list[Sample], str]:
        walked, kept = (samples(ShardSet.open(str(path), "train")) for _ in range(2))
        assert walked == kept
        first, second = (capsys.readouterr().err * 2).splitlines()[:2] or ("", "")
        assert first == second
        return walked, first.removeprefix(f"{path}: ").partition(" passed")[0]

    read_odd_tar(name, tmp_path, read)


def test_hard_links_lead_to_what_they_link_to(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(HARD_LINKS)
    for _ in ("walked through", "by what was kept"):
        found = samples(ShardSet.open(f"{tmp_path}/a.tar", "train"))
        pairs = [(sample.key, sample.image, sample.caption) for sample in found]
        assert pairs == [(key, b"image a", f"words {key}") for key in "abc"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # an old and a new part of index.json
        (("]}", "]"), "index.json: damaged"),
        (("{", "[1] #"), "index.json: damaged"),
        (('"version": 1', '"version": 9'), "index.json: version 9, .* 1; pack it again$"),
        (('"samples": 3', '"samples": 4'), "index.json: damaged"),
        (("[[512,", "[[99999999999999999999,"), "index.json: damaged"),
        (('"bytes": ', '"bytes": 1'), r"0.tar: \d+ bytes, index.json says 1\d+; damaged"),
        (("-000001.tar", "-000009.tar"), "index.json: damaged at train-000001.tar; restore it"),
        (('"split": "train"', '"split": "valid"'), "index.json: damaged at valid-000000.tar"),
        (('"split": "train"', '"split": null'), "index.json: damaged; restore"),
        (("[[512,", "[[-512,"), "index.json: damaged at train-000000.tar"),
        (("[[512,", "[[1.5,"), "0.tar: train_0000.jpg: not where the index"),
        (('"split"', '"names": {"512": 1}, "split"'), "index.json: damaged at train-000000.tar"),
        (('"split"', '"skipped": 9, "split"'), "index.json: damaged at train-000000.tar"),
        (('["jpg", "jpg", "jpg"]', "5"), "index.json: damaged; restore"),
        (('["jpg", "jpg", "jpg"]', '["jpg", "jpg", "png"]'), "train_0002.png: not where the"),
        (('"train_0000", "train_0001"', '"train_0001", "train_0000"'), "train_0001.jpg: not where"),
        (('{"name": "train-000002.tar"', '{"x": 0}], "y": [{"name": "x"'), "index.json: damaged"),
        (('},\n{"name": "v', '}], "y": [{"name": "v'), "sizes.json: missing or damaged, or index"),
        # a command
        ("mv train-000001.tar train-000000.tar", "1.tar: No such file .*, but index.json names it"),
        ("rm train-000000.tar; mkdir train-000000.tar", "0.tar: .* bytes, index.json says"),
        ("t=train-00000; mv ${t}0.tar x; mv ${t}1.tar ${t}0.tar; mv x ${t}1.tar", "g: not where"),
        ("cp train-000000.tar train-000003.tar", "train-000003.tar: index.json doesn't name it"),
        ("echo } > sizes.json", "sizes.json: missing or damaged, or index.json is"),
        ("sed -i 's/: 3/: 4/' sizes.json", "sizes.json: .*: they differ in a shard"),
        ("rm sizes.json", "sizes.json: missing or damaged"),
        ("mv index.json unfinished.jsonl", "its packing isn't finished"),
        ("echo version https://git-lfs > index.json", "index.json: a Git LFS pointer"),
        ("echo version https://git-lfs > train-000000.tar", "0.tar: .* a Git LFS pointer"),
        ("rm valid-000000.tar", None),
    ],
)
def test_a_damaged_folder_is_one_line(
    folder: Path, damage: str | tuple[str, str], message: str | None
) -> None:
    if isinstance(damage, str):
        subprocess.run(damage, shell=True, cwd=folder, check=True)
    else:
        content = (folder / "index.json").read_text()
        assert damage[0] in content
        (folder / "index.json").write_text(content.replace(*damage, 1))
    if message is None:
        assert len(samples(ShardSet.open(str(folder), "train"))) == 7
        return
    with pytest.raises((InputError, ShardChanged), match=message):
        samples(ShardSet.open(str(folder), "train"))


def test_what_is_not_there_is_named(made: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", {"README": b"no pair"})
    (tmp_path / "text.tar").write_text("no tar")
    tarfile.open(tmp_path / "packed.tar", "w:gz").close()
    (tmp_path / "lfs.tar").write_text("version https://git-lfs.github.com/spec/v1\n")
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "val").mkdir()
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": b"image", "a.txt": b"text"})
    (tmp_path / "t.csv").write_text("image,caption")
    for where, split, message in (
        (f"{tmp_path}/nowhere", "train", "nowhere: no such shard folder"),
        (f"{tmp_path}/none-*.tar", "train", "no file matches"),
        (f"{made}/train-{{000000..000004}}.tar", "train", "train-000003.tar: no such .*, from "),
        (f"{made}/train-{{000000..2.tar", "train", "no such|nbalanced|no file"),
        (f"{tmp_path}/empty.tar", "train", "no readable pair"),
        ([], "train", "no readable pair"),
        (f"{tmp_path}/text.tar", "train", "text.tar: not a readable, uncompressed tar"),
        (f"{tmp_path}/packed.tar", "train", "packed.tar: not a readable, uncompressed .*gunzip"),
        (f"{tmp_path}/t.csv", "train", "t.csv: .* tar: .*; a source. make_shards packs it"),
        (f"{tmp_path}/val", "test", "no split 'test': .* there are: val; a glob of tars takes all"),
        (f"{tmp_path}/lfs.tar", "train", "lfs.tar: a Git LFS pointer"),
        (f"{tmp_path}/fifo.tar", "train", "fifo.tar: not a regular file"),
        (f"{made}::{tmp_path}/nowhere", "train", "nowhere: no such shard folder"),
        (f"{made}::", "train", "no set on one side of ::"),
        (str(made), "test", "no such split 'test'; there are: train, valid"),
        ("{0..999999999}.tar", "train", "stands for over 1,000,000 names"),
        (f"{'{a,b}' * 40}.tar", "train", "over 1,000,000"),
        (f"{'{' * 3000}a,b{'}' * 3000}", "train", "braces within braces"),
        (f"{'x' * 5000}.tar", "train", "no such shard folder"),
        (f"{{0..{'9' * 5000}}}", "train", "limit"),
        ("{0..9", "train", "unbalanced braces"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            ShardSet.open(where, split)
        assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert len(index.expand_braces("{a,b,c}/{00000..99999..2}.tar")) == 150_000


def test_ids_are_unique_where_keys_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"x.jpg": b"1", "x.txt": b"text", "x.json": b'{"n": 1}'}
    first, second = write_tar(tmp_path / "a.tar", members), tmp_path / "b.tar"
    write_tar(second, {**members, "y.jpg": b"", "y.txt": b"x"})
    both = ShardSet.open(f"{tmp_path}/[ab].tar", "train")
    assert both.ids() == ["a/x", "b/x", "y"]
    assert [both.facts(n) for n in range(3)] == [{"n": 1}, {"n": 1}, {}]
    assert ShardSet.open(f"{first}::{first}", "train").ids() == ["a/x#0", "a/x#1"]
    assert ShardSet.open(str(first), "train").ids() == ["x"]
    (tmp_path / "t.tar").write_bytes(tar_of(*pair("a"), *pair("b"), *pair("a")))
    assert ShardSet.open(f"{tmp_path}/t.tar", "train").ids() == ["t/a#0", "b", "t/a#2"]
    assert "t.tar: 1 pairs have an earlier one's key" in capsys.readouterr().err


def test_a_shard_that_changed_meanwhile_is_named(folder: Path) -> None:
    shard_set = ShardSet.open(str(folder), "train")
    os.truncate(folder / "train-000001.tar", 3000)
    (folder / "train-000002.tar").unlink()
    assert shard_set.read(2).key == "train_0002"
    with pytest.raises(ShardChanged, match=r"train-000001.tar: train_0005.jpg: not where"):
        shard_set.read(5)
    with pytest.raises(ShardChanged, match=r"train-000002.tar: No such file"):
        shard_set.read(6)
    for position in (-1, 7):
        with pytest.raises(IndexError):
            shard_set.read(position)


def test_other_processes_read_the_same(made: Path) -> None:
    shard_set = ShardSet.open(str(made), "train")
    expected = samples(shard_set)  # the files are open now
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(shard_set.read, range(7)) == expected
        pool.close()
        pool.join()
    assert samples(pickle.loads(pickle.dumps(shard_set))) == expected


def test_open_files_stay_few_are_shared_by_threads_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_TARS", 3)
    names = [str(write_pairs(tmp_path / f"{n}.tar", range(n, n + 1))) for n in range(8)]

    def opened() -> int:
        """Of these files alone: what other tests left open may be closed meanwhile."""
        targets = (str(file.resolve()) for file in Path("/dev/fd").iterdir())
        return sum(target in names for target in targets)

    shard_set = ShardSet.open(names, "train")
    expected = samples(shard_set)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(shard_set.read, [*range(8)] * 20)) == expected * 20
    assert opened() == 3
    del shard_set
    assert opened() == 0


def test_foreign_tars_are_walked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as what that found can be kept, is whole, and the tars are the same."""
    walked, real = list[str](), index.scan
    monkeypatch.setattr(
        index, "scan", lambda path, *how: walked.append(path.name) or real(path, *how)
    )
    for n in range(20):
        write_pairs(tmp_path / f"{n:02}.tar", range(2 * n, 2 * n + 2))

    def walks(last: int = 38) -> int:
        walked.clear()
        found = samples(ShardSet.open(f"{tmp_path}/*.tar", "train"))
        assert [s.key for s in found] == [f"pair{n}" for n in (*range(38), last, last + 1)]
        return len(walked)

    assert [walks(), walks()] == [20, 0]
    (kept,) = tmp_path.glob(".index-*.json.gz")
    for change in (lambda content: content[:-9], lambda content: content[:99] + content):
        kept.write_bytes(change(kept.read_bytes()))
        assert [walks(), walks()] == [20, 0]
    write_pairs(tmp_path / "19.tar", range(170, 172))

    def refuse(path: Path, *, shared: bool) -> None:
        raise WorkError(f"{path}: can't be written")

    monkeypatch.setattr(index, "atomic_file", refuse)
    assert [walks(170), walks(170)] == [20, 20]


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
