"""Packing: a source in, a shard folder out, and nothing lost between."""

import csv
import hashlib
import json
import os
from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import Mock

import pytest

from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, WorkError
from medclip_oc.packing import tar_writer
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.report import PackReport
from tests.support.fault_injection import contents, rejected
from tests.support.tiny_dataset import picture, stock, write_kaggle

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


def test_long_shards_are_written_in_chunks_and_a_full_disk_is_noticed(
    faulty_source: Path, faulty_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = open_source(faulty_source, SPLITS), PackOptions(samples_per_shard=4)
    monkeypatch.setattr(tar_writer, "_CHUNK_BYTES", 1000)
    pack(source, tmp_path / "whole", options)
    assert contents(tmp_path / "whole") == contents(faulty_packed)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(tar_writer._HashingFile, "_write", Mock(side_effect=full))
    with pytest.raises(WorkError, match="No space left on device"):
        pack(source, tmp_path / "full", options)
    assert sorted(contents(tmp_path / "full")) == ["unfinished.jsonl"]


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
