"""Interrupted and resumed == never interrupted; and a run goes on only as the run that it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import TINY, VIT
from test_checkpoint import Payload
from test_train import call, one_line, records, settings, write

from medclip_oc import checkpoint, evaluate, train, zeroshot
from medclip_oc.config import EvaluateConfig, TrainCommand, ZeroshotConfig
from medclip_oc.errors import DamagedCheckpoint

TIMED = ("pairs_per_second",)
DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.5}}


class Nursery:
    """See nursery.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, ranks: int, folder: Path, *words: object) -> list[int]:
        """Process ids of a training that begins; its stderr goes to FOLDER/rank0.txt and so on."""
        assert self.process.stdin is not None
        order = [[str(word) for word in words], ranks, processes.free_port(), str(folder)]
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> list[int]:
        assert self.process.stdout is not None
        found: list[int] = json.loads(self.process.stdout.readline())
        return found

    def train(self, ranks: int, folder: Path, *words: object) -> list[int]:
        """Exit codes of a training."""
        self.start(ranks, folder, *words)
        return self.answer()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    with one.process as process:
        yield one
    assert process.returncode == 0


def configure(packed: Path, folder: Path, name: str, **changes: Any) -> Path:
    """The configuration of a run FOLDER/NAME of 30 steps that saves at every second."""
    usual = {"checkpoint": {"every_steps": 2}, "valid": {"every_steps": 5}}
    tree = settings(packed, folder / name, **(usual | changes))
    return write(tree, folder / f"{name}.yaml")


def measured(run: Path) -> list[dict[str, Any]]:
    """The records, without what time decides."""
    return [{k: v for k, v in r.items() if k not in TIMED} for r in records(run)]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / f"{name}.pt")[
        "state_dict"
    ]
    return found


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in all depths."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


# ----------------------------------------------------------------------------- killed, resumed


def kill_and_resume(
    nursery: Nursery, config: Path, run: Path, *, kills: int, seed: int, ranks: int = 2
) -> int:
    """Run to the end, killing all ranks at random moments; returns how often it was killed."""
    rng = np.random.default_rng(seed)
    killed = 0
    for _ in range(kills):
        pids = nursery.start(ranks, config.parent, "--config", config)
        more = lines_of(run / "metrics.jsonl") + int(rng.integers(0, 4))
        wait_for(lambda more=more: lines_of(run / "metrics.jsonl") >= more or not alive(pids))
        time.sleep(float(rng.uniform(0, 0.3)))
        for pid in rng.permutation(pids).tolist():
            os.kill(pid, signal.SIGKILL)
        killed += set(nursery.answer()) == {-signal.SIGKILL}
    assert nursery.train(ranks, config.parent, "--config", config) == [0] * ranks
    return killed


def alive(pids: list[int]) -> bool:
    """Whether they run: they stay as zombies until the nursery has looked at all of them."""
    return all(Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" for pid in pids)


def check_kills(nursery: Nursery, packed: Path, folder: Path, kills: int) -> None:
    model = {"arch": "resume-dropout", "definition": DROPOUT}
    configs = [configure(packed, folder, name, model=model) for name in ("whole", "cut")]
    whole, cut = folder / "whole", folder / "cut"
    assert nursery.train(2, folder, "--config", configs[0]) == [0, 0]
    killed = kill_and_resume(nursery, configs[1], cut, kills=kills, seed=kills)
    assert killed >= kills - 1, "the last may come after the end"
    for name in ("last", "best"):
        assert same(weights(whole, name), weights(cut, name)), name
    one, two = (checkpoint.load(run / "checkpoints" / "last.pt") for run in (whole, cut))
    assert same(one["training"], two["training"])
    assert measured(whole) == measured(cut)
    assert not list(cut.glob("checkpoints/*.partial"))


@pytest.mark.slow
def test_killed_and_resumed_is_never_interrupted(
    nursery: Nursery, packed: Path, tmp_path: Path
) -> None:
    """Two ranks with dropout, killed five times: the same weights, state and records, bit by bit."""
    check_kills(nursery, packed, tmp_path, 5)


@pytest.mark.soak
def test_killed_twenty_times(nursery: Nursery, packed: Path, tmp_path: Path) -> None:
    check_kills(nursery, packed, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes(
    nursery: Nursery, packed: Path, tmp_path: Path, before: int, after: int
) -> None:
    """The same batches in the same order, and the losses of fp32 rounding."""
    whole = configure(packed, tmp_path, "whole", checkpoint={"keep_last": 99})
    assert nursery.train(before, tmp_path, "--config", whole) == [0] * before
    file = tmp_path / "whole" / "checkpoints" / "step-00000010.pt"
    other = configure(packed, tmp_path, "other")
    words = ("--config", other, "--resume", file)
    assert nursery.train(after, tmp_path, *words) == [0] * after
    one, two = (
        [r["loss"] for r in records(tmp_path / name) if "loss" in r and r["step"] > 10]
        for name in ("whole", "other")
    )
    assert len(one) == len(two) == 20
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)
