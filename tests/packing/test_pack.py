"""Packing: a source in, a shard folder out, and nothing lost between."""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.config.parse import parse
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, WorkError
from medclip_oc.packing.formats import from_settings, open_source
from medclip_oc.packing.journal import Journal, read_head
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.report import PackReport
from medclip_oc.packing.verify import verify
from tests.support.fault_injection import contents, rejected
from tests.support.tiny_dataset import jpeg, picture, stock, write_kaggle

SPLITS = ["train", "valid"]


def test_every_row_is_packed_or_stands_in_rejects(faulty_source: Path, faulty_packed: Path) -> None:
    assert [(row["id"], row["split"], row["reason"]) for row in rejected(faulty_packed)] == [
        ("train_0003", "train", "truncated"),
        ("black", "train", "blank"),
        ("empty", "train", "empty"),
        ("absent", "train", "image missing"),
        ("train_0000", "train", "duplicate id"),
        ("up/../x", "train", "unsafe id"),
    ]
    assert all(row["detail"] for row in rejected(faulty_packed))
    train = ShardSet.open(str(faulty_packed), "train")
    keys = [train.key(position) for position in range(len(train))]
    assert keys == [f"train_{n:04}" for n in range(18) if n != 3]  # the table's order


def test_facts_and_bytes(faulty_source: Path, faulty_packed: Path) -> None:
    train = ShardSet.open(str(faulty_packed), "train")
    first, second = train.read(0), train.read(1)
    data = (faulty_source / "train_images" / "train" / "train_0000.jpg").read_bytes()
    assert first.image == data
    assert first.facts == {
        "id": "train_0000",
        "split": "train",
        "width": 48,
        "height": 40,
        "mode": "L",
        "sha256": hashlib.sha256(data).hexdigest(),
        "concepts": ["C0040405", "C0007776"],
        "reencoded": "",
    }
    assert second.facts["concepts"] == []  # the table doesn't know it


@pytest.mark.parametrize("resize", [None, 30])
def test_all_samples_have_the_same_facts(resize: int | None, tmp_path: Path) -> None:
    """Hugging Face's datasets take the keys, and their types, from the first samples. Here one
    image is re-encoded, and the valid split has no table of concepts.
    """
    source = write_kaggle(tmp_path / "source", {"train": 2, "valid": 1})
    (source / "train_concepts.csv").write_text("ID,CUIs\ntrain_0000,C0040405\n")
    picture(1).convert("CMYK").save(source / "train_images" / "train" / "train_0001.jpg")
    pack(open_source(source, ["train", "valid"]), tmp_path, PackOptions(resize=resize))
    sets = [ShardSet.open(str(tmp_path), split) for split in ("train", "valid")]
    facts = [shards.facts(n) for shards in sets for n in range(len(shards))]
    assert [each["concepts"] for each in facts] == [["C0040405"], [], []]
    assert [each["reencoded"] == "" for each in facts] == [not resize, False, not resize]
    assert {tuple(each) for each in facts} == {tuple(facts[0])}
    assert facts[0].get("resized_from") == (resize and [48, 40])


def test_folder_follows_the_contract(faulty_packed: Path) -> None:
    tars = [f"train-{n:06}.tar" for n in range(5)] + ["valid-000000.tar"]
    files = contents(faulty_packed)
    assert sorted(files) == sorted([*tars, "index.json", "sizes.json", "rejects.csv"])
    sizes = json.loads(files["sizes.json"])
    assert sizes == dict(zip(tars, [4, 4, 4, 4, 1, 3], strict=True))
    index = json.loads(files["index.json"])
    assert index["version"] == 1
    assert index["options"]["samples_per_shard"] == 4
    assert [entry["name"] for entry in index["shards"]] == tars
    for entry in index["shards"]:
        assert entry["samples"] == sizes[entry["name"]]
        assert entry["bytes"] == len(files[entry["name"]])
        assert entry["sha256"] == hashlib.sha256(files[entry["name"]]).hexdigest()


@pytest.mark.parametrize("decode_check", [True, False])
def test_workers_change_nothing(faulty_source: Path, tmp_path: Path, decode_check: bool) -> None:
    """Without the decode check they are threads."""
    options = PackOptions(samples_per_shard=4, decode_check=decode_check)
    for workers in (1, 3):
        pack(open_source(faulty_source, SPLITS), tmp_path / str(workers), options, workers=workers)
    assert contents(tmp_path / "3") == contents(tmp_path / "1")


def test_an_error_leaves_no_half_file(
    faulty_source: Path, faulty_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the journal's head; two tars, each with its folder and its line; then nothing goes
    steps = chain([None] * 7, repeat(OSError(28, "No space left on device")))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=steps))
    options = PackOptions(samples_per_shard=4)
    with pytest.raises(WorkError, match="No space left on device"):
        pack(open_source(faulty_source, SPLITS), tmp_path, options)
    shards = ["train-000000.tar", "train-000001.tar"]
    assert sorted(contents(tmp_path)) == [*shards, "unfinished.jsonl"]
    monkeypatch.undo()
    report = pack(open_source(faulty_source, SPLITS), tmp_path, options)
    assert report.before > 0
    assert contents(tmp_path) == contents(faulty_packed)


def test_tars_of_others_are_left_alone(faulty_source: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.tar").write_bytes(b"kept")
    with pytest.raises(InputError, match="holds 1 tars that are not ours"):
        pack(open_source(faulty_source, ["train", "valid"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.tar"]


def test_rows_that_vanish_meanwhile_are_noticed(faulty_source: Path, tmp_path: Path) -> None:
    opened = open_source(faulty_source, ["valid"])
    opened.count = lambda split: 4  # type: ignore[method-assign]
    with pytest.raises(WorkError, match="valid: 4 rows counted, 3 read, 3 packed"):
        pack(opened, tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "total"), [("rocov2_mini", 280), ("medpix_mini", 36)])
def test_real_data_is_packed_whole(
    rocov2_mini: Path, tmp_path: Path, name: str, total: int
) -> None:
    folder = rocov2_mini.with_name(name)
    report = pack(open_source(folder), tmp_path, PackOptions(samples_per_shard=64))
    assert report.packed.total() == report.read.total() == total
    assert not report.reencoded
    for split in ("train", "valid", "test"):
        with (folder / f"{split}_captions.csv").open(newline="", encoding="utf-8") as file:
            wanted = [(row["ID"], row["Caption"].strip()) for row in csv.DictReader(file)]
        urls = sorted(str(path) for path in tmp_path.glob(f"{split}-*.tar"))
        assert [(pair["__key__"], pair["txt"].decode()) for pair in stock(urls)] == wanted
        shard_set = ShardSet.open(str(tmp_path), split)
        for position, (key, _) in enumerate(wanted):
            [original] = (folder / f"{split}_images" / split).glob(f"{key}.*")
            assert shard_set.read(position).image == original.read_bytes()


@pytest.mark.parametrize(("split", "command"), [("test", "evaluate --"), ("train", "train --")])
def test_the_next_step_fits_what_was_packed(split: str, command: str) -> None:
    report = PackReport(read=Counter({split: 1}), packed=Counter({split: 1}))
    assert f"\nnext: python -m medclip_oc.{command}" in report.closing("o", "flat")


ROWS = ["a.jpg,one,1", "b.jpg,two,2", "b,two,2", "none.jpg,three,3", "./a.jpg, four,", "a.jpg,,1"]
TABLE = "\n".join(["image,report,more", *ROWS])
LISTS = """{"image": "a", "report": ["one", " ", "four", "one"]}\n{"image": "b", "report": "two"}"""
SEVERAL = [  # table; options; captions of a and b; rows read, further and rejected
    (TABLE.replace("./", ""), "report", [None, None], [6, 0, 4]),
    (TABLE.replace("./", ""), "report more", [["one", "1"], ["two", "2"]], [6, 0, 4]),
    (TABLE, "report --group-by-image", [["one", "four"], ["two"]], [6, 2, 2]),
    (TABLE, "report,more --group-by-image", [["one", "1", "four"], ["two", "2"]], [6, 3, 1]),
    (LISTS, "report", [["one", "four"], ["two"]], [2, 0, 0]),
]


@pytest.mark.parametrize("form", SEVERAL)
def test_several_captions_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[Any, ...]
) -> None:
    """Killed after the first, resumed, verified, and read by webdataset."""
    (table, words, captions, counts), out = form, tmp_path / "shards"
    file = tmp_path / ("t.jsonl" if table.startswith("{") else "t.csv")
    file.write_text(table)
    for n, image in enumerate("ab"):
        (tmp_path / f"{image}.jpg").write_bytes(jpeg(n))
    given = f"--table {file} --image-column image --out x --caption-column {words}"
    source, options = from_settings(parse(MakeShardsConfig, given.split())), PackOptions(1)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, options)
    head, first, *_ = (out / "unfinished.jsonl").read_text().splitlines(keepends=True)
    (out / "unfinished.jsonl").write_text(head + first)
    assert 0 < pack(source, out, options).before < counts[0]
    report = pack(source, out, options)  # of the finished folder
    assert verify(out) == []
    assert [report.read["train"], report.further["train"], len(rejected(out))] == counts
    found = stock([str(path) for path in sorted(out.glob("*.tar"))])
    assert [pair["txt"] for pair in found] == [b"one", b"two"]
    assert [json.loads(pair["json"]).get("captions") for pair in found] == captions


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice counts as a row, of which none is torn apart; resumed, the bytes are equal."""
    nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    voxels[..., 4] = 0
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "head.nii.gz")
    files = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001"
    shutil.copytree(files / "CT5N", tmp_path / "chest")
    shutil.copytree(files / "CT2N", tmp_path / "scouts")
    for name in ("plain", "odd_s001"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(1))
    rows = [f"{it},text\n" for it in ("head.nii.gz", "plain", "odd_s001", "scouts", "chest")]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(rows))
    given = f"--table {tmp_path / 't.csv'} --image-column image --caption-column caption --out x"
    source = from_settings(parse(MakeShardsConfig, given.split()))
    options, out = PackOptions(1, slices="every:2"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, options)
    lines = (out / "unfinished.jsonl").read_text().splitlines(keepends=True)
    (out / "unfinished.jsonl").write_text("".join(lines[:2]))
    assert 0 < pack(source, out, options).before < 9
    pack(source, tmp_path / "other", options)
    assert contents(out) == contents(tmp_path / "other")
    assert verify(out) == []
    told = [(row["id"], row["reason"]) for row in rejected(out)]
    assert told == [
        ("head_s004", "blank"),
        ("odd_s001", "unsafe id"),
        ("scouts", "unusable volume"),
    ]
    found = ShardSet.open(str(out), "train")
    facts = [found.read(n).facts for n in range(len(found))]
    assert [(it["id"], it["study"], it["slice"]) for it in facts] == [
        *(("head_s000", "head", 0), ("head_s002", "head", 2), ("plain", "plain", None)),
        *((f"chest_s00{n}", "chest", n) for n in (0, 2, 4)),
    ]
    assert [shard["samples"] for shard in read_head(out / "index.json")["shards"]] == [2, 1, 3]

    pack(source, tmp_path / "as before")
    told = {row["id"]: row["detail"] for row in rejected(tmp_path / "as before")}
    assert all("--slices" in told[name] for name in ("chest", "head"))


def test_what_kept_files_carry_is_stripped(tmp_path: Path) -> None:
    source, told = write_kaggle(tmp_path / "a", {"train": 1}), "metadata removed, pixels untouched"
    path = source / "train_images" / "train" / "train_0000.jpg"
    path.write_bytes(data := (plain := path.read_bytes()) + b"Doe")
    options, split = PackOptions(strip_metadata=True), open_source(source, ["train"])
    assert pack(split, tmp_path / "b", options).reencoded == {told: 1}
    sample = ShardSet.open(str(tmp_path / "b"), "train").read(0)
    assert sample.image == plain
    assert sample.facts["sha256"] == hashlib.sha256(data).hexdigest()
    pack(split, tmp_path / "c")
    text = (index := tmp_path / "c" / "index.json").read_text()
    index.write_text(text.replace(', "strip_metadata": false', ""))  # as it was before this option
    assert pack(split, tmp_path / "c").before == 1
    with pytest.raises(InputError, match="strip_metadata null, not true"):
        pack(split, tmp_path / "c", options)
