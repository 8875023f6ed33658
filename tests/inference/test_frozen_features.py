"""A frozen tower runs once per run, and nothing else changes."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.inference import frozen_features
from medclip_oc.models import checkpoint
from medclip_oc.training import build
from tests.support.cli import one_line, run_training
from tests.support.interrupted import configure, fork_server, measured, same, weights
from tests.support.reference import RESNET
from tests.support.tiny_dataset import jpeg, write_tar
from tests.support.tiny_models import TINY

OFF = {"scale": [1.0, 1.0], "rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0}
IMAGES: dict[str, Any] = {"optim__freeze": "image", "data__augment": OFF}
TEXTS: dict[str, Any] = {"optim__freeze": "text"}
STUDIES: dict[str, Any] = {"data__unit": "study", "train__epochs": 3}


def write(folder: Path, text: str = "finding {} of {}", times: int = 1, bad: bool = False) -> str:
    """48 pairs, two a study; of two the image, of one the caption can be bad."""
    members = {}
    for n in range(48):
        caption = text.format(chr(97 + n % 26), chr(97 + n // 26))
        facts = {"study": n // 2, "captions": [f"{caption} {time}" for time in range(times)]}
        members |= {f"p{n}.jpg": jpeg(n), f"p{n}.txt": caption.encode()}
        members[f"p{n}.json"] = json.dumps(facts).encode()
    if bad:
        members |= {"p5.jpg": b"no image", "p31.jpg": jpeg(31)[:-60], "p10.txt": b"\xff"}
    return str(write_tar(folder / f"pairs{len(list(folder.glob('*.tar')))}.tar", members))


def train(shards: Path, folder: Path, name: str, ranks: int = 1, code: int = 0, **how: Any) -> Path:
    """RUN, of 2 epochs, 6 steps, with a state and a validation after every third."""
    usual = {"train__epochs": 2, "data__max_bad_share": 0.2, "loss": {"positives": "captions"}}
    usual |= {"checkpoint": {"every_minutes": None, "keep_last": 9}, "valid": {}}
    file = configure(shards, folder, name, **(usual | how))
    many = ranks > 1
    codes = fork_server.train(ranks, folder, "--config", file) if many else [run_training(file)]
    assert codes == [code] * ranks
    return folder / name


def both(shards: Path, folder: Path, ranks: int = 1, **how: Any) -> tuple[Path, Path]:
    """Where the tower runs once, and where in each step."""
    each = train(shards, folder, "each", ranks, **how, train__frozen_features=False)
    return train(shards, folder, "once", ranks, **how), each


def assert_same(one: Path, other: Path) -> None:
    """Records, validations among them, and weights to the last bit; and what was unreadable."""
    assert measured(one) == measured(other)
    assert same(weights(one), weights(other))
    logs = [(run / "log.txt").read_text() for run in (one, other)]
    assert same(*(re.findall(r" (unreadable, .*)", log) for log in logs))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [IMAGES, TEXTS, IMAGES | STUDIES, TEXTS | STUDIES])
def test_nothing_changes(how: dict[str, Any], ranks: int, packed: Path, tmp_path: Path) -> None:
    once, each = both(packed, tmp_path, ranks, **how, data__train=write(tmp_path, bad=True))
    assert_same(once, each)
    [file], log = (once / "features").iterdir(), (once / "log.txt").read_text()
    side, unreadable = how["optim__freeze"], 3 if "data__augment" in how else 1
    size = f"{4e-6 * 48 * np.load(file).shape[1]:.3g} MB"
    assert f"{side} tower is frozen: embedding 48 pairs once, {size} in {file.parent}\n" in log
    assert np.isnan(np.load(file)).all(1).sum() == unreadable


def test_no_image_is_read_again(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    read, images = ShardSet.read, list[int]()

    def watched(self: ShardSet, position: int, *, image: bool = True) -> Sample:
        images.extend([position] * image)
        return read(self, position, image=image)

    monkeypatch.setattr(ShardSet, "read", watched)
    assert_same(*both(packed, tmp_path, **IMAGES, data__valid=None))
    assert sorted(images) == sorted(3 * list(range(48))), "two epochs, and once"


def test_texts_of_any_length(packed: Path, tmp_path: Path) -> None:
    """They lie in other chunks, whose rounding differs."""
    tars = [write(tmp_path), write(tmp_path, "in image {0} of series {1} a round {0} is seen")]
    runs = both(packed, tmp_path, **TEXTS, data__train="::".join(tars))
    once, each = ([r["loss"] for r in measured(run) if "loss" in r] for run in runs)
    assert once == pytest.approx(each, rel=5e-6)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "edited": lambda content: content[:-4] + bytes(4),
    "cut": lambda content: content[:-4],
    "emptied": lambda content: b"",
}
CHANGES = ["nothing", "the temperature alone", "pairs", "weights", *DAMAGED]


@pytest.mark.parametrize("change", CHANGES)
def test_resumed(change: str, packed: Path, tmp_path: Path) -> None:
    """From a state of the middle: the rows are taken if they are of these pairs and weights."""
    how = TEXTS if change == "the temperature alone" else IMAGES  # it is of no tower
    whole = train(packed, tmp_path, "whole", **how, data__train=write(tmp_path))
    state, [rows] = whole / "checkpoints" / "step-00000003.pt", (whole / "features").iterdir()
    for file in {*whole.glob("checkpoints/*.pt")} - {state}:
        file.unlink()
    words = list[object]()
    (rows.parent / "notes.txt").touch()  # somebody's
    if change == "pairs":
        words = ["--resume.allow", "data.train", "--data.train", write(tmp_path, bad=True)]
    elif change == "weights":
        model = checkpoint.load(state)
        model["state_dict"]["visual.proj"][0] *= -1
        checkpoint.save(state, {k: v for k, v in model.items() if k != "format"})
    elif change in DAMAGED:
        rows.write_bytes(DAMAGED[change](rows.read_bytes()))
    each, file = shutil.copytree(whole, tmp_path / "each"), tmp_path / "whole.yaml"
    off = ["--train.frozen_features", "false", "--run.folder", each]
    assert run_training(file, *words, *off) == run_training(file, *words) == 0
    assert_same(whole, each)
    made = (whole / "log.txt").read_text().count("embedding 48 pairs once")
    assert made == (1 if change in ("nothing", "the temperature alone") else 2)
    assert rows.exists() == (change not in ("pairs", "weights"))  # equal rows have one name
    assert len([*rows.parent.iterdir()]) == 2


def test_a_signal_meanwhile(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It stops the run before its first step, to be resumed."""
    whole, load_batches = train(packed, tmp_path, "whole", **IMAGES), frozen_features.load_batches

    def interrupting(*args: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load_batches(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(frozen_features, "load_batches", interrupting)
        cut = train(packed, tmp_path, "cut", code=75, **IMAGES)
    assert checkpoint.load(cut / "checkpoints" / "last.pt")["step"] == 0
    assert not list(cut.glob("features/*"))
    assert_same(whole, train(packed, tmp_path, "cut", **IMAGES))


def test_no_room(packed: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """On the disk, which is said at the start, or for a folder of that name."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "features").touch()
    train(packed, tmp_path, "run", code=1, **IMAGES)
    assert ".npy: can't be written (Not a directory)" in one_line(capsys.readouterr().err)
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(build.RunData, "pairs", 10**9)
    monkeypatch.setattr(build.Plan, "seen", 2 * 10**9)
    train(packed, tmp_path, "run", code=2, **IMAGES)
    said = "the checkpoints and features need about 96.2 GB"  # 4 * 24 bytes a pair
    assert said in one_line(capsys.readouterr().err)
    (tmp_path / "run" / "features").unlink()
    (tmp_path / "run" / "features").mkdir()
    with (tmp_path / "run" / "features" / "image-old.npy").open("wb") as file:
        file.truncate(96 * 10**9)  # of which no byte is written; it is to be replaced
    (tmp_path / "run" / "features" / "text-old.npy").mkdir()  # not to be unlinked
    train(packed, tmp_path, "run", **IMAGES)


LIVE = {"arch": "live", "definition": {**TINY, "vision_cfg": RESNET}, "freeze_batch_norm": False}
SEVERAL = {"data__caption_key": "captions", "data__valid": None}
EACH: dict[str, tuple[dict[str, Any], str]] = {
    "a parameter trains": (IMAGES | {"optim__freeze": r"^visual\.(?!ln_post\.bias)"}, ""),
    "augmented": (IMAGES | {"data__augment": OFF | {"flip": True}}, "data.augment is not off"),
    "dropout": (
        IMAGES | {"model__patch_dropout": 0.5, "valid": {"at_start": True}},
        "it draws random numbers",
    ),
    "batch norm": (IMAGES | {"model": LIVE}, "batch norm is live"),
    "stream": (IMAGES | {"data__samples_per_epoch": 48}, "data.train is a stream"),
    "one epoch": (IMAGES | {"train__epochs": 1}, "the run ends within an epoch"),
    "several captions": (TEXTS | SEVERAL, "pairs have several captions"),
    "sentences": (
        TEXTS | {"data__long_captions": "sentences"},
        "of long captions sentences are drawn",
    ),
}


@pytest.mark.parametrize("name", EACH)
def test_runs_in_each_step(name: str, packed: Path, tmp_path: Path) -> None:
    how, said = EACH[name]
    text = "finding {0}. Finding {1}. " * (8 if name == "sentences" else 1)
    tar = write(tmp_path, text, 2 if name == "several captions" else 1)
    how = how | {"data__train": f"pipe:cat {tar}" if name == "stream" else tar}
    run = train(packed, tmp_path, "run", **how)
    log = (run / "log.txt").read_text()
    assert ("tower is frozen" in log) == ("in each step" in log) == bool(said), log
    assert said in log
    shows_late = ("dropout", "several captions", "sentences")
    assert ("checkpoints and features take up" in log) == (name in shows_late)
    assert not list(run.glob("features/*"))
