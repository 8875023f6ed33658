"""Verifying: an intact folder is all well, and nothing that changed in one goes unseen."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.errors import InputError
from medclip_oc.packing import verify as verifying
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.verify import verify
from tests.support.fault_injection import DAMAGES, replace
from tests.support.tiny_dataset import jpeg, write_kaggle

FLIPS = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 training pairs in 3 tars, one of them re-encoded; 2 validation pairs; one reject each."""
    source = write_kaggle(tmp_path_factory.mktemp("source"), {"train": 8, "valid": 3})
    (source / "train_images/train/train_0001.jpg").write_bytes(b"none")
    (source / "valid_images/valid/valid_0000.jpg").unlink()
    turned = jpeg(2)[:2] + bytes.fromhex(
        "ffe100224578696600004d4d002a00000008000101120003000000010006000000000000"
    )
    (source / "train_images/train/train_0002.jpg").write_bytes(turned + jpeg(2)[2:])
    out = tmp_path_factory.mktemp("made") / "shards"
    report = pack(open_source(source, ["train", "valid"]), out, PackOptions(samples_per_shard=3))
    assert report.reencoded == {"EXIF orientation 6": 1}
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def damages(folder: Path, **options: Any) -> list[str]:
    return verify(folder, **options).damages


def test_an_intact_folder_is_all_well(made: Path) -> None:
    result = verify(made)
    assert result.damages == []
    assert (result.shards, result.samples) == (4, 9)
    assert result.bytes == sum(path.stat().st_size for path in made.glob("*.tar"))


def test_a_folder_of_before_is_all_well(folder: Path) -> None:
    """Their index.json ends with a hash of itself."""
    replace(folder / "index.json", b'"}}\n', b'"}, "seal": "' + 64 * b"0" + b'"}\n')
    assert damages(folder) == []


@pytest.mark.parametrize("decode", [True, False])
def test_one_flipped_bit_is_found_wherever_it_is(folder: Path, decode: bool) -> None:
    """But in index.json, which has no hash of itself."""
    rng = random.Random(f"flips {decode}")
    files = sorted(path for path in folder.iterdir() if path.name != "index.json")
    assert len(files) == 6
    for _ in range(FLIPS):
        path = rng.choice(files)
        intact = path.read_bytes()
        place, bit = rng.randrange(len(intact)), 1 << rng.randrange(8)
        damaged = bytearray(intact)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        assert damages(folder, decode=decode), f"{path.name}: byte {place}, bit {bit}"
        path.write_bytes(intact)
    assert not damages(folder, decode=decode)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_named(folder: Path, name: str) -> None:
    harm, expected = DAMAGES[name]
    harm(folder)
    lines = damages(folder)
    for start in expected:
        assert any(line.startswith(start) for line in lines), lines
    if not name.startswith("entry"):
        assert len(lines) == len(expected), lines


def test_workers_find_the_same(folder: Path) -> None:
    DAMAGES["shards swapped"][0](folder)
    assert len(damages(folder)) == 4
    assert damages(folder, workers=2) == damages(folder)


def test_of_a_bad_shard_the_first_damages_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MAX_LINES", 1)
    os.truncate(folder / "train-000001.tar", 3000)
    assert "train-000001.tar: and 1 more damages" in damages(folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such shard folder"),
        (lambda folder: (folder / "index.json").unlink(), "no shard folder to verify: no index"),
        (
            lambda folder: (folder / "index.json").rename(folder / "unfinished.jsonl"),
            "no shard folder to verify: its packing isn't finished",
        ),
        (
            lambda folder: replace(folder / "index.json", b'"version": 1', b'"version": 2'),
            "index.json: version 2, this program reads version 1",
        ),
        (lambda folder: os.truncate(folder / "index.json", 900), "index.json: damaged"),
    ],
)
def test_what_is_no_shard_folder_is_an_error(
    folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder)
    with pytest.raises(InputError, match=message):
        verify(folder)
