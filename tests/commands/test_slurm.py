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
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}


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

    def __init__(self, slurm: Slurm, shards: Path, folder: Path, **changes: Any) -> None:
        self.slurm, self.run, self.log = slurm, folder / "run", folder / "job.log"
        config = write(settings(shards, self.run, **changes), folder / "config.yaml")
        slurm.environment |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "RUN_FOLDER": str(self.run),
            "WANDB_MODE": "offline",
        }
        words = ["--parsable", f"--chdir={ROOT}", f"--output={self.log}"]
        words += ["--gpus-per-node=1", "--cpus-per-task=1"]
        script = ROOT / "jobs" / "multinode.sh"
        self.number = slurm.run("sbatch", *words, script, "--config", config)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end, self.text()
            time.sleep(0.2)

    def steps(self) -> list[int]:
        there = (self.run / "metrics.jsonl").exists()
        return [r["step"] for r in records(self.run) if "loss" in r] if there else []

    def end(self) -> str:
        """How the job ended."""
        self.wait_for(lambda: self.slurm.field(self.number, "JobState") in ENDED)
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
