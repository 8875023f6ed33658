"""Which pair comes when, and what a batch holds."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import jpeg, picture, write_pairs, write_tar

from medclip_oc import data, model, setup
from medclip_oc.augment import TrainingTransform, _crop, _largest, to_tensor
from medclip_oc.config import AugmentConfig, ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.shards import ShardSet


def stream(size: int, world_size: int, **settings: Any) -> list[list[data.Place]]:
    """Global batches as the ranks together see them, in rank order."""
    batches: list[list[data.Place]] = []
    for rank in range(world_size):
        sampler = data.StepSampler(size, rank=rank, world_size=world_size, seed=3, **settings)
        places = [place for part in sampler for place in part]
        assert len(list(sampler)) == len(sampler)
        share = settings["global_batch_size"] // world_size
        for step in range(settings["steps"]):
            if rank == 0:
                batches.append([])
            batches[step] += places[step * share : (step + 1) * share]
    return batches


@given(
    size=st.integers(4, 60),
    world_size=st.sampled_from([1, 2, 3, 4]),
    per_rank=st.integers(1, 5),
    loader_batch_size=st.integers(1, 7),
    steps=st.integers(1, 12),
)
@settings(deadline=None, max_examples=60)
def test_global_batches_do_not_depend_on_the_world_size(
    size: int, world_size: int, per_rank: int, loader_batch_size: int, steps: int
) -> None:
    how = {
        "global_batch_size": 12 * per_rank,
        "steps": steps,
        "loader_batch_size": loader_batch_size,
    }
    assert stream(size, world_size, **how) == stream(size, 1, **how)


def test_each_epoch_is_a_permutation_across_step_boundaries() -> None:
    steps = stream(10, 2, global_batch_size=4, loader_batch_size=3, steps=5)
    places = [place for step in steps for place in step]
    assert sorted(index for epoch, index in places if epoch == 0) == list(range(10))
    assert sorted(index for epoch, index in places if epoch == 1) == list(range(10))
    assert [epoch for epoch, _ in places] == [0] * 10 + [1] * 10
    assert [i for e, i in places if e == 0] != [i for e, i in places if e == 1]


def test_order_mixes_neighbours() -> None:
    found = data.order(0, 0, 20_000)
    assert abs(np.corrcoef(found, np.arange(20_000))[0, 1]) < 0.03
    assert np.mean(np.abs(np.diff(found)) == 1) < 0.001
    assert not np.array_equal(found, data.order(1, 0, 20_000))


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    write_pairs(tmp_path / "a.tar", range(5), {1: ["C0040405", "C0007776"], 2: ["X1"]})
    write_pairs(tmp_path / "b.tar", range(5, 8))
    return ShardSet.open(str(tmp_path / "*.tar"), "train")


@pytest.fixture(scope="module")
def clip() -> model.Clip:
    definition = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 10,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    return model.build(ModelConfig(arch="data-test", definition=definition))


def batches(
    pairs: data.Pairs, places: list[list[data.Place]], workers: int = 0
) -> list[data.Batch]:
    return list(data.loader(pairs, places, workers=workers, pin=False))


def test_what_a_batch_holds(shards: ShardSet, clip: model.Clip) -> None:
    (batch,) = batches(setup.pairs(shards, clip), [[(0, 6), (0, 1), (0, 2)]])
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (3, 3, 32, 32)
    assert batch["images"][0].equal(clip.preprocess(decoded(6)))
    assert batch["tokens"].equal(clip.tokenizer([f"finding number {n}" for n in (6, 1, 2)]))
    assert batch["index"].tolist() == [6, 1, 2]
    assert batch["concepts"].tolist() == [[0, 0], [40405, 7776], [0, 0]]
    assert batch["concepts"].dtype == torch.int32
    for name, content in (("caption_hash", b"finding number 6"), ("image_hash", jpeg(6))):
        wanted = int.from_bytes(hashlib.sha256(content).digest()[:8], signed=True)
        assert batch[name][0].item() == wanted


def decoded(seed: int) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(jpeg(seed))).convert("RGB")


def test_augmentation_is_a_function_of_seed_epoch_and_index(
    shards: ShardSet, clip: model.Clip
) -> None:
    def pixels(seed: int, place: data.Place) -> torch.Tensor:
        pairs = setup.pairs(shards, clip, AugmentConfig(), seed=seed)
        return batches(pairs, [[place]])[0]["images"]

    assert pixels(1, (0, 3)).equal(pixels(1, (0, 3)))
    assert not pixels(1, (0, 3)).equal(pixels(1, (1, 3)))
    assert not pixels(1, (0, 3)).equal(pixels(2, (0, 3)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(shards: ShardSet, clip: model.Clip) -> None:
    pairs = setup.pairs(shards, clip, AugmentConfig(), seed=1)
    places = [[(0, 3), (0, 1)], [(0, 7)], [(1, 0), (1, 3)]]
    for alone, helped in zip(
        batches(pairs, places), batches(pairs, places, workers=2), strict=True
    ):
        assert all(alone[name].equal(helped[name]) for name in alone)


def test_loader_batches_join_into_steps(shards: ShardSet, clip: model.Clip) -> None:
    places = [[(0, 0), (0, 1)], [(0, 2)], [(0, 3), (0, 4)], [(0, 5)]]
    pairs = setup.pairs(shards, clip)
    steps = list(data.step_batches(iter(batches(pairs, places)), 3))
    assert [step["index"].tolist() for step in steps] == [[0, 1, 2], [3, 4, 5]]
    assert steps[0]["concepts"].tolist() == [[0, 0], [40405, 7776], [0, 0]]
    assert steps[0]["images"].shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"))]
)
def test_a_bad_pair_is_named(tmp_path: Path, clip: model.Clip, workers: int) -> None:
    content = {"good.jpg": jpeg(0), "good.txt": b"x", "bad.jpg": b"no image", "bad.txt": b"y"}
    write_tar(tmp_path / "a.tar", content)
    pairs = setup.pairs(ShardSet.open(str(tmp_path / "a.tar"), "train"), clip)
    with pytest.raises(InputError, match=r"^a\.tar: bad: ") as caught:
        batches(pairs, [[(0, 0), (0, 1)]], workers)
    assert "Traceback" not in str(caught.value)


def test_no_change_when_everything_is_off() -> None:
    off = AugmentConfig(scale=(1.0, 1.0), rotation_degrees=0, brightness=0, contrast=0)
    transform = TrainingTransform((40, 48), "bicubic", off)
    assert transform(picture(1), np.random.default_rng(0)).equal(to_tensor(picture(1)))


def test_never_flipped() -> None:
    """A bright left half stays on the left: captions say so."""
    image = picture(1).point(lambda _: 20)
    image.paste(220, (0, 0, 20, 40))
    transform = TrainingTransform((32, 32), "bicubic", AugmentConfig())
    for seed in range(50):
        pixels = transform(image, np.random.default_rng(seed)).float()
        assert pixels[..., :12].mean() > pixels[..., -12:].mean() + 80


@pytest.mark.parametrize("size", [(300, 200), (780, 200), (200, 500)])
@pytest.mark.parametrize("squash", [False, True])
def test_crop_takes_the_stated_share(size: tuple[int, int], squash: bool) -> None:
    """Of the whole image, or of the largest square in it; wide images are no exception."""
    whole = size if squash else _largest(size, 1.0)
    rng = np.random.default_rng(0)
    lefts = []
    for _ in range(300):
        left, top, right, bottom = _crop(size, whole, (0.8, 1.0), rng)
        lefts.append(left)
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
        share = (right - left) * (bottom - top) / (whole[0] * whole[1])
        # the stretched side may meet the edge: at worst the root of 3/4 of it is left
        assert 0.8 * (3 / 4) ** 0.5 - 1e-9 <= share <= 1 + 1e-9
        stretch = (right - left) / (bottom - top) / (whole[0] / whole[1])
        assert 3 / 4 - 1e-9 <= stretch <= 4 / 3 + 1e-9
    if size[0] > size[1] and not squash:
        assert min(lefts) < 0.1 * size[0] < 0.25 * size[0] < max(lefts), "it moves to either side"
