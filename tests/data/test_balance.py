"""Groups of pairs get the shares that the strength says, at any number of ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclip_oc.config.schema import DataConfig
from medclip_oc.data import balance, loader
from medclip_oc.data.dataset import StepSampler
from medclip_oc.errors import InputError
from medclip_oc.runtime.distributed import World
from tests.support import processes
from tests.support.reference import ONE
from tests.support.tiny_dataset import write_tar

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


def batches(world: World, tar: Path) -> list[list[int]]:
    """This rank's part of 8 batches of 12 pairs."""
    order = loader.open_training(DataConfig(train=str(tar), balance="dim"), 3, world).order
    how = {"global_batch_size": 12, "loader_batch_size": 12, "steps": 8}
    parts: Any = StepSampler(order, **how, rank=world.rank, world_size=world.size)
    return [[index for _, index in part] for part in parts]


def test_two_ranks_draw_the_same_batches(tar: Path, tmp_path: Path) -> None:
    first, second = processes.run(batches, 2, tmp_path, tar)
    assert [a + b for a, b in zip(first, second, strict=True)] == batches(ONE, tar)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"balance": "nosuch"}, "all 42 pairs are .*'without nosuch'; KEY.json has concepts, dim"),
        ({"balance": "id"}, "data.balance: id has over 3 values, as an id has"),
        ({"balance": "dim", "weights": [1.0]}, "data.balance: not with data.weights"),
        ({"balance": "dim", "train": "pipe:cat x"}, "data.balance: a stream can't be weighted"),
        ({"balance": "dim", "samples_per_epoch": 2}, "dim: '2.5' gets less than one of .* 2 pairs"),
        ({"balance": "dim", "balance_strength": 2}, r"balance_strength: 2 is not in \[0, 1"),
    ],
)
def test_mistakes(tar: Path, data: dict[str, Any], message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(balance, "_MOST_GROUPS", 3)
    with pytest.raises(InputError, match=message) as caught:
        loader.open_training(DataConfig(**({"train": str(tar)} | data)), 3, ONE)
    assert len(str(caught.value)) <= 300
