"""`make` takes a Python that fits, and says so of one, or of a .venv, that doesn't."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
OURS, OLD = f'exec "{sys.executable}" "$@"', "exit 1"  # as a Python 3.9 answers


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("named", "venv", "error"),
    [
        (OURS, OURS, ""),
        (None, OURS, ""),
        (OLD, None, "make: needs Python 3.11, 3.12 or 3.13, not './a b/python'; name one"),
        (OURS, OLD, "make: .venv is of another Python; remove it"),
    ],
)
def test_python(named: str | None, venv: str | None, error: str, tmp_path: Path) -> None:
    for file, text in (("a b/python", named), (".venv/bin/python", venv)):
        if text is not None:
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / file).chmod(0o755)
    words = ["make", "--silent", "-f", str(MAKEFILE), "python"]
    words += ["PYTHON=./a b/python"] if named else []
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.startswith(error)
    assert bool(done.returncode) == bool(error), done.stderr
