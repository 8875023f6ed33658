"""What `make demo` rests on: nobody solves its task without learning. It checks the rest itself."""

from pathlib import Path

import make_phantoms
import pytest

from medclip_oc.data import loader
from medclip_oc.data.shards import ShardSet
from medclip_oc.evaluation import retrieval
from medclip_oc.models import factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import pack
from tests.support.cli import ROOT, read_config
from tests.support.reference import ONE


@pytest.mark.slow
def test_untrained_weights_are_near_chance(tmp_path: Path) -> None:
    """The 300 test pairs are the same whatever is drawn for training."""
    make_phantoms.main(make_phantoms.PhantomConfig(str(tmp_path / "source"), train=1, valid=1))
    pack(open_source(tmp_path / "source", ["test"]), tmp_path / "shards")
    held_out = ShardSet.open(str(tmp_path / "shards"), "test")
    settings = read_config(ROOT / "configs" / "tiny_cpu.yaml").model
    how = {"batch_size": 100, "workers": 0, "precision": "fp32"}
    for seed in range(3):
        clip = factory.build(settings, seed=seed)
        pairs = loader.evaluation_pairs(held_out, clip)
        record = retrieval.evaluate(clip, pairs, ONE, **how).record
        assert record["pool"] == 300
        for way in ("image_to_text", "text_to_image"):
            assert record[way]["R@10"] < 2 * record["chance"]["R@10"]
