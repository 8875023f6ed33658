"""What `make demo` rests on: nobody solves its task without learning. It checks the rest itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medclip_oc.config import parse
from medclip_oc.config.schema import Config
from medclip_oc.config.vocabulary import DIRECTIONS
from medclip_oc.data import loader
from medclip_oc.data.shards import ShardSet
from medclip_oc.evaluation import retrieval
from medclip_oc.models import factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.runtime.distributed import World

ROOT = Path(__file__).parents[2]


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
    settings = parse.parse(Config, words).model
    clip = factory.build(settings, seed=seed)
    pairs = loader.evaluation_pairs(held_out, clip)
    how = {"batch_size": 100, "workers": 0, "precision": "fp32"}
    record = retrieval.evaluate(clip, pairs, World(0, 1, torch.device("cpu")), **how).record
    assert record["pool"] == 300
    for way in DIRECTIONS:
        assert record[way]["R@10"] < 2 * record["chance"]["R@10"]
