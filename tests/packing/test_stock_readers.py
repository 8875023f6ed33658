"""Readers that know nothing of us get every pair in order: webdataset, and open_clip's training."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest

from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.imaging.decode import decode
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.tiny_dataset import jpeg, picture, stock, write_kaggle

ODD_IDS = ["PMC12.3_fig. 2", "p10/s5", "__key__", "-x y", "œdème_" + "長" * 40, "#1;a=b&c", "JPG"]
CAPTIONS = ['Two\nlines, "quoted", 中', "None", "a,b;c\td", "<b>µm</b> ±", "naïve", "'", "end."]
PEER = Path(__file__).parents[1] / "support" / "open_clip_reader.py"
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three splits; odd ids; images that had to be re-encoded to JPEG and to PNG."""
    source = write_kaggle(tmp_path_factory.mktemp("source"), {"train": 9, "valid": 2, "test": 4})
    folder = source / "train_images" / "train"
    (folder / "p10").mkdir()
    rows = zip(ODD_IDS, CAPTIONS, strict=True)
    with (source / "train_captions.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    for number, name in enumerate(ODD_IDS):
        (folder / f"{name}.jpg").write_bytes(jpeg(100 + number))
    picture(50).convert("CMYK").save(folder / "train_0002.jpg")
    picture(51).convert("I;16").save(folder / "train_0005.png")
    (folder / "train_0005.jpg").unlink()
    picture(52).save(source / "test_images" / "test" / "test_0001.jpg", "TIFF")
    out = tmp_path_factory.mktemp("shards")
    report = pack(open_source(source), out, PackOptions(samples_per_shard=5))
    assert report.packed == {"train": 16, "valid": 2, "test": 4}
    assert sum(report.reencoded.values()) == 3
    return out


def ours(folder: Path, split: str) -> list[Sample]:
    shard_set = ShardSet.open(str(folder), split)
    return [shard_set.read(position) for position in range(len(shard_set))]


def size_and_middle(sample: Sample) -> list[int]:
    image = decode(sample.image).convert("RGB")
    middle = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(middle, tuple)
    return [*image.size, *middle]


@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_reads_the_same_pairs_in_order(shards: Path, split: str) -> None:
    urls = sorted(str(path) for path in shards.glob(f"{split}-*.tar"))
    theirs, expected = stock(urls, "pil"), ours(shards, split)
    assert len(theirs) == len(expected) > 0
    for found, sample in zip(theirs, expected, strict=True):
        names = [name for name in found if not name.startswith("__")]
        assert names == [sample.extension, "txt", "json"]
        assert (found["__key__"], found["txt"]) == (sample.key, sample.caption)
        assert found["json"] == sample.facts
        decoded = decode(sample.image).convert("RGB")
        assert found[sample.extension].tobytes() == decoded.tobytes()
    if split == "train":
        odd = {pair["json"]["id"]: pair["txt"] for pair in theirs[9:]}
        assert odd == dict(zip(ODD_IDS, CAPTIONS, strict=True))


def peer(old_webdataset: Path, *words: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(old_webdataset)}
    command = [sys.executable, str(PEER), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_open_clip_trains_on_the_same_pairs(
    shards: Path, old_webdataset: Path, tmp_path: Path
) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = [
        [size_and_middle(sample), tokenizer(sample.caption)[0].tolist()]
        for sample in ours(shards, "train")
    ]
    pattern = "train-{000000..000003}.tar"
    bare = Path(shutil.copytree(shards, tmp_path / "bare"))
    (bare / "sizes.json").unlink()
    asked = (shards, "valid"), (shards, "train"), (bare, "train")
    words = [word for folder, use in asked for word in (str(folder / pattern), use)]
    valid, train, without = peer(old_webdataset, *words)
    assert valid["webdataset"] == "0.2.86"
    assert valid["pairs"] == expected  # in order, where nothing is shuffled
    assert train["samples"] == 16  # by sizes.json: nobody told
    assert sorted(train["pairs"]) == sorted(expected)
    assert "number of dataset samples must be specified" in without["error"]
