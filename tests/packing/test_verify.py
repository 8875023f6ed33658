"""Verifying: an intact folder is all well, and nothing that changed in one goes unseen."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.errors import InputError
from medclip_oc.packing import verify as verifying
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.packing.verify import verify
from tests.support.fault_injection import DAMAGES, replace, seal
from tests.support.tiny_dataset import jpeg, write_kaggle

ROOT = Path(__file__).parents[2]
FLIPS = 400


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


def found(folder: Path, **options: Any) -> list[str]:
    return [str(damage) for damage in verify(folder, **options).damages]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_intact_folder_is_all_well(made: Path, workers: int) -> None:
    result = verify(made, workers=workers)
    assert result.damages == []
    assert (result.shards, result.samples) == (4, 9)
    assert result.bytes == sum(path.stat().st_size for path in made.glob("*.tar"))


@pytest.mark.parametrize("decode", [True, False])
def test_one_flipped_bit_is_found_wherever_it_is(folder: Path, decode: bool) -> None:
    rng = random.Random(f"flips {decode}")
    files = sorted(folder.iterdir())
    assert len(files) == 7
    for _ in range(FLIPS):
        path = rng.choice(files)
        intact = path.read_bytes()
        place, bit = rng.randrange(len(intact)), 1 << rng.randrange(8)
        damaged = bytearray(intact)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        assert found(folder, decode=decode), f"{path.name}: byte {place}, bit {bit}"
        path.write_bytes(intact)
    assert not found(folder, decode=decode)


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_named(folder: Path, what: str) -> None:
    harm, expected = DAMAGES[what]
    harm(folder)
    said = found(folder)
    for line in expected:
        assert any(damage.startswith(line) or line in damage for damage in said), said
    if "index" not in what and "entry" not in what:
        assert len(said) == len(expected), said


def test_workers_find_the_same(folder: Path) -> None:
    DAMAGES["shards swapped"][0](folder)
    assert len(found(folder)) == 4
    assert found(folder, workers=2) == found(folder)


def test_of_a_bad_shard_the_first_damages_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "MAX_LINES", 1)
    os.truncate(folder / "train-000001.tar", 3000)
    assert "train-000001.tar: and 1 more damages" in found(folder)


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
            lambda folder: (
                replace(folder / "index.json", b'"version": 1', b'"version": 2'),
                seal(folder),
            ),
            "index.json: version 2, this program reads version 1",
        ),
    ],
)
def test_what_is_no_shard_folder_is_an_error(
    folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder)
    with pytest.raises(InputError, match=message):
        verify(folder)


def make_shards(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", ROOT / "tools" / "make_shards.py", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_says_what_is_damaged(folder: Path) -> None:
    done = make_shards("--verify", "--out", folder, "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{folder}: 4 shards, 9 samples, 0.1 MB: all well\n"

    (folder / "valid-000000.tar").unlink()
    done = make_shards("--verify", "--out", folder, "--workers", "1")
    assert done.returncode == 1
    assert done.stdout == "valid-000000.tar: missing, and index.json names it\n"
    assert done.stderr.count("\n") == 1
    assert "damaged: 1 findings in 4 shards" in done.stderr

    for words in (["--out", "/nowhere"], ["--out", str(folder), "--source", "x"]):
        done = make_shards("--verify", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
