"""A packing that is killed, at whatever moment, resumes, and ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.errors import InputError, WorkError
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.journal import JOURNAL, alone_in
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.fault_injection import contents, rejected
from tests.support.tiny_dataset import write_kaggle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of three splits, some of which can't be packed."""
    counts = {"train": 20, "valid": 3, "test": 4}
    folder = write_kaggle(tmp_path_factory.mktemp("source"), counts)
    for name in ("train_0000", "train_0006", "train_0007", "train_0019"):
        (folder / "train_images" / "train" / f"{name}.jpg").write_bytes(b"no image")
    return folder


def die_at(call: int) -> None:
    """End this process at the call of that number, of those that make something durable."""
    calls = count(1)

    def counted(real: Any) -> Any:
        def wrapper(*words: Any, **named: Any) -> Any:
            if next(calls) == call:
                os._exit(9)
            return real(*words, **named)

        return wrapper

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the fork waits for none
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_dying_at_durable_steps(
    source: Path, almost: tuple[Path, Path], tmp_path: Path, every: int
) -> None:
    """A fork dies at every such step; then the packing is finished here."""
    resumed = list[int]()
    for call in count(1, every):
        out = tmp_path / str(call)
        child = os.fork()
        if child == 0:
            try:
                die_at(call)
                pack(open_source(source), out, PackOptions(samples_per_shard=3))
            finally:
                os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        report = pack(open_source(source), out, PackOptions(samples_per_shard=3))
        assert contents(out) == contents(almost[1])
        resumed.append(report.before)
        if not died:
            break
    assert len(resumed) > 30 // every
    assert resumed == sorted(resumed)  # the later it died, the more is left to use
    assert len(set(resumed)) > 6 // every + 1


@pytest.fixture(scope="module")
def almost(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packing killed just before its index appeared; and an undisturbed one."""
    folder, replace = tmp_path_factory.mktemp("almost"), Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == "index.json":
            raise KeyboardInterrupt
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(open_source(source), folder / "killed", PackOptions(samples_per_shard=3))
    pack(open_source(source), folder / "whole", PackOptions(samples_per_shard=3))
    return folder / "killed", folder / "whole"


def test_a_journal_cut_anywhere_is_enough(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    """What a machine that lost its power may leave of the file's end."""
    killed, whole = almost
    size = (killed / JOURNAL).stat().st_size
    for place, length in enumerate(random.Random(0).sample(range(size), 8)):
        out = tmp_path / str(place)
        shutil.copytree(killed, out)
        os.truncate(out / JOURNAL, length)
        pack(open_source(source), out, PackOptions(samples_per_shard=3))
        assert contents(out) == contents(whole), length


def test_other_settings_are_refused_and_named(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(almost[0], tmp_path / "out"))
    before = contents(out)
    with pytest.raises(InputError, match=r"a packing with other settings: samples_per_shard 3, no"):
        pack(open_source(source), out, PackOptions(samples_per_shard=4))
    with pytest.raises(InputError, match=r"_check true, not false, splits \['train', 'valid'"):
        pack(open_source(source, ["train"]), out, PackOptions(3, decode_check=False))
    refused = pytest.raises(InputError, match="another process is packing into this folder")
    with alone_in(out), refused:
        pack(open_source(source), out, PackOptions(samples_per_shard=3), overwrite=True)
    assert contents(out) == before
    pack(open_source(source), out, PackOptions(samples_per_shard=4), overwrite=True)
    index = json.loads((out / "index.json").read_text())
    assert index["options"]["samples_per_shard"] == 4


def test_another_source_is_refused(source: Path, almost: tuple[Path, Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(source, tmp_path / "source"))
    for folder in almost:  # an unfinished one, a finished one
        with pytest.raises(InputError, match="settings: the images are others, or in another"):
            pack(open_source(changed), folder, PackOptions(samples_per_shard=3))
    with (changed / "test_captions.csv").open("a") as file:
        file.write("more,rows\n")
    for folder in almost:
        with pytest.raises(InputError, match=r"other settings: the source's tables, or"):
            pack(open_source(changed), folder, PackOptions(samples_per_shard=3))


@pytest.mark.parametrize(
    ("finished", "name", "content"),
    [
        (0, "train-000001.tar", b""),
        (1, "train-000001.tar", b""),
        (1, "rejects.csv", None),
        *((0, JOURNAL, line + b"\n") for line in (bytes(100), b'{"head": {"version": 1}}', b"{}")),
    ],
)
def test_a_file_that_is_lost_or_junk_is_named(
    source: Path, almost: tuple[Path, Path], tmp_path: Path, finished: int, name: str, content: Any
) -> None:
    out = Path(shutil.copytree(almost[finished], tmp_path / "out"))
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    with pytest.raises(InputError, match=f"/{name}: (lost|missing|damaged).*--overwrite"):
        pack(open_source(source), out, PackOptions(samples_per_shard=3))


def test_a_split_without_a_pair_is_looked_at_again(tmp_path: Path) -> None:
    source = write_kaggle(tmp_path / "source", {"train": 4, "valid": 2})
    pictures, away = source / "valid_images" / "valid", tmp_path / "away"
    pictures.rename(away)
    pictures.mkdir()
    with pytest.raises(WorkError, match=r"valid: no pair could be packed; 2 of 2: image missing"):
        pack(open_source(source, ["train", "valid"]), tmp_path / "out")
    assert len(rejected(tmp_path / "out")) == 2
    pictures.rmdir()
    away.rename(pictures)
    report = pack(open_source(source, ["train", "valid"]), tmp_path / "out")
    assert (report.before, report.packed) == (4, {"train": 4, "valid": 2})
    assert not report.rejected


@pytest.mark.parametrize(
    "kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)]
)
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    """Pack in a process group that is killed at random moments, so many times; then let it finish.

    A moment is a number of shards that are there, and a little later: on a busy machine, too, the
    kills are spread over the whole packing.
    """
    source = write_kaggle(tmp_path / "source", {"train": 400, "valid": 40, "test": 40})
    out, whole, shards = tmp_path / "out", tmp_path / "whole", 58 + 6 + 6
    pack(open_source(source), whole, PackOptions(samples_per_shard=7))
    assert len(list(whole.glob("*.tar"))) == shards
    moments = random.Random(kills)
    words = [sys.executable, ROOT / "tools" / "make_shards.py", "--source", source]
    words += ["--out", out, "--samples-per-shard", "7", "--workers", "2"]
    reached = []
    for left in range(kills, 0, -1):
        there = len(list(out.glob("*.tar")))
        wanted = there + moments.randint(0, (shards - there) // left)
        process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.tar"))) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached.append(len(list(out.glob("*.tar"))))
    assert sum(0 < number < shards for number in reached) >= kills // 2, reached
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(whole)
