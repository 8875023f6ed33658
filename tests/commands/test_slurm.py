"""jobs/multinode.sh on a real Slurm: two nodes on this machine, each with a slurmd of its own."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import ROOT, records, write_config
from tests.support.slurm import Slurm, Unavailable

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


def submit(slurm: Slurm, log: Path, *words: object) -> str:
    """The id of a job on two nodes, each with one "GPU" that torch doesn't see."""
    slurm.environment |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    slurm.environment |= {"WANDB_MODE": "offline"}
    how = ["--parsable", f"--chdir={ROOT}", f"--output={log}"]
    how += ["--gpus-per-node=1", "--cpus-per-task=1"]
    return slurm.run("sbatch", *how, ROOT / "jobs" / "multinode.sh", *words)


def wait_for(holds: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < end, log.read_text("utf-8") if log.exists() else "not begun"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_job_is_warned_requeued_and_goes_on_to_its_end(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    """The signal that Slurm sends before the time is up, at once and later; then the rest of the
    run, in the folder that was named, and the test.
    """
    run, log = tmp_path / "run", tmp_path / "job.log"
    config = write_config(packed, tmp_path, "not", train__epochs=20)
    job = submit(slurm, log, "--config", config, "--run.folder", run)

    def steps() -> list[int]:
        there = (run / "metrics.jsonl").exists()
        return [r["step"] for r in records(run) if "loss" in r] if there else []

    wait_for(lambda: slurm.field(job, "JobState") == "RUNNING", log)
    slurm.run("scancel", "--signal=USR1", "--batch", job)  # nothing of the run can hear it yet
    wait_for(lambda: slurm.field(job, "Restarts") == "1", log)
    assert steps() == [1], "it is obeyed after the first step"
    wait_for(lambda: len(steps()) >= 4, log)
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: slurm.field(job, "Restarts") == "2", log)
    stopped = len(steps())
    assert stopped < 60
    wait_for(lambda: slurm.field(job, "JobState") in ENDED, log)
    text = log.read_text("utf-8")
    assert slurm.field(job, "JobState") == "COMPLETED", text
    assert steps() == list(range(1, 61))
    assert f"run folder {run}" in text
    assert "2 process(es) on cpu" in text
    for step in (1, stopped):
        assert f"SIGUSR1: stopped after step {step} of 60, and saved; back into the queue" in text
        assert f"step-{step:08}.pt, step {step} of 60" in text
    assert "Traceback" not in text.partition("SIGUSR1: stopped")[0]
    assert not (run / "interrupted").exists()
    record = json.loads((run / "evaluations" / "best-test.json").read_text())
    assert (record["pool"], record["split"]) == (12, "test")


@pytest.mark.slow
def test_a_job_that_gets_no_further_is_not_requeued(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    """Though an earlier attempt left its marker; it ended with exit code 2, and torchrun's is 1."""
    run, log = tmp_path / "run", tmp_path / "job.log"
    run.mkdir()
    (run / "interrupted").write_text("SIGUSR1: stopped after step 3 of 60, and saved\n")
    config = write_config(packed, tmp_path, "not")
    job = submit(slurm, log, f"--run.folder={run}", "--config", config, "--data.train", "gone")
    wait_for(lambda: slurm.field(job, "JobState") in ENDED, log)
    text = log.read_text("utf-8")
    states = [slurm.field(job, name) for name in ("JobState", "Restarts")]
    assert states == ["FAILED", "0"], text  # its code may be that of the node that srun ended
    assert text.count("data.train: gone: no such shard folder") == 1
    assert not (run / "interrupted").exists()
