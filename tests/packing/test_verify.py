"""Verifying: an intact folder is all well, and nothing that changed in one goes unseen."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medclip_oc.errors import InputError
from medclip_oc.packing import verify as verifying
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.verify import verify
from tests.support.fault_injection import DAMAGES, replace
from tests.support.image_files import turned
from tests.support.tiny_dataset import picture, write_kaggle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 training pairs in 3 tars, one of them re-encoded; 2 validation pairs; one reject each."""
    source = write_kaggle(tmp_path_factory.mktemp("source"), {"train": 8, "valid": 3})
    (source / "train_images/train/train_0001.jpg").write_bytes(b"none")
    (source / "valid_images/valid/valid_0000.jpg").unlink()
    (source / "train_images/train/train_0002.jpg").write_bytes(turned("JPEG", 6, picture(2)))
    out = tmp_path_factory.mktemp("made") / "shards"
    report = pack(open_source(source, ["train", "valid"]), out, PackOptions(samples_per_shard=3))
    assert report.reencoded == {"EXIF orientation 6": 1}
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def test_an_intact_folder_is_all_well(folder: Path) -> None:
    assert verify(folder) == []
    # one of before, too: its index.json ends with a hash of itself
    replace(folder / "index.json", b'"}}\n', b'"}, "seal": "' + 64 * b"0" + b'"}\n')
    assert verify(folder) == []


def test_one_flipped_bit_is_found_wherever_it_is(folder: Path) -> None:
    """But in index.json, which has no hash of itself."""
    rng = random.Random(0)
    files = sorted(path for path in folder.iterdir() if path.name != "index.json")
    assert len(files) == 6
    for _ in range(100):
        path = rng.choice(files)
        intact = path.read_bytes()
        place, bit = rng.randrange(len(intact)), 1 << rng.randrange(8)
        damaged = bytearray(intact)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        assert verify(folder, decode=False), f"{path.name}: byte {place}, bit {bit}"
        path.write_bytes(intact)
    assert not verify(folder, decode=False)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_named(folder: Path, name: str) -> None:
    harm, expected = DAMAGES[name]
    harm(folder)
    lines = verify(folder)
    for start in expected:
        assert any(line.startswith(start) for line in lines), lines
    if not name.startswith("entry"):
        assert len(lines) == len(expected), lines


def test_workers_find_the_same_and_of_a_shard_the_first_damages_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGES["shards swapped"][0](folder)
    found = verify(folder)
    assert len(found) == 4
    assert verify(folder, workers=2) == found
    monkeypatch.setattr(verifying, "MAX_LINES", 1)
    assert "train-000001.tar: and 1 more damages" in verify(folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "no shard folder to verify: no index.*; pack it"),
        (lambda index: index.rename(index.with_name("unfinished.jsonl")), "packing isn't finished"),
        (lambda index: replace(index, b'"version": 1', b'"version": 2'), "version 2, this program"),
        (lambda index: os.truncate(index, 900), "index.json: damaged"),
    ],
)
def test_what_is_no_shard_folder_is_an_error(
    folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder / "index.json")
    with pytest.raises(InputError, match=message):
        verify(folder)
