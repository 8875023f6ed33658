"""Every file in configs/ is read, and its model built as far as no hub is needed."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.models import factory
from medclip_oc.training import trainer
from tests.support.cli import read_config
from tests.support.tiny_models import TINY

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_settings(file: Path) -> None:
    config = read_config(file)
    assert config.run.folder == f"runs/{'demo' if file.stem == 'tiny_cpu' else file.stem}"
    assert config.train.global_batch_size % config.train.micro_batch_size == 0
    assert f"configs/{file.name}" in file.read_text(encoding="utf-8"), "its head shows the command"


BUILT = {repr(read_config(file).model): file for file in CONFIGS}  # each model once
RECIPES = ("vitb16", "vitb16_lora", "vitb16_lit", "vitl14", "siglip", "biomedclip", "rn50_seed")
STAND_IN = {**TINY, "init_logit_bias": -10, "init_logit_scale": 2.3}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str, packed: Path, tmp_path: Path) -> None:
    """On a tiny stand-in for the model: all else as the file says, but for sizes."""
    config = read_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    config.run.folder = str(tmp_path / "run")
    kept = config.model.freeze_batch_norm, config.model.grad_checkpointing
    config.model = ModelConfig("recipe-stand-in", None, STAND_IN)
    config.model.freeze_batch_norm, config.model.grad_checkpointing = kept
    config.data.train = config.data.valid = str(packed)
    config.train.global_batch_size, config.train.micro_batch_size = 16, 8
    config.data.workers, config.train.epochs = 0, 1
    trainer.train(config)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "48 training pairs, 3 steps" in log
    assert "each step contrasts 16 pairs: 16 per rank in 2 chunk(s); warm-up 1 steps (33%" in log
    assert "trains: " in log


@pytest.mark.slow
@pytest.mark.parametrize("file", BUILT.values(), ids=lambda file: file.stem)
def test_model(file: Path) -> None:
    """Random weights; where open_clip's own towers allow it, small images."""
    settings = read_config(file).model
    if settings.arch.startswith("hf-hub:"):
        pytest.skip(f"{settings.arch} is on a model hub")
    known = open_clip.get_model_config(settings.arch) if settings.definition is None else None
    if known and known["text_cfg"].get("hf_tokenizer_name"):
        pytest.skip(f"the tokenizer of {settings.arch} is on a model hub")
    size = 64 if settings.definition is None else settings.image_size
    settings = replace(settings, pretrained=None, pretrained_image=None, image_size=size)
    clip = factory.build(replace(settings, pretrained_text=None))
    clip.towers.eval()
    images = torch.zeros(2, 3, *clip.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        image_features, text_features, scale = clip.towers(images, clip.tokenizer(["a", "b"]))
    width = clip.description["definition"]["embed_dim"]
    assert image_features.shape == text_features.shape == (2, width)
    assert 1 / scale.item() == pytest.approx(0.07)
