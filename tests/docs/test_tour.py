"""docs/tour.ipynb runs as it stands, and is kept without its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.cli import ROOT

BOOK = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)


def test_it_is_short_and_without_outputs() -> None:
    assert len(BOOK.cells) == 15
    code = [cell for cell in BOOK.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it works
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = NotebookClient(BOOK, timeout=900, kernel_name="python3").execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3  # one, and two maps
    [page] = tmp_path.glob("tour*/runs/tour/report.html")
    assert page.read_text(encoding="utf-8").count("Relevance map") >= 12
