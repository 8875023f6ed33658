"""Signals and faults: what a run leaves behind, and what it says."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medclip_oc import train
from medclip_oc.config.schema import TrainCommand
from medclip_oc.models import checkpoint
from tests.support.cli import call, one_line, records, settings, write
from tests.support.interrupted import (
    Nursery,
    alive,
    configure,
    lines_of,
    measured,
    same,
    wait_for,
    weights,
)

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
def test_a_signal_to_one_rank_stops_all_with_everything_saved(
    nursery: Nursery, packed: Path, tmp_path: Path
) -> None:
    """Each of the three signals, and one that its loader process gets as well."""
    config = configure(packed, tmp_path, "run", data__workers=1, checkpoint={"every_minutes": None})
    run = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        pids = nursery.start(2, tmp_path, "--config", config)
        begun = lines_of(run / "metrics.jsonl")
        wait_for(lambda begun=begun: lines_of(run / "metrics.jsonl") >= begun + 2)
        children = Path(f"/proc/{pids[1]}/task/{pids[1]}/children").read_text().split()
        for pid in (*map(int, children), pids[1]):
            os.kill(pid, number)
        assert nursery.answer() == [75, 75]
        said = "".join((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
        assert said.count("\ntrain: ") + said.startswith("train: ") == 1
        assert "and saved; the same command goes on from there" in said
        step = measured(run)[-1]["step"]
        assert f"stopped after step {step} of 30" in (run / "interrupted").read_text()
        assert checkpoint.load(run / "checkpoints" / "last.pt")["step"] == step
    assert nursery.train(2, tmp_path, "--config", config) == [0, 0]
    assert not (run / "interrupted").exists()
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 31))


@pytest.mark.usefixtures("_handlers")
def test_a_signal_in_the_middle_of_a_validation(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left after the batch, and done again by the run that goes on; nothing else changes."""
    from medclip_oc.evaluation import features

    whole = configure(packed, tmp_path, "whole", train__epochs=4)
    assert call(train.main, TrainCommand, "--config", whole) == 0
    cut = configure(packed, tmp_path, "cut", train__epochs=4)
    loader, batches = features.loader, list[int]()

    def interrupting(*words: Any, **named: Any) -> Iterator[Any]:
        for loaded in loader(*words, **named):
            batches.append(len(loaded.batch["index"]))
            if len(batches) == 5:  # of three a validation: the second one's second
                os.kill(os.getpid(), signal.SIGTERM)
            yield loaded

    monkeypatch.setattr(features, "loader", interrupting)
    assert call(train.main, TrainCommand, "--config", cut) == 75
    assert len(batches) == 5
    state = checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")
    assert not state["training"]["validated"]
    assert call(train.main, TrainCommand, "--config", cut) == 0
    assert measured(tmp_path / "whole") == measured(tmp_path / "cut")
    for name in ("last", "best"):
        assert same(weights(tmp_path / "whole", name), weights(tmp_path / "cut", name))


def test_a_second_interrupt_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from medclip_oc.runtime import shutdown as signals\n"
        "with signals.noticed() as notice:\n"
        "    assert not notice.given()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert notice.name == 'SIGINT'\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert notice.name == 'SIGINT'\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# -------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_a_rank_that_dies_or_hangs_ends_all(nursery: Nursery, packed: Path, tmp_path: Path) -> None:
    config = configure(packed, tmp_path, "run", train__epochs=1000)
    run, words = tmp_path / "run", ("--run.timeout_seconds", 4)
    for number, said in (
        (signal.SIGKILL, "another rank ended"),
        (signal.SIGSTOP, "another rank did not answer for 4 s (run.timeout_seconds)"),
    ):
        pids = nursery.start(2, tmp_path, "--config", config, *words)
        begun = lines_of(run / "metrics.jsonl")
        wait_for(lambda begun=begun: lines_of(run / "metrics.jsonl") >= begun + 4)
        os.kill(pids[1], number)
        wait_for(lambda pids=pids: not alive(pids[:1]))
        if number == signal.SIGSTOP:  # the launcher would, 30 s later
            os.kill(pids[1], signal.SIGKILL)
        assert nursery.answer() == [1, -signal.SIGKILL]
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
        wait_for(lambda: lines_of(run / "metrics.jsonl") >= 5)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
        os.kill(int(children.split()[-1]), signal.SIGKILL)
        assert launcher.stderr is not None
        said = launcher.stderr.read()
    assert launcher.returncode == 0, said
    assert "goes on from" in said
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 16))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=36m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(
    small_disk: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cause is named, what was saved stays, and the run goes on once there is room."""
    tree = settings(packed, small_disk / "run", checkpoint={"every_steps": 10})
    config = write(tree, tmp_path / "config.yaml")
    assert call(train.main, TrainCommand, "--config", config) == 1
    line = one_line(capsys.readouterr().err)
    assert "could not be written (No space left on device)" in line
    folder = small_disk / "run" / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == [
        "best.pt",
        "last.pt",
        "step-00000010.pt",
    ]
    assert checkpoint.load(folder / "last.pt")["step"] == 10
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert call(train.main, TrainCommand, "--config", config) == 0
    assert [r["step"] for r in records(small_disk / "run") if "loss" in r] == list(range(1, 31))


@pytest.mark.slow
def test_a_run_folder_that_goes_away(nursery: Nursery, packed: Path, tmp_path: Path) -> None:
    config = configure(packed, tmp_path, "run", train__epochs=1000)
    nursery.start(1, tmp_path, "--config", config)
    wait_for(lambda: lines_of(tmp_path / "run" / "metrics.jsonl") >= 4)
    (tmp_path / "run").rename(tmp_path / "gone")  # at once, where removing takes a while
    assert nursery.answer() == [1]
    shown = (tmp_path / "rank0.txt").read_text()
    assert "checkpoints" in shown.splitlines()[-1]
    assert "No such file or directory" in shown.splitlines()[-1]
    assert "Traceback" not in shown
