"""Ways of fine-tuning through the training command: what is left behind, and what the log says."""

from pathlib import Path
from typing import Any

import open_clip
import pytest

from medclip_oc import evaluate
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call, records, run_training, write_config
from tests.support.interrupted import fork_server
from tests.support.tiny_models import TINY

BIASED = {**TINY, "init_logit_bias": -2.0, "init_logit_scale": 2.3}
LORA = {"lora": {"rank": 4}, "ema": {"decay": 0.9}, "loss": {"positives": "captions"}}


def trained(packed: Path, folder: Path, **changes: Any) -> Path:
    """The folder of a run of 6 steps."""
    assert run_training(write_config(packed, folder, **{"train__epochs": 2, **changes})) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def adapted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and a running average."""
    return trained(packed, tmp_path_factory.mktemp("adapted"), **LORA)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__image_layer_decay": 0.5, "optim__text_lr": 1e-4},
        {"optim__freeze": "image"},
        {"optim__freeze": ["text", "^logit_scale$"], "optim__image_last_blocks": 1},
        LORA,
        {"loss": {"positives": "concepts", "label_smoothing": 0.1}},
        {"loss": {"name": "siglip"}, "model": {"arch": "sigmoid-test", "definition": BIASED}},
    ],
    ids=["layer decay", "frozen images", "last block", "adapters", "concepts", "siglip"],
)
def test_a_run(packed: Path, tmp_path: Path, adapted: Path, changes: dict[str, Any]) -> None:
    run = adapted if changes is LORA else trained(packed, tmp_path, **changes)
    last = run / "checkpoints" / "last.pt"
    content = checkpoint.load(last)
    state, model = content["state_dict"], ModelConfig(**content["config"]["model"])
    start = factory.build(model, seed=1).towers.clip.state_dict()
    theirs = open_clip.create_model(model.arch, pretrained=str(last)).state_dict()
    assert state.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in state.items())
    moved = {name for name, value in start.items() if not value.equal(state[name])}
    log = (run / "log.txt").read_text()
    assert "each step contrasts 16 pairs: 16 per rank in 4 chunk(s); warm-up 1 steps (17%" in log
    assert "trains: " in log
    if "lora" in changes:
        assert moved == {n for n in state if "resblocks" in n and state[n].ndim == 2} | {
            "logit_scale"
        }
    elif "freeze" in str(changes):
        tower = "text" if changes["optim__freeze"] != "image" else "image"
        assert f"frozen: {tower} tower: " in log
        is_image = [name.startswith("visual.") for name in moved - {"logit_scale"}]
        assert set(is_image) == {tower == "text"}
        assert ("logit_scale" in moved) == (tower == "image")
    else:
        assert moved == set(state)


def test_the_average_is_evaluated_and_saved(adapted: Path) -> None:
    file = adapted / "checkpoints" / "ema.pt"
    [last] = [r for r in records(adapted) if "valid_ema/mean_recall" in r]
    assert last["step"] == 6
    content = checkpoint.load(file)
    assert content["metrics"]["mean_recall"] == last["valid_ema/mean_recall"]
    own = checkpoint.load(adapted / "checkpoints" / "last.pt")["state_dict"]
    assert content["state_dict"].keys() == own.keys()
    assert not content["state_dict"]["logit_scale"].equal(own["logit_scale"])
    assert call(evaluate.main, EvaluateConfig, "--checkpoint", file, "--split", "valid") == 0
    assert (adapted / "evaluations" / "ema-valid.json").exists()
    assert "validation of the average over 12 pairs" in (adapted / "log.txt").read_text()


@pytest.mark.slow
def test_two_processes_train_adapters_as_one(packed: Path, tmp_path: Path, adapted: Path) -> None:
    file = write_config(packed, tmp_path, "two", train__epochs=2, **LORA)
    assert fork_server.train(2, tmp_path, "--config", file) == [0, 0]
    alone, both = (
        [r["loss"] for r in records(f) if "loss" in r] for f in (adapted, tmp_path / "two")
    )
    assert both == pytest.approx(alone, rel=1e-3)
