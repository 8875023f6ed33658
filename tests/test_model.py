"""Models are built, described and restored without guessing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import TEXT, TINY, VIT
from PIL import Image

from medclip_oc import checkpoint, model
from medclip_oc.config import ModelConfig
from medclip_oc.errors import InputError

RESNET = {**TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}}
QUICK = {**TINY, "quick_gelu": True}


def picture(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 30)).resize(size)


def save(clip: model.Clip, file: Path) -> Path:
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description, "config": {}}
    checkpoint.save(file, content)
    return file


def embed(clip: model.Clip) -> torch.Tensor:
    clip.towers.eval()
    with torch.inference_mode():
        images = clip.preprocess(picture(1))[None]
        image_features, text_features, _ = clip.towers(images, clip.tokenizer(["a mass"]))
    return torch.cat([image_features, text_features])


@pytest.mark.parametrize("definition", [TINY, RESNET, QUICK], ids=["vit", "resnet", "quick_gelu"])
def test_open_clip_reads_our_checkpoint(tmp_path: Path, definition: dict[str, object]) -> None:
    """The contract: open_clip's own factory takes the file and gives our features."""
    name = f"parity-{definition['vision_cfg']}-{'quick_gelu' in definition}".replace(" ", "")
    settings = ModelConfig(arch=name, definition=definition)
    clip = model.build(settings, seed=5)
    file = save(clip, tmp_path / "best.pt")
    theirs, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(file))
    theirs.eval()
    with torch.inference_mode():
        images = preprocess(picture(1))[None]
        image_features = theirs.encode_image(images, normalize=True)
        text_features = theirs.encode_text(
            open_clip.get_tokenizer(name)(["a mass"]), normalize=True
        )
    torch.testing.assert_close(embed(clip), torch.cat([image_features, text_features]))


def test_the_activation_is_in_the_description(tmp_path: Path) -> None:
    clip = model.build(ModelConfig(arch="quick-test", definition=QUICK), seed=5)
    plain = model.build(ModelConfig(arch="plain-test", definition=TINY), seed=5)
    assert clip.description["quick_gelu"] is True
    assert not torch.allclose(embed(clip), embed(plain))
    restored = model.load(save(clip, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(clip))
    settings = ModelConfig(arch="plain-test", definition=TINY, pretrained=str(tmp_path / "a.pt"))
    with pytest.raises(
        InputError, match=r"holds quick-test .*'quick_gelu': True.* but .*plain-test"
    ):
        model.build(settings)


def test_our_checkpoint_is_a_starting_point(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = model.build(tiny, seed=5)
    file = save(clip, tmp_path / "a.pt")
    again = model.build(replace(tiny, pretrained=str(file)), seed=6)
    assert embed(again).equal(embed(clip))
    assert not embed(model.build(tiny, seed=6)).equal(embed(clip))


def test_seeded(tiny: ModelConfig) -> None:
    assert embed(model.build(tiny, seed=3)).equal(embed(model.build(tiny, seed=3)))


def test_preprocessing_travels(tmp_path: Path) -> None:
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "resize_mode": "longest"}
    clip = model.build(ModelConfig(arch="pre-test", definition=TINY, preprocess=other))
    restored = model.load(save(clip, tmp_path / "a.pt"))
    assert restored.description == clip.description
    assert embed(restored).equal(embed(clip))
    assert restored.preprocess(picture(2)).equal(clip.preprocess(picture(2)))
    with pytest.raises(InputError, match=r"model\.preprocess\.means: no such setting"):
        model.build(ModelConfig(arch="pre-test", definition=TINY, preprocess={"means": 1}))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_equal_open_clips_preprocessing(mode: str) -> None:
    settings = ModelConfig(arch=f"pixels-{mode}", definition=TINY, preprocess={"resize_mode": mode})
    clip = model.build(settings)
    theirs = open_clip.image_transform(32, is_train=False, resize_mode=mode)
    ours = (clip.preprocess(picture(3))[None] - clip.towers.mean) / clip.towers.std
    torch.testing.assert_close(ours[0], theirs(picture(3)))


def test_image_size(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = model.build(ModelConfig(arch="ViT-B-32", image_size=64))
    assert clip.image_size == (64, 64)
    assert clip.description["name"] == "ViT-B-32-64px"
    restored = model.load(save(clip, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(clip))


def test_local_folder(tmp_path: Path, tiny: ModelConfig) -> None:
    """`local-dir:` is open_clip's own form of a model in a folder."""
    clip = model.build(tiny, seed=9)
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(clip.towers.clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    opened = model.build(ModelConfig(arch=f"local-dir:{tmp_path}"))
    assert opened.description["preprocess"]["mean"] == [0.5] * 3
    assert all(
        ours.equal(theirs)
        for ours, theirs in zip(opened.towers.parameters(), clip.towers.parameters(), strict=True)
    )
    restored = model.load(save(opened, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(opened))


def test_damaged_description(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = model.build(tiny)
    state = clip.towers.clip.state_dict()
    del state["visual.proj"]
    checkpoint.save(
        tmp_path / "a.pt", {"state_dict": state, "model": clip.description, "config": {}}
    )
    with pytest.raises(InputError, match=r"a\.pt: its weights don't fit .*tiny-test.*visual\.proj"):
        model.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"arch": "ViT-B-61"},
            "'ViT-B-61' is not an open_clip architecture; did you mean ViT-B-16",
        ),
        ({"arch": "RN50", "pretrained": "openai"}, "trained with QuickGELU; use RN50-quickgelu"),
        (
            {"arch": "RN50", "pretrained": "nope"},
            r"'nope' is neither a file nor a tag of RN50 \(openai",
        ),
        ({"arch": "local-dir:/nowhere"}, "local-dir:/nowhere: could not be loaded"),
        ({"arch": "x", "definition": {"embed_dim": 3}}, "lacks vision_cfg, text_cfg"),
        ({"arch": "RN50", "definition": TINY}, "'RN50' is open_clip's own"),
        ({"arch": "y", "definition": {**TINY, "vision_cfg": {"foo": 1}}}, "'foo'"),
        (
            {"arch": "hf-hub:a/b", "pretrained": "openai"},
            "leave pretrained out|could not be loaded",
        ),
    ],
)
def test_what_cannot_be_built(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.build(ModelConfig(**settings))


def test_a_checkpoint_of_another_size(tmp_path: Path) -> None:
    wide = {**TINY, "text_cfg": {**TEXT, "width": 48, "heads": 3}}
    torch.save(
        model.build(ModelConfig(arch="w", definition=wide)).towers.clip.state_dict(),
        tmp_path / "w.pt",
    )
    settings = ModelConfig(arch="n", definition=TINY, pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(
        InputError, match=r"model\.pretrained: .*w\.pt doesn't fit n \(.*width changed"
    ):
        model.build(settings)


def test_frozen_batch_norm_stays_in_evaluation_mode() -> None:
    frozen = model.build(ModelConfig(arch="rn-test", definition=RESNET)).towers.train()
    live = model.build(
        ModelConfig(arch="rn-test", definition=RESNET, freeze_batch_norm=False)
    ).towers.train()
    assert not any(m.training for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert all(m.training for m in live.modules())
    assert frozen.clip.transformer.training


def test_temperature_is_clamped(tiny: ModelConfig) -> None:
    towers = model.build(tiny).towers
    assert 1 / towers.inverse_temperature().item() == pytest.approx(0.07)
    for value, limit in ((9.0, 100.0), (-1.0, 1.0)):
        towers.clip.logit_scale.data.fill_(value)
        towers.clamp_temperature()
        assert towers.inverse_temperature().item() == pytest.approx(limit)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny: ModelConfig) -> None:
    plain = model.build(tiny, seed=2).towers.train()
    saving = model.build(replace(tiny, grad_checkpointing=True), seed=2).towers.train()
    images, tokens = (
        torch.full((2, 3, *VIT_SIZE), 7, dtype=torch.uint8),
        torch.ones(2, 32, dtype=torch.int64),
    )
    for towers in (plain, saving):
        image_features, text_features, _ = towers(images, tokens)
        (image_features[:, 0].sum() + text_features[:, 0].sum()).backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


VIT_SIZE = (VIT["image_size"], VIT["image_size"])
