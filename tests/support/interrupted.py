"""Runs that are interrupted on purpose, and what is compared of them."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medclip_oc import train
from medclip_oc.config.schema import TrainCommand
from medclip_oc.models import checkpoint
from medclip_oc.runtime import command
from tests.support import processes
from tests.support.cli import records, write_config

TRAIN = (train.main, TrainCommand)


def _enter(folder: Path, words: list[str], main: Callable[..., Any], config: type) -> None:
    rank = os.environ.get("RANK", "0")
    for number, name, kind in ((1, "stdout", "out"), (2, "stderr", "txt")):
        log = (folder / f"rank{rank}.{kind}").open("w", buffering=1)
        os.dup2(log.fileno(), number)
        setattr(sys, name, log)
    command.run(main, config, prog=main.__module__.rpartition(".")[2], arguments=words)


class ForkServer:
    """Training processes that start in a moment, by a fork: none imports torch anew, as torchrun's
    do, and a test that kills many waits for none. Their exit codes: -9: killed.
    """

    running: list[Any] = []  # noqa: RUF012

    def start(
        self, ranks: int, folder: Path, *words: object, command: tuple[Any, type] = TRAIN
    ) -> list[int]:
        """Process ids of a training, or of another command, that begins; FOLDER/rank0.out has its
        stdout, rank0.txt its stderr, and so on.
        """
        for process in self.running:  # a test failed, and left them
            process.kill()
        given = (folder, list(map(str, words)), *command)
        self.running = processes.start(_enter, ranks, *given).processes
        return [process.pid for process in self.running]

    def begin(self, config: Path, ranks: int, steps: int, *words: object) -> list[int]:
        """The same, once the run beside its configuration has done so many more steps."""
        run = config.with_suffix("")
        more = steps_of(run) + steps
        pids = self.start(ranks, config.parent, "--config", config, *words)
        wait_for(lambda: steps_of(run) >= more or not alive(pids))
        return pids

    def answer(self) -> list[int]:
        """Exit codes, once all have ended."""
        for process in self.running:
            process.join()
        codes, self.running = [process.exitcode for process in self.running], []
        return codes

    def train(self, ranks: int, folder: Path, *words: object) -> list[int]:
        """Exit codes of a training."""
        self.start(ranks, folder, *words)
        return self.answer()


fork_server = ForkServer()


def configure(packed: Path, folder: Path, name: str, **changes: Any) -> Path:
    """The configuration of a run FOLDER/NAME of 30 steps that saves at every second."""
    usual = {"checkpoint": {"every_steps": 2}, "valid": {"every_steps": 5}}
    return write_config(packed, folder, name, **(usual | changes))


def measured(run: Path) -> list[dict[str, Any]]:
    """The records, without what time decides."""
    return [{k: v for k, v in r.items() if k != "pairs_per_second"} for r in records(run)]


def weights(run: Path, name: str = "last") -> Any:
    return checkpoint.load(run / "checkpoints" / f"{name}.pt")["state_dict"]


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in all depths."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def steps_of(run: Path) -> int:
    """Lines of its metrics.jsonl."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def children(pid: int) -> list[int]:
    """Process ids, the oldest first."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return list(map(int, text.split()))


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


def alive(pids: list[int]) -> bool:
    """Whether all of them run."""
    try:
        return all(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z" for pid in pids
        )
    except FileNotFoundError:
        return False
