"""Models are built, described and restored without guessing."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import checkpoint, factory
from tests.support.tiny_dataset import picture
from tests.support.tiny_models import TEXT, TINY, VIT

RESNET = {**TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}}
QUICK = {**TINY, "quick_gelu": True}


def save(clip: factory.Clip, file: Path) -> Path:
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description, "config": {}}
    checkpoint.save(file, content)
    return file


def embed(clip: factory.Clip) -> torch.Tensor:
    clip.towers.eval()
    with torch.inference_mode():
        images = clip.preprocess(picture(1))[None]
        image_features, text_features, _ = clip.towers(images, clip.tokenizer(["a mass"]))
    return torch.cat([image_features, text_features])


@pytest.mark.parametrize(
    ("name", "definition"),
    [("parity-vit", TINY), ("parity-resnet", RESNET), ("parity-quick", QUICK)],
)
def test_open_clip_reads_our_checkpoint(
    tmp_path: Path, name: str, definition: dict[str, object]
) -> None:
    """The contract: open_clip's own factory takes the file and gives our features."""
    settings = ModelConfig(arch=name, definition=definition)
    clip = factory.build(settings, seed=5)
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
    clip = factory.build(ModelConfig(arch="quick-test", definition=QUICK), seed=5)
    plain = factory.build(ModelConfig(arch="plain-test", definition=TINY), seed=5)
    assert clip.description["quick_gelu"] is True
    assert not torch.allclose(embed(clip), embed(plain))
    restored = factory.load(save(clip, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(clip))
    settings = ModelConfig(arch="plain-test", definition=TINY, pretrained=str(tmp_path / "a.pt"))
    with pytest.raises(
        InputError, match=r"holds quick-test .*'quick_gelu': True.* but .*plain-test"
    ):
        factory.build(settings)


def test_our_checkpoint_is_a_starting_point(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = factory.build(tiny, seed=5)
    file = save(clip, tmp_path / "a.pt")
    again = factory.build(replace(tiny, pretrained=str(file)), seed=6)
    assert embed(again).equal(embed(clip))
    assert not embed(factory.build(tiny, seed=6)).equal(embed(clip))


def test_seeded(tiny: ModelConfig) -> None:
    assert embed(factory.build(tiny, seed=3)).equal(embed(factory.build(tiny, seed=3)))


def test_preprocessing_travels(tmp_path: Path) -> None:
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "resize_mode": "longest"}
    clip = factory.build(ModelConfig(arch="pre-test", definition=TINY, preprocess=other))
    restored = factory.load(save(clip, tmp_path / "a.pt"))
    assert restored.description == clip.description
    assert embed(restored).equal(embed(clip))
    assert restored.preprocess(picture(2)).equal(clip.preprocess(picture(2)))
    file = tmp_path / "a.pt"
    # what starts from the checkpoint has its preprocessing, and can't ask for another
    again = ModelConfig(arch="pre-test", definition=TINY, pretrained=str(file))
    assert factory.build(again).description["preprocess"] == clip.description["preprocess"]
    with pytest.raises(InputError, match=r"a\.pt was trained with .*0\.1.* asks for .*0\.7"):
        factory.build(replace(again, preprocess={"mean": [0.7] * 3}))


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"means": 1}, "preprocess.means: no such setting"),
        ({"mean": 3}, "mean: 3 is not three numbers"),
        ({"interpolation": "random"}, "'random' is not one of bicubic, bilinear"),
        ({"resize_mode": "crop"}, "'crop' is not one of shortest, longest, squash"),
    ],
)
def test_bad_preprocessing(preprocess: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory.build(ModelConfig(arch="pre-test", definition=TINY, preprocess=preprocess))


def test_image_size(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = factory.build(replace(tiny, image_size=48))
    assert clip.image_size == (48, 48)
    assert clip.description["name"] == "tiny-test-48px"
    restored = factory.load(save(clip, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(clip))


def test_position_tables_are_not_stretched_unasked(tmp_path: Path, tiny: ModelConfig) -> None:
    weights = factory.build(tiny).towers.clip.state_dict()
    torch.save(weights, tmp_path / "w.pt")
    larger = {**TINY, "vision_cfg": {**VIT, "image_size": 64}}
    settings = ModelConfig(arch="larger", definition=larger, pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"visual\.positional_embedding is \(17, 32\).*\(65, 32\)"):
        factory.build(settings)
    asked = factory.build(replace(tiny, image_size=64, pretrained=str(tmp_path / "w.pt")))
    assert asked.image_size == (64, 64)


def test_a_checkpoint_can_not_choose_where_to_write(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = factory.build(tiny)
    clip.description["name"] = "../../escaped"
    with pytest.raises(InputError, match="can't name a model"):
        factory.load(save(clip, tmp_path / "a.pt"))


def test_a_checkpoint_without_description(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {"state_dict": {}, "config": {}})
    with pytest.raises(InputError, match=r"a\.pt: the checkpoint doesn't describe its model"):
        factory.load(tmp_path / "a.pt")


def test_weights_in_torch_s_old_format(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = factory.build(tiny, seed=5)
    state = clip.towers.clip.state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    again = factory.build(replace(tiny, pretrained=str(tmp_path / "old.pt")), seed=6)
    assert embed(again).equal(embed(clip))


def test_a_bias_that_the_loss_cancels_is_not_trained() -> None:
    """SigLIP architectures have one; DistributedDataParallel would wait for its gradient."""
    clip = factory.build(ModelConfig(arch="bias-test", definition={**TINY, "init_logit_bias": -10}))
    frozen = [name for name, p in clip.towers.named_parameters() if not p.requires_grad]
    assert frozen == ["clip.logit_bias"]


def test_local_folder(tmp_path: Path, tiny: ModelConfig) -> None:
    """`local-dir:` is open_clip's own form of a model in a folder."""
    clip = factory.build(tiny, seed=9)
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(clip.towers.clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    opened = factory.build(ModelConfig(arch=f"local-dir:{tmp_path}"))
    assert opened.description["preprocess"]["mean"] == [0.5] * 3
    assert all(
        ours.equal(theirs)
        for ours, theirs in zip(opened.towers.parameters(), clip.towers.parameters(), strict=True)
    )
    restored = factory.load(save(opened, tmp_path / "a.pt"))
    assert embed(restored).equal(embed(opened))


def test_damaged_description(tmp_path: Path, tiny: ModelConfig) -> None:
    clip = factory.build(tiny)
    state = clip.towers.clip.state_dict()
    del state["visual.proj"]
    checkpoint.save(
        tmp_path / "a.pt", {"state_dict": state, "model": clip.description, "config": {}}
    )
    with pytest.raises(InputError, match=r"a\.pt: its weights don't fit .*tiny-test.*visual\.proj"):
        factory.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "a/b", "definition": TINY}, "'a/b' can't name a model"),
        ({"arch": "z", "definition": {**TINY, "vision_cfg": 5}}, "vision_cfg: 5 is not a mapping"),
        (
            {"arch": "q", "definition": {**TINY, "vision_cfg": {**VIT, "patch_size": 0}}},
            "q can't be",
        ),
        (
            {"arch": "c", "definition": {**TINY, "custom_text": True, "multimodal_cfg": TEXT}},
            "is a CoCa",
        ),
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
            "leave pretrained out",
        ),
    ],
)
def test_what_cannot_be_built(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory.build(ModelConfig(**settings))


def test_a_checkpoint_of_another_size(tmp_path: Path) -> None:
    wide = {**TINY, "text_cfg": {**TEXT, "width": 48, "heads": 3}}
    torch.save(
        factory.build(ModelConfig(arch="w", definition=wide)).towers.clip.state_dict(),
        tmp_path / "w.pt",
    )
    settings = ModelConfig(arch="n", definition=TINY, pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(
        InputError, match=r"model\.pretrained: .*w\.pt doesn't fit n \(.*width changed"
    ):
        factory.build(settings)


def changed(file: Path, change: str, value: object) -> Path:
    """A checkpoint of which one fact is another."""
    content = checkpoint.load(file)
    content.pop("format")
    owner = content["model"]
    *path, name = change.split(".")
    for key in path:
        owner = owner[key]
    owner[name] = value
    checkpoint.save(file, content)
    return file


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        (
            "definition.quick_gelu",
            False,
            "made with quick_gelu True, but its definition of other-[a-z_-]+ has False",
        ),
        (
            "definition.text_cfg.context_length",
            16,
            "made with context_length 32, but its definition of other-[a-z_-]+ has 16",
        ),
        (
            "definition.text_cfg.hf_tokenizer_name",
            "bert-base-uncased",
            "made with tokenizer 'open_clip', but its definition of other-[a-z_-]+ has "
            "'bert-base-uncased'",
        ),
        (
            "tokens",
            [1, 2, 3],
            r"made with a tokenizer \(open_clip\) that isn't the one here: 'Chest",
        ),
        ("definition.vision_cfg.layers", 1, "don't fit its own description, other-"),
        ("preprocess.size", [64, 64], "made with preprocessing .*64.* is built with .*32"),
    ],
)
def test_what_doesnt_fit_is_refused_with_both_sides(
    tmp_path: Path, change: str, value: object, message: str
) -> None:
    arch = "other-" + change.replace(".", "-")
    clip = factory.build(ModelConfig(arch=arch, definition=QUICK))
    file = changed(save(clip, tmp_path / "a.pt"), change, value)
    with pytest.raises(InputError, match=message) as caught:
        factory.load(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
