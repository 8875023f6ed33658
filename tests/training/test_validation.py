"""Step 0 and what follows it: which model is best, and what the run says of it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medclip_oc import report
from medclip_oc.config.evaluation import ReportConfig
from medclip_oc.config.schema import Config, ModelConfig, ValidConfig
from medclip_oc.config.vocabulary import DIRECTIONS
from medclip_oc.data import loader
from medclip_oc.evaluation import retrieval
from medclip_oc.models import averaging, checkpoint, factory
from medclip_oc.runtime.distributed import World
from medclip_oc.training import validation
from medclip_oc.training.build import Plan
from medclip_oc.training.trainer import Trainer
from tests.support.cli import Reader, call, records, run_training
from tests.support.interrupted import configure, fork_server, measured, same, steps_of, weights
from tests.support.tiny_models import TINY, VIT

ALONE = World(0, 1, torch.device("cpu"))
DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.1}}


def test_when_it_validates() -> None:
    def steps(total: int, per_epoch: int, **valid: Any) -> list[int]:
        plan = Plan(per_epoch, 2, total, 0)  # pairs of an epoch, in batches of two
        settings = ValidConfig(**valid)
        return [n for n in range(1, total + 1) if validation.due(settings, plan, n)]

    assert steps(10, 5) == [3, 5, 8, 10]
    assert steps(10, 5, every_epochs=2) == [5, 10]
    assert steps(7, 5, every_epochs=None) == [7]
    assert steps(7, 5, every_epochs=None, every_steps=3) == [3, 6, 7]


def test_what_starts_from_weights_is_measured() -> None:
    def measures(at_start: bool | None = None, **model: str) -> bool:
        valid = ValidConfig(at_start=at_start)
        return validation.measures_start(Config(model=ModelConfig(**model), valid=valid))

    for model in ({"pretrained": "openai"}, {"arch": "hf-hub:a/b"}, {"pretrained_image": "a.pt"}):
        assert measures(**model)
        assert not measures(False, **model)
    assert not measures()
    assert measures(True)


def tune(finished: Path, packed: Path, folder: Path, name: str = "run", **changes: Any) -> Path:
    """The configuration of a run of 12 steps from what another one left, with dropout."""
    torch.save(weights(finished), file := folder / "start.pt")
    model = {"arch": "start-test", "definition": DROPOUT, "pretrained": str(file)}
    usual = {"model": model, "train__epochs": 4, "wise": {"alphas": [0.5, 0.8]}, "valid": {}}
    return configure(packed, folder, name, **(usual | changes))


def said(run: Path) -> str:
    return (run / "log.txt").read_text().splitlines()[-1]


def test_step_0_is_a_candidate_and_changes_nothing_else(
    finished: Path, packed: Path, tmp_path: Path
) -> None:
    """At a rate that does harm it is best.pt; the training is that of a run without it."""
    harm = {"optim__lr": 0.3, "train__epochs": 1, "ema": {"decay": 0.5}}
    for name, at_start in (("without", False), ("measured", None)):
        valid = {"at_start": at_start}
        config = tune(finished, packed, tmp_path, name, valid=valid, **harm)
        assert run_training(config) == 0
    run, without = tmp_path / "measured", tmp_path / "without"
    first, *others = measured(run)
    assert first["step"] == 0
    assert others == measured(without)
    assert same(weights(run), weights(without))
    best = checkpoint.load(run / "checkpoints" / "best.pt")
    assert best["metrics"]["mean_recall"] == first["valid/mean_recall"]
    assert (best["step"], best["epoch"]) == (0, 0)
    assert same(best["state_dict"], weights(finished))


def assert_best_between(run: Path, before: dict[str, Any], packed: Path) -> None:
    """By hand: wise.pt against each mixture, measured by a model of its own."""
    best, wise = (checkpoint.load(run / "checkpoints" / f"{n}.pt") for n in ("best", "wise"))
    pairs, scores = loader.open_shards(str(packed), "valid", ALONE), {}
    for alpha in (0, 0.5, 0.8, 1):
        state = averaging.interpolated(before, best["state_dict"], alpha)
        clip = factory.restore(best | {"state_dict": state}, "best.pt")
        how: dict[str, Any] = {"batch_size": 4, "workers": 0, "precision": "fp32"}
        found = retrieval.evaluate(clip, loader.evaluation_pairs(pairs, clip), ALONE, **how)
        scores[alpha] = found.record["mean_recall"]
    alpha = wise["interpolation"]["alpha"]
    assert scores[alpha] == wise["metrics"]["mean_recall"] == max(scores.values())
    assert same(wise["state_dict"], averaging.interpolated(before, best["state_dict"], alpha))
    swept = {r["wise/alpha"]: r["wise/mean_recall"] for r in records(run) if "wise/alpha" in r}
    assert swept == {0.5: scores[0.5], 0.8: scores[0.8]}
    assert f"; {scores[alpha]:.4f} in wise.pt (alpha {alpha:g}); " in said(run)


@pytest.mark.slow
def test_wise_of_two_ranks_with_adapters_and_an_average(
    finished: Path, packed: Path, tmp_path: Path
) -> None:
    ways = {"lora": {"rank": 4}, "ema": {"decay": 0.5}}
    config = tune(finished, packed, tmp_path, optim__lr=1e-2, **ways)
    assert fork_server.train(2, tmp_path, "--config", config) == [0, 0]
    assert_best_between(tmp_path / "run", weights(finished), packed)


@pytest.mark.slow
def test_a_signal_in_the_sweep_and_what_was_gained(
    finished: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed command does the sweep; the gain is that of the test split, pair by pair."""
    config, run = tune(finished, packed, tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:  # the second of two: after 17 records and one of the first
        patch.setattr(Trainer, "asked_to_stop", lambda self: steps_of(run) == 18)
        assert run_training(config) == 75
    assert not (run / "checkpoints" / "wise.pt").exists()
    assert run_training(config) == 0
    assert_best_between(run, weights(finished), packed)

    hits = []
    for name in ("best", "start"):
        ranks = np.load(run / "evaluations" / f"{name}-test.npz")
        each = [ranks[f"{way}_rank"] <= k for way in DIRECTIONS for k in (1, 5, 10)]
        hits.append(np.mean(each, 0))
    gain = hits[0] - hits[1]
    drawn = gain[np.random.default_rng(0).integers(0, len(gain), (1000, len(gain)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    words = f"mean_recall {gain.mean():+.4f} [{low:+.4f}, {high:+.4f}] over the start on 12 test"
    assert f"{words} pairs; next: " in said(run)
    assert ("no gain that can be told from chance: " in said(run)) == (low <= 0 <= high)
    assert call(report.main, ReportConfig, "--run", run) == 0
    assert words in Reader((run / "report.html").read_text()).text
    torch.save(weights(run), tmp_path / "start.pt")
    for why in ("model.pretrained has other weights", "model.pretrained: '.*start.pt' is neither"):
        assert run_training(config) == 0
        assert re.search(f"best.pt; no comparison with the start: {why}.*; next: ", said(run))
        (tmp_path / "start.pt").unlink(missing_ok=True)


@pytest.mark.slow
def test_patience_ends_the_run_and_is_kept_by_its_state(
    finished: Path, packed: Path, tmp_path: Path
) -> None:
    kept = {"every_steps": 1, "keep_last": 99}
    changes = {"valid": {"patience": 2}, "optim__lr": 0.3, "checkpoint": kept}
    config, run = tune(finished, packed, tmp_path, **changes), tmp_path / "run"
    assert run_training(config) == 0
    once = measured(run)
    assert [once[0]["step"], once[-1]["step"]] == [0, 6]
    assert "done: step 6 of 12, after 2 validations without gain; best " in said(run)
    assert "best.pt, the start: no gain" in said(run)
    early = run / "checkpoints" / "step-00000004.pt"
    for words in (["--resume", early], []):  # from the middle, and with no step left
        assert run_training(config, *words) == 0
        assert measured(run) == once


GAINS = [  # difference, its interval, and what is said of them
    (0.02, (0.01, 0.03), "mean_recall +0.0200 [+0.0100, +0.0300] over the start on 7 test pairs"),
    (0.01, (-0.01, 0.03), "no gain that can be told from chance: mean_recall +0.0100 [-0.0100, "),
    (-0.02, (-0.03, -0.01), "no gain: mean_recall -0.0200 [-0.0300, -0.0100] over the start"),
    (0.0, None, "no gain that can be told from chance: mean_recall +0.0000 over the start on 7 "),
]


@pytest.mark.parametrize(("gain", "ends", "expected"), GAINS)
def test_what_a_gain_is_called(gain: float, ends: Any, expected: str) -> None:
    both: dict[str, Any] = {way: {} for way in DIRECTIONS}
    difference = both | {"mean_recall": gain}
    if ends is not None:
        difference["intervals"] = both | {"mean_recall": ends}
    record = {"pool": 7, "baseline": {"difference": difference}}
    assert validation.gained(record, "mean_recall", "test").startswith(expected)
    chose = validation.gained(record, "mean_recall", "valid")
    assert chose.endswith("7 valid pairs, the pairs that chose the checkpoint")


USUAL = "augmentation, model.preprocess, captions of other images"
GUESSES = f"learning rate, {USUAL} (loss 6.93, guessing has 6.93)"
CAUSES = [
    ((3, 2, 0.06, 0.4), "learning rate (loss 2, then 2.5)"),
    ((6.93, 2, 0.06, 0.4), f"{GUESSES}; learning rate (loss 2, then 4.46)"),
    ((1.5, 10, 0.06, 0.4), "learning rate (gradient 2, then 6)"),
    ((1.5, 2, 0.06, 0.2), "too short a warm-up (step 2 was the worst)"),
    ((3, 2, 0.01, 0.4), "learning rate (loss 2, then 2.5); temperature at its clamp"),
    ((1.5, 2, 0.06, 0.4), USUAL),
]


@pytest.mark.parametrize(("ends", "expected"), CAUSES)
def test_likely_causes(ends: tuple[float, ...], expected: str) -> None:
    """Of 20 steps: loss, gradient and temperature go from 2 to an end; and the score at step 2."""
    curves = np.linspace([2, 2, 2], ends[:3], 20).tolist()
    names = ("step", "loss", "grad_norm", "temperature")
    run = [dict(zip(names, (n, *row), strict=True)) for n, row in enumerate(curves, 1)]
    scores = ((0, 0.5), (2, ends[3]), (20, 0.3))
    run += [{"step": step, "valid/mean_recall": score} for step, score in scores]
    assert validation.likely_causes(run, Config()) == expected
