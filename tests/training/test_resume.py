"""Interrupted and resumed == never interrupted; and a run goes on only as the run that it was."""

import functools
import math
import operator
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medclip_oc.models import checkpoint
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.cli import one_line, records, run_training
from tests.support.fault_injection import Payload
from tests.support.interrupted import configure, fork_server, measured, same, weights
from tests.support.tiny_dataset import jpeg, write_kaggle, write_pairs, write_tar
from tests.support.tiny_models import TINY

Shown = pytest.CaptureFixture[str]
KEPT = ("state_dict", "training", "metrics")


# ----------------------------------------------------------------------------- killed, resumed


@pytest.mark.parametrize(
    "kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)]
)
def test_killed_and_resumed_is_never_interrupted(kills: int, packed: Path, tmp_path: Path) -> None:
    """Two ranks with dropout, killed at random moments: the same weights, state and records."""
    model = {"arch": "resume-dropout", "definition": TINY, "patch_dropout": 0.5}
    configs = [configure(packed, tmp_path, name, model=model) for name in ("whole", "cut")]
    assert fork_server.train(2, tmp_path, "--config", configs[0]) == [0, 0]
    rng, killed = np.random.default_rng(kills), 0
    for _ in range(kills):
        pids = fork_server.begin(configs[1], 2, int(rng.integers(0, 4)))
        time.sleep(float(rng.uniform(0, 0.3)))
        for pid in rng.permutation(pids).tolist():
            os.kill(pid, signal.SIGKILL)
        killed += set(fork_server.answer()) == {-signal.SIGKILL}
    assert fork_server.train(2, tmp_path, "--config", configs[1]) == [0, 0]
    assert killed >= kills - 1, "the last may come after the end"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    one, two = (checkpoint.load(run / "checkpoints" / "last.pt") for run in (whole, cut))
    assert same([one[name] for name in KEPT], [two[name] for name in KEPT])
    assert same(weights(whole, "best"), weights(cut, "best"))
    assert measured(whole) == measured(cut)
    assert not list(cut.glob("checkpoints/*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes(packed: Path, tmp_path: Path, before: int, after: int) -> None:
    """The same batches in the same order, and the losses of fp32 rounding."""
    whole = configure(packed, tmp_path, "whole", checkpoint={"keep_last": 99})
    assert fork_server.train(before, tmp_path, "--config", whole) == [0] * before
    file = tmp_path / "whole" / "checkpoints" / "step-00000010.pt"
    other = configure(packed, tmp_path, "other")
    words = ("--config", other, "--resume", file)
    assert fork_server.train(after, tmp_path, *words) == [0] * after
    one, two = (
        [r["loss"] for r in records(tmp_path / name) if "loss" in r and r["step"] > 10]
        for name in ("whole", "other")
    )
    assert len(one) == len(two) == 20
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)


# -------------------------------------------------------------------- what is gone on with, or not


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may harm: RUN beside its configuration."""
    shutil.copytree(finished, tmp_path / "run")
    tree = (finished.parent / "run.yaml").read_text()
    (tmp_path / "run.yaml").write_text(tree.replace(str(finished), str(tmp_path / "run")))
    return tmp_path / "run"


def assert_same(run: Path, finished: Path) -> None:
    """Records and weights, to the last bit."""
    assert measured(run) == measured(finished)
    assert same(weights(run), weights(finished))


def again(run: Path, *words: object) -> int:
    return run_training(run.with_suffix(".yaml"), *words)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def test_a_damaged_state_is_said_and_the_one_before_it_used(
    run: Path, finished: Path, capsys: Shown
) -> None:
    flip(run / "checkpoints" / "step-00000009.pt")
    assert again(run) == 0
    shown = capsys.readouterr().err
    assert re.search("step-00000009.pt: damaged.*; the state before it is used", shown)
    assert re.search("resumes from .*step-00000008.pt, step 8 of 9", shown)
    assert_same(run, finished)
    for name in ("step-00000009", "last"):
        assert checkpoint.load(run / "checkpoints" / f"{name}.pt")["step"] == 9


def test_without_a_sound_state_nothing_is_overwritten(run: Path, capsys: Shown) -> None:
    for file in (*run.glob("checkpoints/step-*.pt"), run / "checkpoints" / "last.pt"):
        flip(file)
    before = (run / "metrics.jsonl").read_bytes()
    assert again(run) == 2
    assert "has no sound checkpoint to resume from" in one_line(capsys.readouterr().err)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_pickled_code_is_refused(run: Path, tmp_path: Path, capsys: Shown) -> None:
    """And the state before it is not taken."""
    marker, bad = tmp_path / "ran", run / "checkpoints" / "step-00000009.pt"
    content = checkpoint.load(bad)
    content["training"]["best"] = Payload(marker)
    bad.unlink()
    checkpoint.save(bad, {k: v for k, v in content.items() if k != "format"})
    assert [again(run), again(run, "--resume", bad)] == [2, 2]
    assert capsys.readouterr().err.count("refused: it holds pickled Python objects") == 2
    assert not marker.exists()


REFUSED = {
    "--optim.lr 2e-3 --train.epochs 4": (
        "train.epochs 3, now 4; optim.lr 0.001, now 0.002; resume all the same "
        r"\(--resume.allow train.epochs optim.lr\), take another run.folder, or begin anew"
    ),
    "--train.global_batch_size 12": "16, now 12; take another run.folder, or begin anew .--run",
    "--train.global_batch_size 12 --resume.allow train.global_batch_size": (
        "--resume.allow train.global_batch_size: a run can't resume with another"
    ),
    "--resume.allow data.unit": "data.unit: a run can't resume with another; start a new run",
    "--resume.allow optim.lrr": "optim.lrr: no such setting; did you mean",
    "--train.max_steps 5 --resume.allow train.max_steps": (
        "train.max_steps: the run ends after 5 steps, but .*9.pt is 9 steps old; give more,"
    ),
    "--train.epochs 1 --resume.allow train.epochs": (
        "train.epochs: the run ends after 3 steps, but .*9.pt is 9 steps old; give more,"
    ),
    "--resume never": "holds an earlier run; resume it .--resume auto.",
    "--resume BEST": "best.pt: holds a model, and no training state",
    "--resume LAST --run.folder OTHER": "holds another run than --resume",
    "--resume LAST --run.overwrite": "run.overwrite would remove it; leave that out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_run_does_not_go_on_with(words: str, run: Path, capsys: Shown) -> None:
    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    other, before = run.with_name("other"), files()
    (other / "checkpoints").mkdir(parents=True)
    (other / "metrics.jsonl").write_text('{"step": 1}\n')
    places = {n.upper(): run / "checkpoints" / f"{n}.pt" for n in ("best", "last")}
    places["OTHER"] = other
    assert again(run, *[places.get(word, word) for word in words.split()]) == 2
    line = one_line(capsys.readouterr().err)
    assert re.search(REFUSED[words], line), line
    assert files() == before


PARTS, FIRST = "training/parts", "training/parts/optimizer/state/0"
AVERAGES = dict.fromkeys(("exp_avg", "exp_avg_sq", "step"), NONE := torch.tensor(math.nan))
DAMAGED_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "no optimizer": ({f"{PARTS}/optimizer": ...}, "training.parts.optimizer: is missing"),
    "no averages": ({f"{PARTS}/optimizer/state": {}}, "it has averages of 0 of"),
    "no parts": ({"training": 5}, "training: should be a mapping .there: 5."),
    "no counts": ({f"{PARTS}/data": None}, "parts.data: should be a mapping .there: null."),
    "negative count": ({f"{PARTS}/data/bad": -1}, "parts.data.bad: .* .there: -1."),
    "no average": ({"config/ema/decay": 0.9}, "it has no ema"),
    "no adapters": ({"config/lora/rank": 4}, "it has no adapters"),
    "no scaler": ({"config/train/precision": "fp16"}, "it has no scaler"),
    "huge step": ({"step": 10**9}, "step 1000000000 of 16 pairs, yet position 144"),
    "negative step": ({"step": -1}, "step: .* .there: -1."),
    "position": ({"position": "145"}, "position: .* .there: '145'."),
    "epoch that is none": ({"epoch": math.nan}, "epoch: .* .there: nan."),
    "best that is none": ({"training/best": math.nan}, "training.best: .* .there: nan."),
    "random numbers": ({"training/random/0/cpu": torch.ones(3)}, "its state of random numbers"),
    "no random numbers": ({"training/random/0": 3}, "training.random.0: .* .there: 3."),
    "shape of an average": ({f"{FIRST}/exp_avg": torch.zeros(1)}, "meter 0: .*another shape"),
    "average that is none": ({f"{FIRST}/exp_avg": NONE}, "parameter 0: exp_avg holds NaN"),
    "negative squares": ({f"{FIRST}/exp_avg_sq": -torch.ones(32, 32)}, "negative squares"),
    "negative steps": ({f"{FIRST}/step": torch.tensor(-5.0)}, "or -5 steps of 9"),
    "an earlier step": ({"step": 8, "position": 128}, "or 9 steps of 8"),
    "another epoch": ({"epoch": 1e6}, "its epoch is 1e[+]06, but its step's is 3"),
    "kind of averages": ({FIRST: [1]}, "optimizer.state.0: .* .there: .1.."),
    "a parameter too many": ({f"{PARTS}/optimizer/state/999": AVERAGES}, "has averages of"),
    "names of bad pairs": ({f"{PARTS}/data/named": [[1]]}, "data.named.0: .* .there: .1.."),
}


@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_a_state_that_contradicts_itself(
    damage: str, run: Path, tmp_path: Path, capsys: Shown
) -> None:
    """Named by the user it is an error; found in the run's folder, the one before it is used."""
    file = tmp_path / "odd.pt"
    content = checkpoint.load(run / "checkpoints" / "last.pt")
    changes, message = DAMAGED_STATES[damage]
    for key, value in changes.items():
        *groups, last = (int(name) if name.isdigit() else name for name in key.split("/"))
        place = functools.reduce(operator.getitem, groups, content)
        place[last] = value
        if value is ...:
            del place[last]
    checkpoint.save(file, {k: v for k, v in content.items() if k != "format"})
    assert again(run, "--resume", file, "--run.folder", tmp_path / "new") == 2
    line = one_line(capsys.readouterr().err)
    assert re.search(f"odd.pt: .*{message}", line), line
    assert "Traceback" not in line


def test_allowed_by_name_and_free(run: Path) -> None:
    """A longer run at another rate; how often it logs is nobody's business."""
    words = ["--train.epochs", 4, "--optim.lr", "2e-3", "--log.every_steps", 2]
    assert again(run, *words, "--resume.allow", "optim.lr", "train.epochs") == 0
    found = records(run)
    assert [r["step"] for r in found if "loss" in r] == [*range(1, 10), 10, 12]
    assert found[-1]["step"] == 12
    log = (run / "log.txt").read_text()
    assert "resumes with other settings: train.epochs 3, now 4; optim.lr 0.001, now 0.002" in log
    assert "log.every_steps 1, now 2" in log


def test_shards_that_changed_and_shards_that_moved(
    run: Path, packed: Path, tmp_path: Path, capsys: Shown
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(packed, moved)
    where = ["--data.train", moved, "--data.valid", moved]
    longer = ["--train.epochs", 4, "--resume.allow", "train.epochs"]
    assert again(run, *where, *longer) == 0
    shutil.rmtree(moved)
    source = write_kaggle(tmp_path / "source", {"valid": 12, "train": 48, "test": 12})
    pack(open_source(source), moved, PackOptions(samples_per_shard=20), workers=1)
    capsys.readouterr()
    assert again(run, *where, *longer) == 2
    line = one_line(capsys.readouterr().err)
    assert "step-00000012.pt was made with other settings: data.train, whose files have" in line
    assert "(--resume.allow data.train data.valid)" in line
    assert again(run, *longer) == 0, "the old ones are still where they were"
    assert again(run, *where, *longer, "data.train", "data.valid") == 0


def test_an_earlier_state_by_name(run: Path, finished: Path) -> None:
    """What came after it is set aside, so that no later start resumes from there."""
    early = run / "checkpoints" / "step-00000007.pt"
    assert again(run, "--resume", early, "--train.epochs", 3) == 0
    names = {file.name for file in (run / "checkpoints").iterdir()}
    assert {"step-00000008.pt.left", "step-00000009.pt.left"} <= names
    assert_same(run, finished)


def test_a_run_that_was_never_saved_begins_again(run: Path, finished: Path, capsys: Shown) -> None:
    shutil.rmtree(run / "checkpoints")
    assert again(run) == 0
    assert "no state to resume from; it begins again" in capsys.readouterr().err
    assert_same(run, finished)


def test_a_lost_run_keeps_its_newest_state(run: Path, capsys: Shown) -> None:
    """The loss becomes NaN; the states before stay."""
    words = ["--train.epochs", 9, "--optim.lr", "1e30", "--valid.every_steps", 100]
    words += ["--valid.every_epochs", "null", "--checkpoint.every_steps", 100]
    allowed = ["train.epochs", "optim.lr", "valid.every_steps", "valid.every_epochs"]
    assert again(run, *words, "--resume.allow", *allowed) == 1
    line = one_line(capsys.readouterr().err)
    assert "the loss is nan" in line
    assert "step-00000009.pt is the newest saved state" in line
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 9


def test_a_validation_that_fails_loses_no_step(packed: Path, tmp_path: Path, capsys: Shown) -> None:
    pairs = {"a.jpg": jpeg(1), "a.txt": b"x", "bad.jpg": b"no image", "bad.txt": b"y"}
    tar = write_tar(tmp_path / "bad.tar", pairs)
    file = configure(packed, tmp_path, "run", data__valid=str(tar), train__epochs=2)
    assert run_training(file) == 2
    assert "step 3: data.valid: bad.tar: bad: undecodable" in one_line(capsys.readouterr().err)
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 3
    assert run_training(file, "--data.valid", packed, "--resume.allow", "data.valid") == 0
    steps = [r["step"] for r in records(tmp_path / "run") if "loss" in r]
    assert steps == list(range(1, 7)), "no step was done twice"


WAYS: dict[str, dict[str, Any]] = {
    "adapters and average": {"lora": {"rank": 4}, "ema": {"decay": 0.9}},
    "layer decay": {"optim__image_layer_decay": 0.5, "loss": {"positives": "captions"}},
    "frozen images": {"optim__freeze": "image", "ema": {"decay": 0.9}},
    "balance": {"data__balance": "C0040405", "model__patch_dropout": 0.5},
    "studies": {"data__unit": "study"},
}


@pytest.mark.parametrize(
    "name", [n if "adapters" in n else pytest.param(n, marks=pytest.mark.slow) for n in WAYS]
)
def test_going_on_is_bit_for_bit(name: str, packed: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.tar", range(48), {n: ["C0040405"] for n in range(9)})

    def run(folder: str, *words: object) -> Path:
        kept = {"checkpoint": {"every_steps": 2, "keep_last": 9}, "train__epochs": 2}
        file = configure(packed, tmp_path, folder, **kept, **WAYS[name], data__train=str(pairs))
        assert run_training(file, *words) == 0
        return tmp_path / folder

    whole = run("whole")
    rest = run("rest", "--resume", whole / "checkpoints" / "step-00000002.pt")
    for kept in ("last", "ema") if "ema" in WAYS[name] else ("last",):
        assert same(weights(whole, kept), weights(rest, kept)), kept
    assert [r for r in measured(whole) if r["step"] > 2] == measured(rest)
