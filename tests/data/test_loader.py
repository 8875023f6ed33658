"""From settings to batches: which sets are drawn from, what is decoded how, and what happens to
what can't be read.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from medclip_oc.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from medclip_oc.data import loader
from medclip_oc.data.augment import Preprocess
from medclip_oc.data.dataset import LoadedBatch, _hash
from medclip_oc.data.loader import TrainingBatches
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError, WorkError
from medclip_oc.evaluation import features
from medclip_oc.imaging import decode as decoding
from medclip_oc.imaging.jpeg import Picture
from medclip_oc.models import factory
from medclip_oc.models.clip import Clip
from medclip_oc.runtime import distributed
from medclip_oc.runtime.distributed import World
from tests.support import processes
from tests.support.image_files import FILES, file
from tests.support.reference import ONE as ALONE
from tests.support.tiny_dataset import jpeg, picture, write_captions, write_pairs, write_tar
from tests.support.tiny_models import TINY

STREAM: dict[str, Any] = {"train": "pipe:cat x", "samples_per_epoch": 9}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 pairs and 6 pairs."""
    folder = tmp_path_factory.mktemp("sets")
    write_pairs(folder / "many.tar", range(30))
    write_pairs(folder / "few.tar", range(30, 36))
    return f"{folder}/many.tar::{folder}/few.tar"


def training(
    clip: Clip, where: str, epochs: int, world: World = ALONE, start: int = 0, **data: Any
) -> tuple[TrainingBatches, list[str]]:
    """Global batches of 4, and what is said about them."""
    config = Config(
        model=ModelConfig(arch="loader-test", definition=TINY),
        data=DataConfig(train=where, **({"workers": 0} | data)),
        train=TrainConfig(global_batch_size=4, micro_batch_size=2),
    )
    pairs = loader.open_training(config.data, 1, world)
    steps, log = epochs * pairs.pairs_per_epoch // 4, list[str]()
    how: dict[str, Any] = {"steps": steps, "start": start}
    return loader.training_batches(pairs, clip, config, world, log.append, **how), log


def indices(batches: TrainingBatches) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


def test_sets_are_drawn_from_by_weight_or_all_pairs_alike(clip: Clip, sets: str) -> None:
    found = indices(training(clip, sets, 3, weights=[1, 3], samples_per_epoch=24)[0])
    for epoch in range(3):
        assert sum(n < 30 for n in found[24 * epoch : 24 * (epoch + 1)]) == 6
    counts = Counter(found)
    assert {counts[n] for n in range(30, 36)} == {9}
    assert all(counts[n] <= 1 for n in range(30))
    found = indices(training(clip, sets, 1)[0])
    assert sorted(found) == list(range(36))
    assert indices(training(clip, sets, 2, samples_per_epoch=8)[0]) == found[:16]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": [1.0]}, "data.weights: 1 numbers for 2 set"),
        ({"weights": [0.0, 1.0]}, "data.weights: .* is not above 0"),
        ({"weights": [1.0, 99.0]}, "set 1 gets less than one of an epoch's 36 pairs"),
        ({"caption_key": "nosuch"}, "data.caption_key: .* pairs tried have no KEY.nosuch, nor"),
        ({"train": "nowhere"}, "nowhere: no such shard folder"),
        (STREAM | {"samples_per_epoch": None}, "data.samples_per_epoch: needed"),
        (STREAM | {"weights": [1.0]}, "data.weights: a stream can't be weighted"),
        (STREAM | {"train": "pipe:cat x::shards"}, "can't be mixed"),
        (STREAM | {"cache_folder": "/proc/nowhere"}, "data.cache_folder: /proc/nowhere can't be"),
    ],
)
def test_mistakes(sets: str, data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader.open_training(DataConfig(**({"train": sets} | data)), 0, ALONE)


def test_a_stream_is_no_set_to_measure() -> None:
    with pytest.raises(InputError, match="a stream can only be trained on"):
        loader.open_shards("pipe:cat x.tar", "valid", ALONE)


HASHES = {_hash(hashlib.sha256(text.encode()).hexdigest()): text for text in "abcdefghij"}
SEVERAL = [("{0}", "captions", "caption"), ("", "caption", "caption")]
SEVERAL += [("", "notes", "notes"), ("x", "notes", "notes")]
"""The .txt (first: as packing has it), the key of a list in KEY.json, and data.caption_key."""


def drawn(world: World, clip: Clip, where: str, start: int, data: dict[str, Any]) -> list[str]:
    """Captions of this rank's batches in six epochs, from a pair on."""
    batches, _ = training(clip, where, 6, world, start, **data)
    return ["".join(HASHES[n] for n in batch["caption_hash"].tolist()) for batch in batches]


@pytest.mark.parametrize("form", SEVERAL)
def test_each_epoch_draws_one_of_several_captions(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, str, str]
) -> None:
    """Each once before any comes again; resumed and on two ranks the same; streams as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file, data = write_captions(tmp_path / "x.tar", *form[:2]), {"caption_key": form[2]}
    stream = {"samples_per_epoch": 4, "stream_lanes": 1}
    for where, more in ((f"pipe:cat {file}", stream), (str(file), {})):
        whole = drawn(ALONE, clip, where, 0, data | more)
        assert sorted("".join(whole[:3])) == sorted("".join(whole[3:])) == list("abcdefghijjj")
        assert len({"".join(sorted(batch)) for batch in whole}) > 3  # not all first ones at once
        assert drawn(ALONE, clip, where, 8, data | more) == whole[2:]
    ranks = processes.run(drawn, 2, tmp_path, clip, where, 0, data)
    assert list(map("".join, zip(*ranks, strict=True))) == whole
    first = loader.evaluation_pairs(ShardSet.open(where, "train", **data), clip)[5, 1]
    assert HASHES[first["caption_hash"][0]] == "d"


# ---------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_those_of_open_clips_own_preprocessing(mode: str) -> None:
    """For grey pictures too, though they stay grey on the way. Fast decoding covers the input: it
    is never enlarged because too little was decoded.
    """
    settings = ModelConfig(arch="loader-test", definition=TINY, preprocess={"resize_mode": mode})
    clip, rng = factory.build(settings), np.random.default_rng(0)
    transform = Preprocess(clip)
    theirs = open_clip.image_transform(32, is_train=False, resize_mode=mode)
    for name, data in FILES.items():
        wanted = theirs(decoding.decode(data).convert("RGB"))
        found = transform(Picture(data, exact=True), rng)
        assert found.dtype == torch.uint8
        normalised = (found - clip.towers.mean[0]) / clip.towers.std[0]
        # a level of 255 is more than 1e-2
        assert (normalised - wanted).abs().max() < 1e-5, name
    for size in ((600, 230), (231, 600), (70, 40), (20, 20)):
        data = file(picture(3, size), "JPEG", quality=95)
        fast, exact = (transform(Picture(data, exact=e), rng).float() for e in (False, True))
        assert fast.shape == exact.shape == (3, 32, 32)
        assert (fast - exact).abs().mean() < 1


def test_without_augmentation_images_are_as_validation_has_them(clip: Clip, sets: str) -> None:
    off = DataConfig(augment=AugmentConfig((1.0, 1.0), 0.0, 0.0, 0.0))
    shards = ShardSet.open(sets, "train")
    wanted = loader.evaluation_pairs(shards, clip, decode="fast")[(0, 1)]["images"]
    assert wanted.equal(loader.training_pairs(shards, clip, off, 1)[(3, 1)]["images"])


# ------------------------------------------------------------------------ what can't be read


def policy(log: list[str], *bad: list[str], long: int = 0, **changes: Any) -> TrainingBatches:
    """Batches of 4 pairs, with these bad ones in each; 20 pairs make an epoch."""
    loaded = (LoadedBatch({"index": torch.zeros(4)}, lines, long) for lines in bad)
    usual = {"steps": len(bad), "pairs_per_step": 4, "pairs_per_epoch": 20, "context": 77}
    settings = DataConfig(max_bad_share=changes.pop("max_bad_share", 0.1))
    rest = usual | changes | {"pairs": None}
    return TrainingBatches(loaded=loaded, settings=settings, world=ALONE, log=log.append, **rest)


def test_bad_pairs_are_told_once_and_bounded() -> None:
    log: list[str] = []
    assert len(list(policy(log, [], ["a"], [], ["a"], []))) == 5
    assert log == ["unreadable, replaced by another pair: a"]
    # 2 of an epoch's 20 are allowed; later, a tenth of what was seen
    steps = iter(policy(log, [], ["a"], ["b"], [], [], [], [], ["c"], ["d"], []))
    assert [len(next(steps)["index"]) for _ in range(8)] == [4] * 8
    with pytest.raises(WorkError, match=r"^4 bad pairs on the way to 36; .* 0\.1 allows 3; .*: d$"):
        next(steps)
    with pytest.raises(WorkError, match="1 bad pairs on the way to 4"):
        list(policy([], ["a"], max_bad_share=0.0))


def test_long_captions_are_reported_once_after_an_epoch_or_at_the_end() -> None:
    log: list[str] = []
    for number, _ in enumerate(policy(log, *[[]] * 12, long=1), 1):
        assert len(log) == (number >= 5)
    assert log[0] == (
        "5 of 20 captions (25.0%) are longer than 77 tokens, and cut there "
        "(data.long_captions: truncate)"
    )
    list(policy(log, [], long=2))
    assert log[1].startswith("2 of 4 captions")


def test_counting_continues_from_a_state() -> None:
    """What was told before is not told again, and shares are of all pairs seen."""
    bad: list[list[str]] = [[], ["a"], [], ["b"], [], [], [], [], ["a"], []]
    whole, first = policy([], *bad, long=1), policy([], *bad[:5], long=1)
    list(whole)
    list(first)
    log: list[str] = []
    second = policy(log, *bad[5:], long=1, start=20)
    second.load_state_dict(first.state_dict())
    list(second)
    assert second.state_dict() == whole.state_dict()
    assert log == [], "a was named, and long captions were reported, in the first part"


# ------------------------------------------------------------------------------------- ranks


def go_through(
    world: World, where: Path, harm: Callable[[], None] = lambda: None, **data: Any
) -> dict[str, Any]:
    """Four epochs of batches, harming the shards in the first; what was met."""
    clip = factory.build(ModelConfig(arch="loader-test", definition=TINY))
    batches, log = training(clip, f"{where}/*.tar", 4, world, **data)
    done, seen = 0, list[int]()
    try:
        for done, batch in enumerate(batches, 1):
            seen += batch["index"].tolist()
            if done == 2 and world.main:
                harm()
            distributed.barrier()
    except WorkError as error:
        return {"error": str(error), "done": done, "log": log}
    return {"done": done, "log": log, "seen": seen}


def features_of(world: World, tar: Path) -> list[torch.Tensor]:
    """Of all pairs of a set, as every rank gets them."""
    clip = factory.build(ModelConfig(arch="loader-test", definition=TINY))
    pairs = loader.evaluation_pairs(ShardSet.open(str(tar), "valid"), clip, take="all")
    found = features.embed_pairs(clip, pairs, world, batch_size=4, workers=0, precision="fp32")
    places = torch.arange(len(found.images)) + found.start
    return [distributed.all_gather_ragged(rows) for rows in (found.images, found.texts, places)]


def everything(world: World, folder: Path) -> dict[str, Any]:
    """What the tests below ask about."""
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    tars = (folder / f"{name}.tar" for name in ("one", "three", "many"))
    met: dict[str, Any] = {tar.stem: features_of(world, tar) for tar in tars}
    shard = folder / "cut" / "b.tar"
    met["cut"] = go_through(world, shard.parent, lambda: os.truncate(shard, 9000))
    for share, workers in ((0.2, 1), (0.05, 0)):
        data = {"workers": workers, "max_bad_share": share, "caption_key": "said"}
        met[str(share)] = go_through(world, folder / "bad", **data)
    return met


NAMES = sorted(f"p{n}" for n in range(20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_pairs(folder / "one.tar", range(1))
    write_pairs(folder / "three.tar", range(3))
    write_captions(folder / "many.tar")
    for name in ("cut", "bad", "results"):
        (folder / name).mkdir()
    for number, name in enumerate("abc"):
        write_pairs(folder / "cut" / f"{name}.tar", range(10 * number, 10 * number + 10))
    images = {f"{name}.jpg": b"cut" if name in ("p3", "p8") else jpeg(1) for name in NAMES}
    texts = {f"{name}.said": b"word " * 99 if name == "p0" else b"x" for name in NAMES}
    write_tar(folder / "bad" / "a.tar", dict(sorted((images | texts).items())))
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks met."""
    return processes.run(everything, 2, folder / "results", folder)


@pytest.mark.parametrize(("name", "pairs"), [("one", 1), ("three", 3), ("many", 10)])
def test_evaluation_counts_each_pair_once(
    ranks: list[dict[str, Any]], folder: Path, name: str, pairs: int
) -> None:
    """Nothing is padded, and a rank without a pair of its own has them, too; and each caption."""
    alone = features_of(ALONE, folder / f"{name}.tar")
    assert [len(rows) for rows in alone] == [pairs] * 3
    for rank in ranks:
        torch.testing.assert_close(rank[name], alone)


def test_a_shard_that_changes_ends_every_rank(ranks: list[dict[str, Any]]) -> None:
    """Within the first epoch, on every rank, with its name."""
    first, second = (rank["cut"] for rank in ranks)
    assert first == second
    assert "b.tar" in first["error"]
    assert 2 <= first["done"] <= -(-30 // 4)


def test_bad_pairs_that_one_rank_meets_are_known_to_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        allowed = rank["0.2"]
        lines = [line for line in allowed["log"] if "unreadable" in line]
        assert {line.split(": ")[2] for line in lines} == {"p3", "p8"}
        assert len(lines) == 2
        assert sum("captions" in line for line in allowed["log"]) == 1
        assert allowed["done"] == 20
        assert set(allowed["seen"]) <= set(range(20)) - {NAMES.index("p3"), NAMES.index("p8")}
        assert "0.05 allows 1; the last: a.tar: p" in rank["0.05"]["error"]
    assert ranks[0]["0.2"]["log"] == ranks[1]["0.2"]["log"]
    assert ranks[0]["0.05"] == ranks[1]["0.05"]
