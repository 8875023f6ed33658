"""A trained run that tests share."""

from pathlib import Path

import pytest

from tests.support.cli import run_training
from tests.support.interrupted import configure


@pytest.fixture(scope="session")
def finished(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 epochs, 9 steps, with a state after each: RUN beside its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    kept = {"every_steps": 1, "keep_last": 3}
    file = configure(packed, folder, "run", train__epochs=3, checkpoint=kept)
    assert run_training(file) == 0
    return folder / "run"
