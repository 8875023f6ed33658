"""Groups of pairs get the shares that the strength says, and studies weigh alike, at any number of
ranks.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclip_oc.config.schema import DataConfig
from medclip_oc.data import balance, loader
from medclip_oc.data.dataset import step_parts
from medclip_oc.errors import InputError
from medclip_oc.models.clip import Clip
from medclip_oc.runtime.distributed import World
from tests.support import processes
from tests.support.interrupted import same
from tests.support.reference import ONE
from tests.support.tiny_dataset import jpeg, write_pairs, write_tar

FACTS = [{"modality": "CT", "concepts": [1, "C0040405"]}] * 30 + [{"modality": "MR", "dim": 2}] * 9
FACTS += [{"modality": "", "concepts": "C0040405"}, {"dim": 2.5}, {}]
GROUPS = {"modality": [30, 9, 3], "C0040405": [30, 12], "dim": [32, 9, 1]}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 pairs with these facts, the groups mixed."""
    members: dict[str, bytes] = {}
    for n, row in enumerate(np.random.default_rng(0).permutation(42).tolist()):
        facts = json.dumps(FACTS[row] | {"id": n}).encode()
        members |= {f"p{n}.jpg": b"x", f"p{n}.txt": b"y", f"p{n}.json": facts}
    return write_tar(tmp_path_factory.mktemp("balance") / "pairs.tar", members)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("key", GROUPS)
def test_each_group_has_the_share_of_the_formula(tar: Path, key: str, strength: float) -> None:
    settings = {"train": str(tar), "balance": key, "balance_strength": strength}
    data: Any = loader.open_training(DataConfig(**settings), 3, ONE)
    names, codes = balance.group_by(data.source, key)
    sizes = np.bincount(codes)
    assert sorted(sizes, reverse=True) == GROUPS[key]
    indices = data.order.places(np.arange(5 * data.pairs_per_epoch))[1]
    wanted = sizes ** (1 - strength) / (sizes ** (1 - strength)).sum() * 42
    for drawn in indices.reshape(5, 42):
        assert (np.abs(np.bincount(codes[drawn]) - wanted) < 1).all()
    told = f"{names[sizes.argmax()]} {100 * sizes.max() / 42:.3g} % -> "
    assert f"{key}, strength {strength:g}, {len(names)} groups, the largest: {told}" in data.note


def batches(world: World, tar: Path, settings: dict[str, Any]) -> list[list[int]]:
    """This rank's part of 8 batches of 12 pairs."""
    order = loader.open_training(DataConfig(train=str(tar), **settings), 3, world).order
    parts: Any = step_parts(order, world, size=12, part=12, steps=8)
    return [[index for _, index in part] for part in parts]


@pytest.mark.parametrize("settings", [{"balance": "dim"}, {"unit": "study"}])
def test_two_ranks_draw_the_same_batches(
    tar: Path, studies: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    where = studies if "unit" in settings else tar
    first, second = processes.run(batches, 2, tmp_path, where, settings)
    assert [a + b for a, b in zip(first, second, strict=True)] == batches(ONE, where, settings)


VIEWS = {"a": [0, 2, 4, 6, 8], None: [1], "b": [3, 7], "": [5], 0: [9]}
"""The pairs of five studies: two of several images, two without a name."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members: dict[str, bytes] = {}
    for n, study in sorted((n, study) for study, own in VIEWS.items() for n in own):
        facts = json.dumps({} if study is None else {"study": study}).encode()
        members |= {f"p{n}.jpg": jpeg(n), f"p{n}.txt": b"%d" % n, f"p{n}.json": facts}
    return write_tar(tmp_path_factory.mktemp("studies") / "pairs.tar", members)


def drawn(clip: Clip, epochs: int, where: object, **settings: Any) -> list[dict[str, Any]]:
    """What so many epochs train on."""
    config = DataConfig(train=str(where), **settings)
    data: Any = loader.open_training(config, 3, ONE)
    pairs = loader.training_pairs(data.source, clip, config, 3)
    places = data.order.places(np.arange(epochs * data.pairs_per_epoch))
    return [pairs[place] for place in np.stack(places, 1).tolist()]


def test_a_study_weighs_as_one(clip: Clip, studies: Path) -> None:
    """Once an epoch, by each of its images and captions in turn; those of two sets are others."""
    alone, items = drawn(clip, 1, studies), drawn(clip, 20, studies, unit="study")
    images = {item["image_hash"]: item["index"] for item in alone}
    texts = {item["caption_hash"][0]: item["index"] for item in alone}
    sides = [(images[item["image_hash"]], texts[item["caption_hash"][0]]) for item in items]
    for study, views in enumerate(VIEWS.values()):
        own = [n for n, item in enumerate(items) if item["index"] == study]
        assert [n // 5 for n in own] == [*range(20)]
        for side in zip(*(sides[n] for n in own), strict=True):
            for n in range(0, 20, len(views)):
                assert sorted(side[n : n + len(views)]) == views
    assert 8 < sum(image != text for image, text in sides) < 40, "each is drawn for itself"
    how = {"unit": "study", "weights": [1, 3], "samples_per_epoch": 20}
    found = [item["index"] // 5 for item in drawn(clip, 1, f"{studies}::{studies}", **how)]
    assert [found.count(0), found.count(1)] == [5, 15]


def test_a_study_of_one_image_is_a_pair(clip: Clip, tmp_path: Path) -> None:
    """Bit for bit; and where a view can't be read, another study takes the place of its own."""
    tar = write_pairs(tmp_path / "x.tar", range(0, 16, 2))
    assert same(*(drawn(clip, 3, tar, unit=unit) for unit in ("image", "study")))
    members = {f"p{n}.txt": b"x" for n in range(4)}
    members |= {f"p{n}.json": b'{"study": %d}' % (n // 2) for n in range(4)}
    members |= {f"p{n}.jpg": jpeg(n) if n else b"no image" for n in range(4)}
    bad = write_tar(tmp_path / "bad.tar", dict(sorted(members.items())))
    lines = {line[:24] for item in drawn(clip, 4, bad, unit="study") for line in item["bad"]}
    assert lines == {"bad.tar: p0: undecodable"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"balance": "nosuch"}, "all 42 pairs are .*'without nosuch'; KEY.json has concepts, dim"),
        ({"balance": "id"}, "data.balance: id has over 3 values, as an id has"),
        ({"balance": "dim", "weights": [1.0]}, "data.balance: not with data.weights"),
        ({"balance": "dim", "train": "pipe:cat x"}, "data.balance: a stream can't be weighted"),
        ({"balance": "dim", "samples_per_epoch": 2}, "dim: '2.5' gets less than one of .* 2 pairs"),
        ({"unit": "study"}, "no pair has `study` in its KEY.json, .*; unit image takes each pair"),
        ({"unit": "study", "balance": "dim"}, "data.balance: not with data.unit: study"),
        ({"unit": "study", "train": "pipe:cat x"}, "data.unit: a stream's studies aren't known"),
        ({"balance": "dim", "balance_strength": 2}, r"balance_strength: 2 is not in \[0, 1"),
    ],
)
def test_mistakes(tar: Path, data: dict[str, Any], message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(balance, "_MOST_GROUPS", 3)
    with pytest.raises(InputError, match=message) as caught:
        loader.open_training(DataConfig(**({"train": str(tar)} | data)), 3, ONE)
    assert len(str(caught.value)) <= 300
