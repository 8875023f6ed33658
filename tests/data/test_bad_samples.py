"""What goes wrong while pairs are loaded reaches every rank, with the same words."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc.config.schema import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from medclip_oc.data import loader
from medclip_oc.data.bad_samples import TrainingBatches
from medclip_oc.data.dataset import LoadedBatch
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import factory
from medclip_oc.runtime import distributed
from medclip_oc.runtime.distributed import World
from tests.support import processes
from tests.support.tiny_dataset import jpeg, write_pairs, write_tar
from tests.support.tiny_models import TINY

ALONE = World(0, 1, torch.device("cpu"))


def policy(log: list[str], *bad: list[str], long: int = 0, **changes: Any) -> TrainingBatches:
    """Batches of 4 pairs, with these bad ones in each; 20 pairs make an epoch."""
    loaded = (LoadedBatch({"index": torch.zeros(4)}, lines, long) for lines in bad)
    usual = {"steps": len(bad), "pairs_per_step": 4, "pairs_per_epoch": 20, "context": 77}
    settings = DataConfig(max_bad_share=changes.pop("max_bad_share", 0.1))
    rest = usual | changes
    return TrainingBatches(loaded=loaded, settings=settings, world=ALONE, log=log.append, **rest)


def test_bad_pairs_are_told_once_and_bounded() -> None:
    log: list[str] = []
    assert len(list(policy(log, [], ["a"], [], ["a"], []))) == 5
    assert log == ["unreadable, replaced by another pair: a"]
    # 2 of an epoch's 20 are allowed; later, a tenth of what was seen
    steps = iter(policy(log, [], ["a"], ["b"], [], [], [], [], ["c"], ["d"], []))
    assert [len(next(steps)["index"]) for _ in range(8)] == [4] * 8
    with pytest.raises(WorkError, match=r"^4 of the first 36 pairs .* 0\.1 allows 3; the last: d$"):
        next(steps)
    with pytest.raises(WorkError, match="1 of the first 4 pairs can't be read"):
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


def test_shards_are_looked_after_at_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    batches = policy([], *[[]] * 12, check=lambda: looks.append(1))
    assert [len(looks) for _ in batches] == [1] * 5 + [2] * 5 + [3] * 2
    monkeypatch.setattr("medclip_oc.data.bad_samples.CHECK_SECONDS", 0.0)
    looks.clear()
    batches = policy([], [], [], [], check=lambda: looks.append(1))
    assert [len(looks) for _ in batches] == [1, 2, 3], "and after a while"


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


# ------------------------------------------------------------------------------------- two ranks


def exchange(world: World) -> dict[str, Any]:
    """The collectives that `TrainingBatches` needs."""
    own = [f"rank {world.rank}", "two\nlines é"][: world.rank + 1]
    caught = []
    for error in (None, InputError(f"only {world.rank}\nhere") if world.rank == 1 else None):
        try:
            distributed.raise_together(error)
        except InputError as raised:
            caught.append(str(raised))
    return {
        "sum": distributed.all_reduce_sum([1, 10 * world.rank], world.device),
        "texts": distributed.all_gather_objects(own),
        "none": distributed.all_gather_objects([]),
        "caught": caught,
    }


def settings(folder: Path, **data: Any) -> Config:
    usual: dict[str, Any] = {"train": str(folder / "*.tar"), "workers": 1}
    return Config(
        model=ModelConfig(arch="watch-test", definition=TINY),
        data=DataConfig(**(usual | data), augment=AugmentConfig()),
        train=TrainConfig(global_batch_size=4, micro_batch_size=2, epochs=4),
    )


def train_on(world: World, folder: str, harm: str, data: dict[str, Any]) -> dict[str, Any]:
    """Go through four epochs of batches, harming the shards in the first; what was met."""
    config = settings(Path(folder), **data)
    clip = factory.build(config.model)
    pairs = loader.open_training(config.data, 1, world)
    logged: list[str] = []
    steps = 4 * pairs.pairs_per_epoch // 4
    batches = loader.training_batches(pairs, clip, config, world, logged.append, steps=steps)
    done, seen = 0, list[int]()
    try:
        for done, batch in enumerate(batches, 1):
            seen += batch["index"].tolist()
            shard = Path(folder) / "b.tar"
            if (done, harm) == (2, "delete") and world.main:
                shard.unlink()
            if (done, harm) == (2, "truncate") and world.main:
                os.truncate(shard, shard.stat().st_size // 2)
            distributed.barrier()
    except (InputError, WorkError) as error:
        work = isinstance(error, WorkError)
        return {"error": str(error), "work": work, "done": done, "logged": logged}
    return {"done": done, "logged": logged, "seen": seen}


NAMES = sorted(f"p{n}" for n in range(20))


def everything(world: World, folder: str) -> dict[str, Any]:
    """What each test below asks about; in one go, because starting processes takes longest."""
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    met: dict[str, Any] = {"exchange": exchange(world)}
    for harm, workers in (("delete", 1), ("truncate", 0)):
        met[harm] = train_on(world, f"{folder}/{harm}", harm, {"workers": workers})
    for share in (0.2, 0.05):
        data = {"workers": 0, "max_bad_share": share}
        met[str(share)] = train_on(world, f"{folder}/bad", "", data)
    return met


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks met."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("delete", "truncate", "bad", "results"):
        (folder / name).mkdir()
    for harm in ("delete", "truncate"):
        for number, name in enumerate("abc"):
            write_pairs(folder / harm / f"{name}.tar", range(10 * number, 10 * number + 10))
    images = {f"{name}.jpg": b"cut" if name in ("p3", "p8") else jpeg(1) for name in NAMES}
    texts = {f"{name}.txt": b"word " * 99 if name == "p0" else b"x" for name in NAMES}
    write_tar(folder / "bad" / "a.tar", dict(sorted((images | texts).items())))
    return processes.run(everything, 2, folder / "results", str(folder))


@pytest.mark.slow
def test_the_collectives(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        met = rank["exchange"]
        assert met["sum"] == [2, 10]
        assert met["texts"] == [["rank 0"], ["rank 1", "two\nlines é"]]
        assert met["none"] == [[], []]
        assert met["caught"] == ["only 1\nhere"]


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["delete", "truncate"])
def test_a_shard_that_goes_away_ends_every_rank(ranks: list[dict[str, Any]], harm: str) -> None:
    """Within the first epoch or at the beginning of the second, on every rank, with its name."""
    first, second = (rank[harm] for rank in ranks)
    assert first == second
    assert "b.tar" in first["error"]
    assert first["work"], "the input was right when the run began"
    assert 2 <= first["done"] <= -(-30 // 4), "by the end of the first epoch"


@pytest.mark.slow
def test_bad_pairs_that_one_rank_meets_are_known_to_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        allowed = rank["0.2"]
        lines = [line for line in allowed["logged"] if "unreadable" in line]
        assert {line.split(": ")[2] for line in lines} == {"p3", "p8"}
        assert len(lines) == 2
        assert sum("captions" in line for line in allowed["logged"]) == 1
        assert allowed["done"] == 20
        assert set(allowed["seen"]) <= set(range(20)) - {NAMES.index("p3"), NAMES.index("p8")}
        assert "0.05 allows 1; the last: a.tar: p" in rank["0.05"]["error"]
    assert ranks[0]["0.2"]["logged"] == ranks[1]["0.2"]["logged"]
    assert ranks[0]["0.05"] == ranks[1]["0.05"]
