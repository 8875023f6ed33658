"""jobs/multinode.sh on a real Slurm: two nodes on this machine, each with a slurmd of its own."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import records, settings, write
from tests.support.slurm import Slurm, Unavailable

ROOT = Path(__file__).parents[2]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own is too long for a socket
    try:
        cluster = Slurm(folder)
    except Unavailable as error:
        shutil.rmtree(folder)
        pytest.skip(f"no Slurm here: {error}")
    yield cluster
    cluster.close()
    shutil.rmtree(folder)


class Job:
    """`sbatch jobs/multinode.sh` on two nodes, each with one "GPU" that torch doesn't see."""

    def __init__(
        self, slurm: Slurm, shards: Path, folder: Path, *options: str, **changes: Any
    ) -> None:
        self.slurm, self.run, self.log = slurm, folder / "run", folder / "job.log"
        config = write(settings(shards, self.run, **changes), folder / "config.yaml")
        slurm.environment |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "RUN_FOLDER": str(self.run),
            "WANDB_MODE": "offline",
        }
        words = ["--parsable", f"--chdir={ROOT}", f"--output={self.log}", *options]
        words += ["--gpus-per-node=1", "--cpus-per-task=1"]
        script = ROOT / "jobs" / "multinode.sh"
        self.number = slurm.run("sbatch", *words, script, "--config", config)

    def wait_for(self, holds: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.text()
            time.sleep(0.2)

    def steps(self) -> list[int]:
        there = (self.run / "metrics.jsonl").exists()
        return [r["step"] for r in records(self.run) if "loss" in r] if there else []

    def end(self, seconds: float = 120) -> str:
        """How the job ended."""
        self.wait_for(lambda: self.slurm.field(self.number, "JobState") in ENDED, seconds)
        return self.slurm.field(self.number, "JobState")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.mark.slow
def test_a_job_is_warned_requeued_and_goes_on_to_its_end(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    """The signal that Slurm sends before the time is up; then the rest of the run, and the test."""
    job = Job(slurm, packed, tmp_path, train__epochs=20)
    job.wait_for(lambda: len(job.steps()) >= 4)
    slurm.run("scancel", "--signal=USR1", "--batch", job.number)
    job.wait_for(lambda: slurm.field(job.number, "Restarts") == "1")
    stopped = len(job.steps())
    assert stopped < 60
    assert job.end() == "COMPLETED", job.text()
    assert job.steps() == list(range(1, 61))
    text = job.text()
    assert "2 process(es) on cpu" in text
    assert f"SIGUSR1: stopped after step {stopped} of 60, and saved; back into the queue" in text
    assert f"step-{stopped:08}.pt, step {stopped} of 60" in text
    assert "Traceback" not in text.partition("SIGUSR1: stopped")[0]
    assert not (job.run / "interrupted").exists()
    record = json.loads((job.run / "evaluations" / "best-test.json").read_text())
    assert (record["pool"], record["split"]) == (12, "test")


@pytest.mark.slow
def test_a_node_that_dies_ends_the_job_with_the_reason(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    job = Job(slurm, packed, tmp_path, "--no-requeue", train__epochs=1000)
    job.wait_for(lambda: len(job.steps()) >= 4)
    slurm.kill_node("n2")
    assert job.end() == "NODE_FAIL"
    # Slurm, which names the node, or our other rank, whichever is first: Slurm ends that as well
    said = ("Node failure on n2", "DUE TO NODE FAILURE", "medclip_oc.train: another rank ended")
    assert any(words in job.text() for words in said), job.text()
    slurm.start_node("n2")


@pytest.mark.soak
def test_a_short_time_limit_and_preemption(slurm: Slurm, packed: Path, tmp_path: Path) -> None:
    """Two minutes at a time are too few: the job goes back into the queue until it is done."""
    options = ("--time=2", "--signal=B:USR1@60")
    job = Job(slurm, packed, tmp_path, *options, train__epochs=800, valid__every_epochs=400)
    assert job.end(1200) == "COMPLETED", job.text()
    assert int(slurm.field(job.number, "Restarts")) >= 1
    assert job.steps() == list(range(1, 2401))
    assert (job.run / "evaluations" / "best-test.json").exists()
