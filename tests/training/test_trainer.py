"""A run that goes well, and one that signals and faults interrupt: what it leaves and says."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc.data import dataset
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import WorkError
from medclip_oc.models import checkpoint
from medclip_oc.runtime.shutdown import StopRequest
from medclip_oc.training.trainer import Trainer
from tests.support.cli import one_line, read_config, records, run_training, write_config
from tests.support.interrupted import (
    alive,
    children,
    configure,
    fork_server,
    measured,
    same,
    steps_of,
    wait_for,
    weights,
)
from tests.support.reference import ONE

Shown = pytest.CaptureFixture[str]

# --------------------------------------------------------------------------- a run that goes well


def test_records_of_every_step(finished: Path) -> None:
    steps = [r for r in records(finished) if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 10))
    names = {"step", "loss", "lr", "temperature", "grad_norm", "pairs_per_second"}
    assert all(r.keys() == names for r in steps)
    rates = [1e-3 * 0.5 * (1 + cos(pi * n / 8)) for n in range(8)]  # a tenth of 9 steps warms up
    assert [r["lr"] for r in steps] == pytest.approx([1e-3, *rates])
    assert all(0.06 < r["temperature"] < 0.08 for r in steps), "CLIP's starts at 0.07"
    assert all(1 < r["pairs_per_second"] < 100_000 for r in steps)
    log = (finished / "log.txt").read_text()
    assert "48 training pairs, 9 steps (3.0 per epoch)" in log
    assert f"step 9/9  loss {steps[-1]['loss']:.4g}  lr " in log


def test_a_step_has_its_rate_and_a_clipped_gradient(packed: Path, tmp_path: Path) -> None:
    optim = {"lr": 1e-3, "image_lr": 4e-3, "clip_norm": 0.5, "warmup_steps": 4}
    config = read_config(write_config(packed, tmp_path, optim=optim))
    with ExitStack() as opened:
        trainer = Trainer(config, ONE, StopRequest(), opened)
        trainer.progress.step = 3
        values = trainer.optimizer_step(next(iter(trainer.batches)))
        parameters = list(trainer.clip.towers.parameters())
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        assert values["grad_norm"] > 1, "that of before"
        assert float(norm) == pytest.approx(0.5, rel=1e-4)
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.75e-3, 3e-3}
        assert values["lr"] == 0.75e-3


def test_validation_and_the_best_checkpoint(finished: Path) -> None:
    """Each epoch of 3 steps, each fifth step, and the end."""
    scores = {
        r["step"]: r["valid/mean_recall"] for r in records(finished) if "valid/mean_recall" in r
    }
    assert list(scores) == [3, 5, 6, 9]
    best, last = (checkpoint.load(finished / "checkpoints" / f"{n}.pt") for n in ("best", "last"))
    highest = max(scores.values())
    assert scores[best["step"]] == best["metrics"]["mean_recall"] == highest
    assert last["training"]["best"] == highest
    assert (last["step"], last["position"], last["epoch"]) == (9, 144, 3)
    file = finished / "checkpoints" / "best.pt"
    said = (
        f"done: best valid/mean_recall {highest:.4f} in {file}; next: python -m medclip_oc.evaluate"
    )
    assert (finished / "log.txt").read_text().endswith(f"{said} --checkpoint {file}\n")


def test_what_another_folder_has_is_not_named(finished: Path, tmp_path: Path) -> None:
    """Its best was before the state that this one resumed from, and no step is left."""
    config = finished.with_suffix(".yaml")
    last = finished / "checkpoints" / "last.pt"
    assert run_training(config, "--run.folder", tmp_path / "new", "--resume", last) == 0
    log = (tmp_path / "new" / "log.txt").read_text()
    assert re.search("done: no step was left .best .* came before this folder, so no best.pt", log)


def test_without_validation_nothing_is_best(packed: Path, tmp_path: Path) -> None:
    changes = {"data__valid": None, "train__epochs": 1, "log": {"every_steps": 2}}
    changes["valid"] = {"patience": 1}
    config = configure(packed, tmp_path, "run", **changes)
    assert run_training(config) == 0
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search("last.pt .no validation .*evaluate --checkpoint .*last.pt --data SHARDS", log)
    assert "data.valid is null: valid.patience and wise.alphas have no effect" in log


# ------------------------------------------------------------------------------------- signals


@pytest.fixture
def _handlers() -> Iterator[None]:
    """A run that was stopped leaves its handlers, as its process ends; this one goes on."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_with_everything_saved(packed: Path, tmp_path: Path) -> None:
    """Each of the three signals, and one that its loader process gets as well."""
    config = configure(packed, tmp_path, "run", data__workers=1, checkpoint={"every_minutes": None})
    run = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        pids = fork_server.begin(config, 2, 2)
        for pid in (*children(pids[1]), pids[1]):
            os.kill(pid, number)
        codes = fork_server.answer()
        said = "".join((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
        assert codes == [75, 75], said
        assert said.count("\ntrain: ") + said.startswith("train: ") == 1
        assert "and saved; the same command resumes it" in said
        step = measured(run)[-1]["step"]
        assert f"stopped after step {step} of 30" in (run / "interrupted").read_text()
        assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == step
    assert fork_server.train(2, tmp_path, "--config", config) == [0, 0]
    assert not (run / "interrupted").exists()
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 31))


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(("last", "step"), [(2, 0), (5, 3)])
def test_a_signal_in_the_middle_of_a_validation(
    last: int, step: int, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left after the batch, and done again by the run that resumes; nothing else changes."""
    from medclip_oc.evaluation import features

    quick = {"train__epochs": 2, "valid": {"at_start": True}, "checkpoint": {"every_steps": 5}}
    whole = configure(packed, tmp_path, "whole", **quick)
    assert run_training(whole) == 0
    cut = configure(packed, tmp_path, "cut", **quick)
    load_batches, batches = features.load_batches, list[int]()

    def interrupting(*words: Any, **named: Any) -> Iterator[Any]:
        for loaded in load_batches(*words, **named):
            batches.append(len(loaded.batch["index"]))
            if len(batches) == last:  # of three a validation: the second
                os.kill(os.getpid(), signal.SIGTERM)
            yield loaded

    monkeypatch.setattr(features, "load_batches", interrupting)
    assert run_training(cut) == 75
    assert len(batches) == last
    state = checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert (state["step"], state["training"]["validated"]) == (step, False)
    assert run_training(cut) == 0
    assert measured(tmp_path / "whole") == measured(tmp_path / "cut")
    for name in ("last", "best"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "cut", name))


@pytest.mark.usefixtures("_handlers")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12's, beside a thread
def test_a_signal_ends_the_wait_for_a_batch_that_never_comes(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loader process that hangs; the steps before are saved."""
    config, run = configure(packed, tmp_path, "run", data__workers=1), tmp_path / "run"
    read, own = ShardSet.read, os.getpid()

    def hang(self: ShardSet, position: int, **how: bool) -> Any:
        if os.getpid() != own and steps_of(run) >= 2:
            os.kill(own, signal.SIGTERM)
            signal.pause()
        return read(self, position, **how)

    monkeypatch.setattr(ShardSet, "read", hang)
    monkeypatch.setattr(dataset, "PATIENCE_SECONDS", 0.5)
    assert run_training(config) == 75
    steps = steps_of(run)
    assert 2 <= steps < 30
    assert f"SIGTERM: stopped after step {steps} of 30" in (run / "interrupted").read_text()
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == steps


# -------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_a_rank_that_dies_or_hangs_ends_all(packed: Path, tmp_path: Path) -> None:
    config = configure(packed, tmp_path, "run", train__epochs=1000)
    words = ("--run.timeout_seconds", 4)
    for number, said in (
        (signal.SIGKILL, "another rank ended"),
        (signal.SIGSTOP, "another rank did not answer for 4 s (run.timeout_seconds)"),
    ):
        pids = fork_server.begin(config, 2, 4, *words)
        os.kill(pids[1], number)
        wait_for(lambda pids=pids: not alive(pids[:1]))
        if number == signal.SIGSTOP:  # the launcher would, 30 s later
            os.kill(pids[1], signal.SIGKILL)
        assert fork_server.answer() == [1, -signal.SIGKILL]
        shown = (tmp_path / "rank0.txt").read_text()
        assert f"\ntrain: {said}" in shown
        assert "Traceback" not in shown


@pytest.mark.slow
def test_torchrun_restarts_from_the_newest_checkpoint(packed: Path, tmp_path: Path) -> None:
    config = configure(packed, tmp_path, "run", checkpoint={"every_steps": 1}, train__epochs=5)
    run = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["--max-restarts", "1", "-m", "medclip_oc.train", "--config", str(config)]
    # what would begin the run anew is meant for the first start alone
    words += ["--run.overwrite", "true", "--resume", "never"]
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        wait_for(lambda: steps_of(run) >= 5)
        os.kill(children(launcher.pid)[-1], signal.SIGKILL)
        assert launcher.stderr is not None
        said = launcher.stderr.read()
    assert launcher.returncode == 0, said
    assert "resumes from" in said
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 16))


@pytest.mark.slow
def test_no_room_in_shared_memory(packed: Path, tmp_path: Path) -> None:
    """The doctor finds it; the run ends in one line, where it met tracebacks and waited."""
    config = configure(packed, tmp_path, "run", data__workers=4)
    alone = ["unshare", "--mount", "sh", "-c"]
    small = 'mount -t tmpfs -o size=100k tmpfs /dev/shm && exec "$@"'
    if subprocess.run([*alone, small, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    for words, said in (
        (["--doctor"], "error: data.workers: 4 on 1 rank(s) hold up to"),
        ([], "loader processes find no room in /dev/shm: take fewer data.workers"),
    ):
        command = [sys.executable, "-m", "medclip_oc.train", "--config", config, *words]
        done = subprocess.run([*alone, small, "sh", *command], capture_output=True, text=True)
        assert done.returncode == 1
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_what_checkpoints_take_is_told(finished: Path) -> None:
    """What is estimated is what a run leaves, and a state while it is written."""
    files = {f.name: f.stat().st_size for f in finished.glob("checkpoints/*.pt")}
    log = (finished / "log.txt").read_text()
    needed = 1e9 * float(log.partition("checkpoints take up to ")[2].split()[0])
    del files["last.pt"]  # another name of one of them
    assert needed == pytest.approx(sum(files.values()) + files["step-00000009.pt"], rel=0.02)
    assert "the training paused for" in log


def test_too_small_a_disk_is_said_at_the_start(
    packed: Path, tmp_path: Path, capsys: Shown, monkeypatch: Any
) -> None:
    usage, config = shutil.disk_usage("/"), configure(packed, tmp_path, "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert run_training(config) == 2
    assert "has 0.001 GB free, and the checkpoints need" in one_line(capsys.readouterr().err)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_full_disk(packed: Path, tmp_path: Path, capsys: Shown, monkeypatch: Any) -> None:
    """The cause is named, what was saved stays, and the run goes on once there is room."""
    config, run = configure(packed, tmp_path, "run", train__epochs=2), tmp_path / "run"
    save = checkpoint.save

    def full(file: Path, content: dict[str, Any]) -> int:
        if content["step"] == 4:
            raise WorkError(f"{file}: can't be written (No space left on device)")
        return save(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        assert run_training(config) == 1
    assert "step-00000004.pt: can't be written (No space" in one_line(capsys.readouterr().err)
    assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == 3
    assert run_training(config) == 0
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 7))
