"""Every file in configs/ is read, and its model built as far as no hub is needed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medclip_oc import command, model
from medclip_oc.config import Config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(file: Path) -> Config:
    return command.parse(Config, ["--config", str(file)], prog="", description="")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_settings(file: Path) -> None:
    config = read(file)
    assert config.run.folder == f"runs/{'demo' if file.stem == 'tiny_cpu' else file.stem}"
    assert config.train.global_batch_size % config.train.micro_batch_size == 0
    assert f"configs/{file.name}" in file.read_text(), "its head shows the command"


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_model(file: Path) -> None:
    """Random weights; where open_clip's own towers allow it, small images."""
    settings = read(file).model
    if settings.arch.startswith("hf-hub:"):
        pytest.skip(f"{settings.arch} is on a model hub")
    size = 64 if settings.definition is None else settings.image_size
    settings = replace(settings, pretrained=None, pretrained_image=None, image_size=size)
    clip = model.build(replace(settings, pretrained_text=None))
    clip.towers.eval()
    images = torch.zeros(2, 3, *clip.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        image_features, text_features, scale = clip.towers(images, clip.tokenizer(["a", "b"]))
    width = clip.description["definition"]["embed_dim"]
    assert image_features.shape == text_features.shape == (2, width)
    assert 1 / scale.item() == pytest.approx(0.07)
