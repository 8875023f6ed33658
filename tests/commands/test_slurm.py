"""jobs/multinode.sh on a real Slurm: two nodes on this machine, each with a slurmd of its own."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.mark.slow
def test_a_job_is_warned_requeued_and_goes_on_to_its_end(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    """The signal that Slurm sends before the time is up; then the rest of the run, and the test.

    `sbatch jobs/multinode.sh` on two nodes, each with one "GPU" that torch doesn't see.
    """
    run, log = tmp_path / "run", tmp_path / "job.log"
    config = write(settings(packed, run, train__epochs=20), tmp_path / "config.yaml")
    slurm.environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    slurm.environment |= {"RUN_FOLDER": str(run), "WANDB_MODE": "offline"}
    words = ["--parsable", f"--chdir={ROOT}", f"--output={log}"]
    words += ["--gpus-per-node=1", "--cpus-per-task=1"]
    job = slurm.run("sbatch", *words, ROOT / "jobs" / "multinode.sh", "--config", config)

    def wait_for(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end, log.read_text() if log.exists() else "not begun"
            time.sleep(0.2)

    def steps() -> list[int]:
        there = (run / "metrics.jsonl").exists()
        return [r["step"] for r in records(run) if "loss" in r] if there else []

    wait_for(lambda: len(steps()) >= 4)
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: slurm.field(job, "Restarts") == "1")
    stopped = len(steps())
    assert stopped < 60
    wait_for(lambda: slurm.field(job, "JobState") in ENDED)
    text = log.read_text()
    assert slurm.field(job, "JobState") == "COMPLETED", text
    assert steps() == list(range(1, 61))
    assert "2 process(es) on cpu" in text
    assert f"SIGUSR1: stopped after step {stopped} of 60, and saved; back into the queue" in text
    assert f"step-{stopped:08}.pt, step {stopped} of 60" in text
    assert "Traceback" not in text.partition("SIGUSR1: stopped")[0]
    assert not (run / "interrupted").exists()
    record = json.loads((run / "evaluations" / "best-test.json").read_text())
    assert (record["pool"], record["split"]) == (12, "test")
