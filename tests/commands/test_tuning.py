"""Ways of fine-tuning through the training command: what is left behind, and what the log says."""

import json
from pathlib import Path
from typing import Any

import interpolate
import open_clip
import pytest
import torch
import yaml
from interpolate import InterpolateConfig

from medclip_oc import evaluate, train
from medclip_oc.config.evaluation import EvaluateConfig
from medclip_oc.config.schema import ModelConfig, TrainCommand
from medclip_oc.models import checkpoint, factory
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from tests.support.cli import ROOT, call, records, settings, torchrun, write
from tests.support.tiny_models import TINY

LORA = {"lora": {"rank": 4}, "ema": {"decay": 0.9}, "loss": {"positives": "captions"}}


def trained(packed: Path, folder: Path, **changes: Any) -> Path:
    """The folder of a run of 6 steps."""
    tree = settings(packed, folder / "run", **{"train__epochs": 2, **changes})
    file = write(tree, folder / "c.yaml")
    assert call(train.main, TrainCommand, "--config", file) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def adapted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and a running average."""
    return trained(packed, tmp_path_factory.mktemp("adapted"), **LORA)


def start() -> dict[str, torch.Tensor]:
    settings = ModelConfig(arch="train-test", definition=TINY)
    return factory.build(settings, seed=1).towers.clip.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__image_layer_decay": 0.5, "optim__text_lr": 1e-4},
        {"optim__freeze": "image"},
        {"optim__freeze": ["text", "^logit_scale$"], "optim__image_last_blocks": 1},
        LORA,
        {"loss": {"positives": "concepts", "label_smoothing": 0.1}},
    ],
    ids=["layer decay", "frozen images", "last block", "adapters", "concepts"],
)
def test_a_run(packed: Path, tmp_path: Path, adapted: Path, changes: dict[str, Any]) -> None:
    run = adapted if changes is LORA else trained(packed, tmp_path, **changes)
    last = run / "checkpoints" / "last.pt"
    state = checkpoint.load(last)["state_dict"]
    theirs = open_clip.create_model("train-test", pretrained=str(last)).state_dict()
    assert state.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in state.items())
    moved = {name for name, value in start().items() if not value.equal(state[name])}
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
    run = adapted
    file = run / "checkpoints" / "ema.pt"
    [last] = [r for r in records(run) if "valid_ema/mean_recall" in r]
    assert last["step"] == 6
    content = checkpoint.load(file)
    assert content["metrics"]["mean_recall"] == last["valid_ema/mean_recall"]
    own = checkpoint.load(run / "checkpoints" / "last.pt")["state_dict"]
    assert content["state_dict"].keys() == own.keys()
    assert not content["state_dict"]["logit_scale"].equal(own["logit_scale"])
    assert call(evaluate.main, EvaluateConfig, "--checkpoint", file, "--split", "valid") == 0
    assert (run / "evaluations" / "ema-valid.json").exists()
    assert "validation of the average over 12 pairs" in (run / "log.txt").read_text()


def test_averaging_leaves_the_run_as_it_is(packed: Path, tmp_path: Path) -> None:
    states = []
    for name, ema in (("with", {"decay": 0.9}), ("without", {"decay": None})):
        (tmp_path / name).mkdir()
        run = trained(packed, tmp_path / name, ema=ema, train__epochs=1, valid__every_steps=2)
        states.append(checkpoint.load(run / "checkpoints" / "last.pt")["state_dict"])
    one, two = states
    assert all(value.equal(two[name]) for name, value in one.items())


@pytest.mark.slow
def test_two_processes_train_adapters_as_one(packed: Path, tmp_path: Path, adapted: Path) -> None:
    file = write(settings(packed, tmp_path / "two", train__epochs=2, **LORA), tmp_path / "two.yaml")
    done = torchrun(2, "-m", "medclip_oc.train", "--config", file)
    assert done.returncode == 0, done.stderr
    alone, both = (
        [r["loss"] for r in records(f) if "loss" in r] for f in (adapted, tmp_path / "two")
    )
    assert both == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
def test_on_real_pairs(rocov2_mini: Path, tmp_path: Path) -> None:
    """Warm towers, images of 96 pixels: trains, resumes, merges, evaluates, mixes."""
    real, run = tmp_path / "shards", tmp_path / "run"
    pack(open_source(rocov2_mini), real, PackOptions(resize=128))
    model = yaml.safe_load((ROOT / "configs" / "warm_towers.yaml").read_text())["model"]
    model["arch"], model["definition"]["vision_cfg"]["image_size"] = "warm-small", 96
    changes = {
        "model": model,
        "optim__lr": 1e-3,
        "train__global_batch_size": 40,
        "train__micro_batch_size": 20,
        "train__epochs": 1,
        "checkpoint": {"every_steps": 1, "keep_last": 2},
        "lora": {"rank": 8, "alpha": 16},
        "ema": {"decay": 0.5},
    }
    file = write(settings(real, run, **changes), tmp_path / "config.yaml")
    words = ("--config", file, "--data.samples_per_epoch", 80)
    assert call(train.main, TrainCommand, *words) == 0
    kept = [run / "checkpoints" / f"{name}.pt" for name in ("last", "ema")]
    through = [checkpoint.load(path)["state_dict"] for path in kept]
    losses = [r["loss"] for r in records(run) if "loss" in r]
    assert len(losses) == 2

    first = run / "checkpoints" / "step-00000001.pt"
    assert call(train.main, TrainCommand, *words, "--resume", first) == 0
    assert [r["loss"] for r in records(run) if "loss" in r] == losses
    for path, wanted in zip(kept, through, strict=True):
        state = checkpoint.load(path)["state_dict"]
        assert state.keys() == wanted.keys()
        assert all(value.equal(wanted[key]) for key, value in state.items())
        fresh = factory.build(ModelConfig(arch="warm-small", definition=model["definition"]))
        fresh.towers.clip.load_state_dict(state)  # the names of the plain model, all of them
        how = ("--checkpoint", path, "--split", "valid", "--workers", 0)
        assert call(evaluate.main, EvaluateConfig, *how) == 0

    mixed = ("--data", real, "--alphas", "0,0.5,1", "--workers", 0, "--out", tmp_path / "wise")
    assert call(interpolate.main, InterpolateConfig, "--fine-tuned", kept[0], *mixed) == 0
    figures = json.loads((tmp_path / "wise" / "interpolation.json").read_text())
    assert len(figures["rows"]) == 3
