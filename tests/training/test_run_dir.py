"""One process at a time trains in a folder, and one that was killed keeps nobody out."""

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from medclip_oc.errors import InputError
from medclip_oc.training import run_dir
from medclip_oc.training.run_dir import RunFolder
from tests.support.cli import one_line, records, run_training
from tests.support.interrupted import configure, fork_server, wait_for
from tests.support.processes import start

Shown = pytest.CaptureFixture[str]


def test_two_trainings_in_one_folder(packed: Path, tmp_path: Path, capsys: Shown) -> None:
    """The second is refused and changes nothing; it may once the first is gone."""
    config, run = configure(packed, tmp_path, "run", train__epochs=1000), tmp_path / "run"
    [pid] = fork_server.begin(config, 1, 2)
    for words in ([], ["--run.overwrite"]):
        assert run_training(config, *words) == 2
        holder = f"process {pid} on {socket.gethostname()}"
        assert f"run.folder: {run} is in use by {holder}" in one_line(capsys.readouterr().err)
    os.kill(pid, signal.SIGKILL)
    assert fork_server.answer() == [-signal.SIGKILL]
    assert (run / "in_use").exists()
    (run / "notes.txt").write_text("mine")
    words = ["--run.overwrite", "--train.epochs", "1"]
    assert run_training(config, *words) == 0
    assert [r["step"] for r in records(run) if "loss" in r] == [1, 2, 3]
    assert not (run / "in_use").exists()
    assert (run / "notes.txt").read_text() == "mine"


def hold(path: Path) -> None:
    with ExitStack() as opened:
        RunFolder(path).hold(opened)
        time.sleep(60)


@pytest.mark.slow
def test_a_process_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    """It holds the folder as long as it gives a sign of life."""
    monkeypatch.setattr(run_dir, "LEASE_SECONDS", 8.0)
    [holder] = start(hold, 1, tmp_path).processes
    marker = tmp_path / "in_use"
    wait_for(lambda: marker.exists() and "start=" in marker.read_text("utf-8"))
    marker.write_text(re.sub("host=.*", "host=node7", marker.read_text("utf-8")), "utf-8")
    with ExitStack() as opened:
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on node7"):
            RunFolder(tmp_path).hold(opened)
        assert "in_use: of node7; waits 12 s for its end" in capsys.readouterr().err
        holder.kill()
        holder.join()
        RunFolder(tmp_path).hold(opened)
        assert f"pid={os.getpid()}\n" in marker.read_text()


def test_a_folder_that_was_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LEASE_SECONDS", 0.3)
    folder = RunFolder(tmp_path)
    with ExitStack() as opened:
        folder.hold(opened)
        assert folder.lost() is None
        (tmp_path / "in_use").unlink()
        wait_for(lambda: folder.lost() is not None)
    assert "could not be held" in str(folder.lost())
