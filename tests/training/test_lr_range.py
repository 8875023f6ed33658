"""`--lr-range` starts each trial from the run's own weights, touches nothing, and is right."""

import math
from pathlib import Path
from typing import Any

import make_phantoms
import pytest

from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.runtime.distributed import World
from medclip_oc.training import build, lr_range
from tests.support import processes
from tests.support.cli import read_config, records, run_training, write_config
from tests.support.reference import ONE, RESNET
from tests.support.tiny_models import TINY, VIT

LORA = {"lora": {"rank": 2}, "optim": {"text_lr": 3e-3}, "loss": {"positives": "captions"}}
BN = {"arch": "bn", "definition": {**TINY, "vision_cfg": RESNET}, "freeze_batch_norm": False}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_the_suggestion_is_within_a_factor_of_2_of_the_best_full_run(
    seed: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of a grid in steps of 2, by the score that chooses best.pt. 62 steps a run, 40 a trial."""
    source, shards = tmp_path / "source", tmp_path / "shards"
    make_phantoms.main(make_phantoms.PhantomConfig(str(source), 1000, 400, 20, seed, size=40))
    pack(open_source(source), shards, PackOptions())
    changes = {"run__seed": seed, "valid__every_epochs": None, "train__epochs": 3}
    changes |= {"train__global_batch_size": 48, "train__micro_batch_size": 48}
    changes["model__definition"] = {**TINY, "embed_dim": 32, "vision_cfg": {**VIT, "width": 48}}
    file = write_config(shards, tmp_path, **changes)
    suggest, found = lr_range.suggestion, list[float]()
    monkeypatch.setattr(lr_range, "suggestion", lambda *a: found.append(suggest(*a)) or found[0])
    assert run_training(file, "--lr-range") == 0
    scores = {}
    for lr in (4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2):
        run = tmp_path / f"{lr:g}"
        run_training(file, "--optim.lr", lr, "--run.folder", run)
        scores[lr] = records(run)[-1]["valid/mean_recall"]
    assert 0.5 <= 1e-3 * found[0] / max(scores, key=scores.__getitem__) <= 2, (found, scores)


def tried(world: World, file: Path, factors: list[float]) -> list[float]:
    """The losses of a search; on ranks that don't report none."""
    seen = list[float]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lr_range, "_STEPS", 3)
        patch.setattr(lr_range, "_FACTORS", factors)
        patch.setattr(lr_range, "suggestion", lambda losses, _: seen.extend(losses))
        config = read_config(file)
        lr_range.search(config, world, build.open_data(config, world), build.model(config, world))
    return seen


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [(1, LORA), (1, {"model": BN}), pytest.param(2, {}, marks=pytest.mark.slow)],
)
def test_trials_start_alike(ranks: int, changes: Any, packed: Path, tmp_path: Path) -> None:
    """The first, the last and a lone one of a rate agree, whatever diverged between them."""
    file = write_config(packed, tmp_path, **changes)
    factors = [1.0, 1e30, 1e-9, 1.0]
    (first, wild, nothing, last), *others = processes.run(tried, ranks, tmp_path, file, factors)
    assert (first, others) == (last, [[]] * (ranks - 1))
    alone = tried(ONE, file, [1.0])
    assert alone == [pytest.approx(first, rel=1e-4 if ranks > 1 else 0)]
    assert wild > first != nothing
    assert [path.name for path in tmp_path.glob("run_*")] == ["run_lr_range.png"]
    assert not (tmp_path / "run").exists()


def test_a_collapsed_model_is_no_gain(packed: Path, tmp_path: Path, capsys: Any) -> None:
    """It guesses, and a start that is too sure of itself is above that."""
    config = read_config(write_config(packed, tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lr_range, "_FACTORS", [30.0, 100.0])
        lr_range.search(config, ONE, build.open_data(config, ONE), build.model(config, ONE))
    assert "lr-range: no rate lowers the loss below guessing; look" in capsys.readouterr().out


def test_suggestion_by_hand() -> None:
    suggest, none = lr_range.suggestion, math.inf
    drawn = suggest([9, 8, 7, 6, 2, 4, 9], 10.0)
    assert drawn == pytest.approx(10 ** (0.5 + 1 / 12)), "to the lower neighbour"
    assert suggest([9, 8, 7, 6, 2, none, none], 10.0) == 10**0.5
    assert suggest([11, 11, 10, *[none] * 4], 10.0) is None
