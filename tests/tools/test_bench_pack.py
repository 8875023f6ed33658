"""The benchmark of packing runs and cleans up; how fast anything is doesn't matter here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_dataset import write_kaggle

ROOT = Path(__file__).parents[2]


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", ROOT / "tools" / "bench.py", "pack", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_each_case_is_a_line(tmp_path: Path) -> None:
    source = write_kaggle(tmp_path / "source", {"train": 8, "valid": 1, "test": 1})
    few = ["--repeat", "4", "--rounds", "1", "--workers", "1", "--samples-per-shard", "16"]
    (tmp_path / "work").mkdir()
    done = bench("--source", source, "--folder", tmp_path / "work", *few)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["bench"], line["unit"]) for line in lines] == [
        ("pack", "images/s"),
        ("pack", "images/s"),
    ]
    assert all("40 images" in line["case"] and line["better"] > 0 for line in lines)
    assert lines[1]["fsync_s"] > 0
    assert list((tmp_path / "work").iterdir()) == []  # nothing is left


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "speed"], "allowed are decode, copy"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--workers", "0"], "each at least 1"),
        (["--folder", "/nowhere"], "--folder /nowhere: no such folder"),
        ([], "/nowhere: no such source folder"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], message: str) -> None:
    done = bench("--source", "/nowhere", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
