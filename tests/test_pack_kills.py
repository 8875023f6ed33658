"""A packing that is killed, at whatever moment, goes on and ends with the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pairs import write_kaggle

from medclip_oc import journal
from medclip_oc.errors import InputError
from medclip_oc.packing import PackOptions, pack
from medclip_oc.source_forms import open_source

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of three splits, some of which can't be packed."""
    counts = {"train": 20, "valid": 3, "test": 4}
    folder = write_kaggle(tmp_path_factory.mktemp("source"), counts)
    for name in ("train_0000", "train_0006", "train_0007", "train_0019"):
        (folder / "train_images" / "train" / f"{name}.jpg").write_bytes(b"no image")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    # without what readers keep there for themselves
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_dying_at_every_durable_step(source: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", ROOT / "tests" / "crashes.py", source, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) > 30
    assert [row[1] for row in rows] == ["died"] * (len(rows) - 1) + ["lived"]
    assert {row[3] for row in rows} == {"same"}
    resumed = [int(row[2]) for row in rows]
    assert resumed == sorted(resumed)  # the later it died, the more is left to use
    assert len(set(resumed)) > 8


@pytest.fixture(scope="module")
def almost(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packing killed just before its index appeared; and an undisturbed one."""
    folder = tmp_path_factory.mktemp("almost")
    code = (
        "import os, pathlib, sys\n"
        "from medclip_oc.packing import PackOptions, pack\n"
        "from medclip_oc.source_forms import open_source\n"
        "real = pathlib.Path.replace\n"
        "def replace(path, target):\n"
        "    if target.name == 'index.json': os._exit(9)\n"
        "    return real(path, target)\n"
        "pathlib.Path.replace = replace\n"
        "source = open_source(pathlib.Path(sys.argv[1]))\n"
        "pack(source, pathlib.Path(sys.argv[2]), PackOptions(samples_per_shard=3))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, source, folder / "killed"], cwd=ROOT)
    assert killed.returncode == 9
    pack(open_source(source), folder / "whole", PackOptions(samples_per_shard=3))
    return folder / "killed", folder / "whole"


def test_a_journal_cut_anywhere_is_enough(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    """What a machine that lost its power may leave of the file's end."""
    killed, whole = almost
    size = (killed / journal.NAME).stat().st_size
    for place, length in enumerate(random.Random(0).sample(range(size), 25)):
        out = tmp_path / str(place)
        shutil.copytree(killed, out)
        os.truncate(out / journal.NAME, length)
        pack(open_source(source), out, PackOptions(samples_per_shard=3))
        assert contents(out) == contents(whole), length


def test_other_settings_are_refused_and_named(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(almost[0], out)
    before = contents(out)
    with pytest.raises(InputError, match=r"unfinished packing with .*: samples_per_shard 3, not 4"):
        pack(open_source(source), out, PackOptions(samples_per_shard=4))
    with pytest.raises(
        InputError, match=r"decode_check True, not False, splits \['train', 'valid'"
    ):
        pack(open_source(source, ["train"]), out, PackOptions(3, decode_check=False))
    assert contents(out) == before
    pack(open_source(source), out, PackOptions(samples_per_shard=4), overwrite=True)
    index = json.loads((out / "index.json").read_text())
    assert index["options"]["samples_per_shard"] == 4


def test_another_table_is_refused(source: Path, almost: tuple[Path, Path], tmp_path: Path) -> None:
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    with (changed / "test_captions.csv").open("a") as file:
        file.write("more,rows\n")
    for folder in almost:  # an unfinished one, a finished one
        with pytest.raises(InputError, match=r"other settings: the source's tables changed"):
            pack(open_source(changed), folder, PackOptions(samples_per_shard=3))


def test_a_shard_that_went_away_meanwhile_is_named(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(almost[0], out)
    (out / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001.tar: changed since it was packed"):
        pack(open_source(source), out, PackOptions(samples_per_shard=3))


def test_two_packings_into_one_folder_are_refused(
    source: Path, almost: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(almost[0], out)
    head = json.loads((out / journal.NAME).read_text().splitlines()[0])["head"]
    other = journal.Journal(out, head)
    try:
        with pytest.raises(InputError, match="another process is packing into this folder"):
            pack(open_source(source), out, PackOptions(samples_per_shard=3))
    finally:
        other.close()


def kill_and_resume(folder: Path, kills: int) -> None:
    """Pack in a process group that is killed at random moments, until it was killed often enough;
    then let it finish.
    """
    source = write_kaggle(folder / "source", {"train": 400, "valid": 40, "test": 40})
    options = PackOptions(samples_per_shard=7)
    pack(open_source(source), folder / "whole", options)
    moments = random.Random(kills)
    words = [sys.executable, ROOT / "tools" / "make_shards.py", "--source", source]
    words += ["--out", folder / "out", "--samples-per-shard", "7", "--workers", "2"]
    reached = []
    for _ in range(kills):
        process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (folder / "out" / journal.NAME).exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3) if len(reached) % 2 else moments.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached.append(len(list((folder / "out").glob("*.tar"))))
        if (folder / "out" / "index.json").exists():  # it was quicker: begin anew
            assert contents(folder / "out") == contents(folder / "whole")
            shutil.rmtree(folder / "out")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "out") == contents(folder / "whole")
    assert any(reached), "no kill came after a first shard: this tested nothing"


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 5)


@pytest.mark.soak
def test_killed_at_random_moments_again_and_again(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 20)
