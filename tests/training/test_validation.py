"""Step 0 and what follows it: which model is best, and what the run says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc import train
from medclip_oc.config.schema import Config, DataConfig, ModelConfig, TrainCommand, ValidConfig
from medclip_oc.models import checkpoint
from medclip_oc.training import validation
from medclip_oc.training.build import Plan
from tests.support.cli import call, records
from tests.support.interrupted import configure, measured, same, weights
from tests.support.tiny_models import TINY, VIT

DROPOUT = {**TINY, "vision_cfg": {**VIT, "patch_dropout": 0.5}}


def test_when_it_validates() -> None:
    def steps(total: int, per_epoch: int, **valid: Any) -> list[int]:
        plan = Plan(per_epoch, 2, total, 0)  # pairs of an epoch, in batches of two
        settings = ValidConfig(**valid)
        return [n for n in range(1, total + 1) if validation.due(settings, plan, n)]

    assert steps(10, 5) == [3, 5, 8, 10]
    assert steps(10, 5, every_epochs=2) == [5, 10]
    assert steps(7, 5, every_epochs=None) == [7]
    assert steps(7, 5, every_epochs=None, every_steps=3) == [3, 6, 7]


@pytest.mark.parametrize(
    ("model", "at_start", "expected"),
    [
        ({"pretrained": "openai"}, None, True),
        ({"pretrained": "openai"}, False, False),
        ({"arch": "hf-hub:a/b"}, None, True),
        ({"pretrained_image": "a.pt"}, None, True),
        ({}, None, False),
        ({}, True, True),
    ],
)
def test_what_starts_from_weights_is_measured(
    model: dict[str, Any], at_start: bool | None, expected: bool
) -> None:
    valid = ValidConfig(at_start=at_start)
    config = Config(model=ModelConfig(**model), valid=valid)
    assert validation.measures_start(config) is expected
    config = Config(model=ModelConfig(**model), valid=valid, data=DataConfig(valid=None))
    assert not validation.measures_start(config)


def test_step_0_is_a_candidate_and_changes_nothing_else(
    finished: Path, packed: Path, tmp_path: Path
) -> None:
    """At a rate that does harm it is best.pt; the training is that of a run without it."""
    torch.save(weights(finished), file := tmp_path / "start.pt")
    model = {"arch": "start-test", "definition": DROPOUT, "pretrained": str(file)}
    harm = {"model": model, "optim__lr": 0.3, "train__epochs": 1, "ema": {"decay": 0.5}}
    for name, at_start in (("without", False), ("measured", True)):
        config = configure(packed, tmp_path, name, valid={"at_start": at_start}, **harm)
        assert call(train.main, TrainCommand, "--config", config) == 0
    run = tmp_path / "measured"
    first, *others = measured(run)
    assert first["step"] == 0
    assert others == measured(tmp_path / "without")
    assert same(weights(run), weights(tmp_path / "without"))
    scores = [r["valid/mean_recall"] for r in records(run) if "valid/mean_recall" in r]
    best = checkpoint.load(run / "checkpoints" / "best.pt")
    assert best["metrics"]["mean_recall"] == scores[0] > max(scores[1:])
    assert (best["step"], best["epoch"]) == (0, 0)
    assert same(best["state_dict"], weights(finished))
