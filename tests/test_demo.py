"""What `make demo` rests on: nobody solves its task without learning. It checks the rest itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medclip_oc import command, evaluate, feed, metrics, model
from medclip_oc.config import Config
from medclip_oc.distributed import World
from medclip_oc.packing import PackOptions, pack
from medclip_oc.shards import ShardSet
from medclip_oc.source_forms import open_source

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The demo's 300 test pairs; they are the same whatever is drawn for training."""
    folder = tmp_path_factory.mktemp("phantoms")
    words = ["--out", str(folder / "source"), "--train", "1", "--valid", "1"]
    subprocess.run([sys.executable, ROOT / "tools" / "make_phantoms.py", *words], check=True)
    source = open_source(folder / "source", ["test"])
    pack(source, folder / "shards", PackOptions(), workers=1)
    return ShardSet.open(str(folder / "shards"), "test")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_weights_are_near_chance(held_out: ShardSet, seed: int) -> None:
    words = ["--config", str(ROOT / "configs" / "tiny_cpu.yaml")]
    settings = command.parse(Config, words, prog="", description="").model
    clip = model.build(settings, seed=seed)
    pairs = feed.pairs(held_out, clip)
    how = {"batch_size": 100, "workers": 0, "precision": "fp32"}
    record = evaluate.evaluate(clip, pairs, World(0, 1, torch.device("cpu")), **how).record
    assert record["pool"] == 300
    for way in metrics.DIRECTIONS:
        assert record[way]["R@10"] < 2 * record["chance"]["R@10"]
