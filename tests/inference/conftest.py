"""An index that is searched by commands and by the page."""

from pathlib import Path

import pytest

from medclip_oc import embed
from medclip_oc.config.inference import EmbedConfig
from tests.support.cli import call


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, packed: Path) -> Path:
    """Of the 48 training pairs of `packed`, in three shards."""
    out = tmp_path_factory.mktemp("index") / "train"
    words = ["--checkpoint", tiny_checkpoint, "--data", packed, "--split", "train", "--out", out]
    assert call(embed.main, EmbedConfig, *words, "--dtype", "float32", "--batch-size", 10) == 0
    return out
