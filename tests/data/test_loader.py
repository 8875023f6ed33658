"""From settings to batches: what is decoded how, and which sets are drawn from."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medclip_oc.config import parse
from medclip_oc.config.schema import Config, DataConfig, ModelConfig, TrainConfig
from medclip_oc.data import loader
from medclip_oc.data.augment import Preprocess
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.evaluation import features
from medclip_oc.imaging import decode as decoding
from medclip_oc.imaging.jpeg import Picture
from medclip_oc.models import factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.runtime import distributed
from medclip_oc.runtime.distributed import World
from tests.support import processes
from tests.support.image_files import FILES, saved
from tests.support.tiny_dataset import picture, write_pairs, write_tar
from tests.support.tiny_models import TINY

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def sets(tmp_path: Path) -> str:
    """30 pairs and 6 pairs."""
    write_pairs(tmp_path / "many.tar", range(30))
    write_pairs(tmp_path / "few.tar", range(30, 36))
    return f"{tmp_path}/many.tar::{tmp_path}/few.tar"


def indices(where: str, epochs: int, **data: Any) -> list[list[int]]:
    """Indices of each global batch of 4."""
    config = Config(
        model=ModelConfig(arch="feed-test", definition=TINY),
        data=DataConfig(train=where, workers=0, **data),
        train=TrainConfig(global_batch_size=4, micro_batch_size=4),
    )
    pairs = loader.open_training(config.data, config.run.seed, ALONE)
    steps = epochs * pairs.pairs_per_epoch // 4
    clip = factory.build(config.model)
    batches = loader.training_batches(pairs, clip, config, ALONE, print, steps=steps)
    return [batch["index"].tolist() for batch in batches]


def test_weights_decide_how_often_a_set_is_drawn_from(sets: str) -> None:
    found = [n for step in indices(sets, 3, weights=[1, 3], samples_per_epoch=24) for n in step]
    for epoch in range(3):
        own = found[24 * epoch : 24 * (epoch + 1)]
        assert sum(n < 30 for n in own) == 6
    counts = Counter(found)
    assert {counts[n] for n in range(30, 36)} == {9}
    assert all(counts[n] <= 1 for n in range(30))


def test_without_weights_every_pair_comes_once_an_epoch(sets: str) -> None:
    found = [n for step in indices(sets, 1) for n in step]
    assert sorted(found) == list(range(36))
    assert [n for step in indices(sets, 2, samples_per_epoch=8) for n in step] == found[:16]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": [1.0]}, "data.weights: 1 numbers for 2 set"),
        ({"weights": [0.0, 1.0]}, "data.weights: .* is not above 0"),
        ({"weights": [1.0, 99.0]}, "set 1 gets less than one of an epoch's 36 pairs"),
        ({"train": "nowhere"}, "nowhere: no such shard folder"),
    ],
)
def test_mistakes(sets: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader.open_training(DataConfig(**({"train": sets} | data)), 0, ALONE)


def test_a_stream_is_no_set_to_measure() -> None:
    with pytest.raises(InputError, match="a stream can only be trained on"):
        loader.open_shards("pipe:cat x.tar", "valid", ALONE)


def test_incomplete_entries_of_foreign_shards_are_said(tmp_path: Path) -> None:
    members = {f"p{n}.{end}": b"x" for n in range(4) for end in ("jpg", "txt")}
    write_tar(tmp_path / "a.tar", members | {"alone.jpg": b"x", "other.txt": b"x"})
    config = Config(
        model=ModelConfig(arch="feed-test", definition=TINY),
        data=DataConfig(train=str(tmp_path / "a.tar"), workers=0),
    )
    said: list[str] = []
    pairs = loader.open_training(config.data, 0, ALONE)
    clip = factory.build(config.model)
    loader.training_batches(pairs, clip, config, ALONE, said.append, steps=1)
    assert said == ["2 entries of the shards have no image or no caption"]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("name", FILES)
def test_exact_is_open_clips_own_preprocessing(name: str, mode: str) -> None:
    """For grey pictures too, though they stay grey on the way."""
    settings = ModelConfig(arch="feed-test", definition=TINY, preprocess={"resize_mode": mode})
    clip = factory.build(settings)
    wanted = clip.open_clip_preprocess()(decoding.decode(FILES[name]).convert("RGB"))
    found = Preprocess(clip)(Picture(FILES[name], exact=True), np.random.default_rng(0))
    assert found.dtype == torch.uint8
    normalised = (found - clip.towers.mean[0]) / clip.towers.std[0]
    assert (normalised - wanted).abs().max() < 1e-5  # a level of 255 is more than 1e-2


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(600, 230), (231, 600), (70, 40), (20, 20)])
def test_fast_decoding_covers_the_input(size: tuple[int, int], mode: str) -> None:
    """Never enlarged because too little was decoded: near the exact pixels."""
    settings = ModelConfig(arch="feed-test", definition=TINY, preprocess={"resize_mode": mode})
    preprocess = Preprocess(factory.build(settings))
    data = saved(picture(3, size), quality=95)
    rng = np.random.default_rng(0)
    fast, exact = (preprocess(Picture(data, exact=e), rng).float() for e in (False, True))
    assert fast.shape == exact.shape == (3, 32, 32)
    assert (fast - exact).abs().mean() < 1


def embed(world: World, tar: str) -> list[list[float]]:
    """Features of both pairs of a set, as every rank gets them."""
    clip = factory.build(ModelConfig(arch="feed-test", definition=TINY))
    pairs = loader.evaluation_pairs(ShardSet.open(tar, "valid"), clip)
    how: dict[str, Any] = {"batch_size": 4, "workers": 0, "precision": "fp32"}
    found = features.embed_pairs(clip, pairs, world, **how)
    return [distributed.all_gather_ragged(rows).tolist() for rows in (found.images, found.texts)]


@pytest.mark.slow
def test_evaluation_counts_each_pair_once_where_ranks_are_many(tmp_path: Path) -> None:
    """Three ranks, two pairs: nothing is padded, and the rank without a pair has them, too."""
    tar = str(write_pairs(tmp_path / "a.tar", range(2)))
    alone = embed(ALONE, tar)
    results = tmp_path / "results"
    results.mkdir()
    for found in processes.run(embed, 3, results, tar):
        for one, other in zip(found, alone, strict=True):
            assert np.allclose(one, other, atol=1e-5)
            assert np.shape(one) == (2, 24)


@pytest.mark.slow
def test_features_of_fast_decoding_are_near_those_of_exact(
    rocov2_mini: Path, tmp_path: Path
) -> None:
    """Real files, real weights: EfficientNet-Lite0."""
    pack(open_source(rocov2_mini), tmp_path, PackOptions(), workers=1)
    words = ["--config", "configs/warm_towers.yaml"]
    clip = factory.build(parse.parse(Config, words, prog="", description="").model)
    clip.towers.eval()
    shards = ShardSet.open(str(tmp_path), "test")
    rows = []
    for decode in ("exact", "fast"):
        pairs = loader.evaluation_pairs(shards, clip, decode=decode)  # type: ignore[arg-type]
        with torch.inference_mode():
            batch = torch.stack([pairs[0, n]["images"] for n in range(len(shards))])
            rows.append(clip.towers.embed_images(batch))
    cosines = (rows[0] * rows[1]).sum(dim=1)
    assert len(cosines) > 30
    assert cosines.min() > 0.999
