"""Models are built, described and restored without guessing."""

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import checkpoint, definition, factory
from medclip_oc.models.clip import Clip
from tests.support.reference import HF, RESNET, embed, save, timm
from tests.support.tiny_dataset import picture
from tests.support.tiny_models import TEXT, TINY, VIT

QUICK = {**TINY, "quick_gelu": True}


def build(arch: str = "tiny-test", *, seed: int = 5, **settings: Any) -> Clip:
    return factory.build(ModelConfig(arch=arch, **{"definition": TINY, **settings}), seed=seed)


PARITY = {"parity-resnet": {**TINY, "vision_cfg": RESNET}, "parity-quick": QUICK}


@pytest.mark.parametrize("name", PARITY)
def test_open_clip_reads_our_checkpoint(tmp_path: Path, name: str) -> None:
    """The contract: open_clip's own factory takes the file and gives our features."""
    clip = build(name, definition=PARITY[name])
    file = save(clip, tmp_path / "best.pt")
    theirs, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=file)
    tokens = open_clip.get_tokenizer(name)(["a mass"])
    theirs.eval()
    with torch.inference_mode():
        images = theirs.encode_image(preprocess(picture(1, (70, 50)))[None], normalize=True)
        texts = theirs.encode_text(tokens, normalize=True)
    torch.testing.assert_close(embed(clip), torch.cat([images, texts]))


def test_the_activation_is_in_the_description(tmp_path: Path) -> None:
    clip = build("quick-test", definition=QUICK)
    assert clip.description["quick_gelu"] is True
    assert not torch.allclose(embed(clip), embed(build()))
    file = save(clip, tmp_path / "a.pt")
    assert embed(factory.load(file)).equal(embed(clip))
    with pytest.raises(InputError, match=r"quick-test .*'quick_gelu': True.* but .*tiny-test"):
        build(pretrained=file)


def test_weights_are_a_starting_point(tmp_path: Path) -> None:
    """Those of a checkpoint, and bare ones, in torch's older format too."""
    clip, file = build(), tmp_path / "a.pt"
    assert embed(build(seed=5)).equal(embed(clip))
    assert not embed(build(seed=6)).equal(embed(clip))
    save(clip, file)
    assert embed(build(seed=6, pretrained=str(file))).equal(embed(clip))
    for zipped in (True, False):
        torch.save(clip.towers.clip.state_dict(), file, _use_new_zipfile_serialization=zipped)
        assert embed(build(seed=6, pretrained=str(file))).equal(embed(clip))


def test_preprocessing_travels(tmp_path: Path) -> None:
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "resize_mode": "longest"}
    clip = build(preprocess=other)
    file = save(clip, tmp_path / "a.pt")
    restored = factory.load(file)
    assert restored.description == clip.description
    assert embed(restored).equal(embed(clip))
    assert restored.preprocess(picture(2)).equal(clip.preprocess(picture(2)))
    # what starts from the checkpoint has its preprocessing, and can't ask for another
    assert build(pretrained=file).description["preprocess"] == clip.description["preprocess"]
    with pytest.raises(InputError, match=r"a\.pt was trained with .*0\.1.* asks for .*0\.7"):
        build(pretrained=file, preprocess={"mean": [0.7] * 3})


def test_no_normalisation_may_be_written_in_whole_numbers() -> None:
    ways = [{"mean": [zero] * 3, "std": [one] * 3} for zero, one in ((0, 1), (0.0, 1.0))]
    assert torch.equal(*(embed(build(preprocess=way)) for way in ways))


def test_image_size(tmp_path: Path) -> None:
    """Position tables are stretched where a size is asked for, and not by themselves."""
    clip = build(image_size=48)
    assert clip.image_size == (48, 48)
    assert clip.description["name"] == "tiny-test-48px"
    assert embed(factory.load(save(clip, tmp_path / "a.pt"))).equal(embed(clip))
    torch.save(build().towers.clip.state_dict(), tmp_path / "w.pt")
    larger = {**TINY, "vision_cfg": {**VIT, "image_size": 64}}
    with pytest.raises(InputError, match=r"1 of \d+ tensors of another size: visual\.pos"):
        build("larger", definition=larger, pretrained=str(tmp_path / "w.pt"))
    wide = {**TINY, "text_cfg": {**TEXT, "width": 48, "heads": 3}}
    with pytest.raises(InputError, match=r"w\.pt doesn't fit wide: \d+ of .* another size: pos"):
        build("wide", definition=wide, pretrained=str(tmp_path / "w.pt"))
    asked = build(image_size=64, pretrained=str(tmp_path / "w.pt"))
    assert asked.image_size == (64, 64)


@pytest.mark.parametrize("vision", [VIT, timm("test_vit")], ids=["open_clip", "timm"])
def test_patch_dropout_is_of_the_training_alone(tmp_path: Path, vision: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"definition": {**TINY, "vision_cfg": vision}}
    plain, clip = (build("drop-test", **settings, patch_dropout=share) for share in (None, 0.5))
    assert embed(clip).equal(embed(plain))
    assert clip.description == plain.description
    file = save(clip, tmp_path / "a.pt")
    resumed = factory.restore(checkpoint.load(file), file, ModelConfig(patch_dropout=0.5))
    images = torch.rand(2, 3, *clip.image_size)
    for of, drops in ((clip, True), (resumed, True), (factory.load(file), False)):
        tower = of.towers.train().clip.visual
        assert tower(images).equal(tower(images)) != drops


@pytest.mark.parametrize("custom", [False, True])
def test_context_length(tmp_path: Path, custom: bool) -> None:
    """The rule in numpy; captions within 20 tokens keep their features; checkpoints have it."""
    settings: dict[str, Any] = {"definition": {**TINY, "custom_text": custom}, "context_length": 32}
    plain = build("long-test", **settings)
    settings |= {"context_length": 48, "pretrained": save(plain, tmp_path / "a.pt")}
    clip = build("long-test", **settings)
    assert "the first 20 of 32 positions stay" in clip.description["stretched"]
    towers = (getattr(of.towers.clip, "text", of.towers.clip) for of in (plain, clip))
    before, after = (tower.positional_embedding.detach().numpy() for tower in towers)
    places = [*range(20), *np.linspace(20, 31, 28)]
    wanted = np.stack([np.interp(places, range(32), column) for column in before.T], axis=1)
    np.testing.assert_allclose(after, wanted, atol=1e-6)
    restored = factory.load(save(clip, tmp_path / "b.pt"))
    assert restored.description == clip.description
    assert restored.description["name"] == "long-test-48tokens"
    assert restored.tokenizer(["a " * 99]).count_nonzero() == 48
    features = [
        of.towers.embed_texts(of.tokenizer(["mass", "a " * 18])) for of in (restored, plain)
    ]
    torch.testing.assert_close(*features, atol=1e-6, rtol=0)


def test_a_hub_without_weights_or_with_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip goes on with random ones. That the hub is out of reach is found out at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    definition.look_for_hub.cache_clear()
    folder = tmp_path / "models--org--clip" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text(folder.name)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    clip, file = build(seed=9), folder / "open_clip_pytorch_model.bin"
    state, settings = clip.towers.clip.state_dict(), {"arch": "hf-hub:org/clip", "definition": None}
    with pytest.raises(
        WorkError, match=r"hf-hub:org/clip: could not be loaded.*127\.0\.0\.1:9 can't"
    ):
        build(**settings)
    torch.save(state, file)
    assert embed(build(**settings)).equal(embed(clip))
    torch.save({**state, "visual.proj": state["visual.proj"].int()}, file)
    with pytest.raises(InputError, match=r"model\.bin: visual\.proj .*is no plain tensor"):
        build(**settings)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "config.json: should be a mapping"),
        ({"model_cfg": 5}, "model_cfg: should be a mapping .there: 5"),
        ({"model_cfg": TINY, "preprocess_cfg": {"mean": "x"}}, "preprocess_cfg.mean: should be"),
        ({"model_cfg": {**TINY, "text_cfg": {**TEXT, "layers": 10**7}}}, "text_cfg.layers: should"),
        ({"model_cfg": {**TINY, "vision_cfg": {**VIT, "width": 2**19}}}, "model.bin doesn't fit "),
        ({"model_cfg": {**TINY, "text_cfg": {**TEXT, "hf_tokenizer_name": "x"}}}, "holds no tok"),
        ({"model_cfg": {**TINY, "text_cfg": HF}}, "hf_model_name: /.* leads out of the folder"),
    ],
)
def test_a_folder_that_describes_no_model(tmp_path: Path, about: object, message: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    torch.save(build().towers.clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        build(f"local-dir:{tmp_path}", definition=None)


def test_a_bias_that_the_loss_cancels_is_not_trained(tmp_path: Path) -> None:
    """SigLIP architectures have one; several processes would wait for its gradient."""
    towers = build("bias-test", definition={**TINY, "init_logit_bias": -10}).towers
    assert [n for n, p in towers.named_parameters() if not p.requires_grad] == ["clip.logit_bias"]
    file = tmp_path / "clip.pt"  # of a model without one
    torch.save(build().towers.clip.state_dict(), file)
    settings = {"definition": {**TINY, "init_logit_bias": -10}, "pretrained": str(file)}
    assert build("bias-test", **settings).towers.logit_bias() == -10
    towers.train_bias()
    assert all(p.requires_grad for p in towers.parameters())
    with pytest.raises(InputError, match="siglip needs a model with a bias"):
        build().towers.train_bias()


WRONG_SIZE = {**TINY, "vision_cfg": timm("vit_tiny_patch16_224", 96)}
NO_VIT = {**TINY, "vision_cfg": RESNET}, {**TINY, "vision_cfg": timm("test_efficientnet")}
RN50 = {"arch": "RN50", "definition": None}
B32 = {"arch": "ViT-B-32", "definition": None}
COCA = {**TINY, "custom_text": True, "multimodal_cfg": TEXT}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "a/b"}, "model.arch: can't be a name; use .*'a/b'"),
        ({"definition": {**TINY, "vision_cfg": 5}}, r"vision_cfg: should be a mapping .there: 5"),
        ({"arch": "c", "definition": COCA}, "is a CoCa"),
        ({"definition": {"embed_dim": 3}}, "model.definition.vision_cfg: is missing"),
        ({"arch": "RN50"}, "'RN50' is open_clip's own"),
        ({"definition": {**TINY, "vision_cfg": {"foo": 1}}}, "vision_cfg.foo: no such setting"),
        ({"arch": "ViT-B-61", "definition": None}, "'ViT-B-61' is not .*; did you mean ViT-B-16"),
        ({"arch": "hf-hub:a/b", "pretrained": "openai"}, "leave it out"),
        ({**RN50, "pretrained": "openai"}, "RN50 uses GELU, but .*QuickGELU; use RN50-quickgelu"),
        ({"arch": "local-dir:/nowhere"}, "wanted is open_clip_model.* there: no folder"),
        ({"arch": f"local-dir:{__file__}", "definition": None}, "and weights; there: no folder"),
        ({**RN50, "pretrained": "/"}, "'/' is a folder; name .* or the model as local-dir:/"),
        ({**B32, "pretrained": "nope"}, r"neither a file nor a tag of ViT-B-32 \(openai.{,94}\)$"),
        ({"preprocess": {"means": 1}}, "preprocess.means: no such setting"),
        ({"definition": {**TINY, "vision_cfg": {"patch_dropout": 1.5}}}, "dropout: should be le"),
        ({"definition": NO_VIT[0], "patch_dropout": 0.5}, "dropout: is for ViTs .* not for tiny"),
        ({"definition": NO_VIT[1], "patch_dropout": 0.5}, "dropout: is for ViTs .* not for tiny"),
        ({"context_length": 31}, "context_length: 31 is less than the 32 of tiny-test"),
        ({"definition": {**TINY, "text_cfg": HF}, "context_length": 65}, "65; .*/tiny_bert has 64"),
        ({"pretrained_text": "somewhere"}, "only a Hugging Face text tower"),
        ({"definition": WRONG_SIZE}, r"image_size: \(96, 96\), where timm .* for \(224, 224\)"),
        ({"preprocess": {"mean": 3}}, "preprocess.mean: should be a valid list .there: 3"),
        ({"preprocess": {"interpolation": "random"}}, "or 'bilinear' .there: 'random'"),
    ],
)
def test_what_cannot_be_built(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**settings)


TEXT_CFG = "model.definition.text_cfg"


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("model.definition.quick_gelu", False, "quick_gelu.: True.*, but its definition .* False"),
        (f"{TEXT_CFG}.context_length", 16, "context_length.: 32}, but its definition .* 16"),
        (f"{TEXT_CFG}.hf_tokenizer_name", "x", "r.: 'open_clip'}, but its definition .* 'x'"),
        ("model.tokens", [1, 2, 3], r"a tokenizer \(open_clip\) that isn't the one here: 'Chest"),
        ("model.definition.vision_cfg.layers", 1, "a.pt doesn't fit other-"),
        ("model.preprocess.size", [64, 64], "a.pt: made with .*64.* is built with .*32"),
        ("state_dict.visual/proj", None, r"a.pt doesn't fit other-.*visual\.proj"),
        ("model.name", "../../escaped", "a.pt: model.name: can't be a name"),
        ("model", None, "a.pt: model: is missing"),
        ("step", "x", "a.pt: step: should be a valid integer .there: 'x'."),
        ("epoch", float("nan"), "a.pt: epoch: should be a finite number"),
        ("position", float("inf"), "a.pt: position: should be a valid integer"),
        ("versions", 5, "a.pt: versions: should be a mapping .there: 5."),
        ("config.run", {"seed": 10**30}, "a.pt: config.run.seed: should be less than"),
        ("config.model", {"arch": "t", "pretrained": 5}, "config.model.pretrained: .*there: 5."),
        ("config.data", {"train": "a" * 5000}, "config.data.train: .* at most 4095 char"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(
    tmp_path: Path, change: str, value: object, message: str
) -> None:
    """One fact of a checkpoint is another; None: is missing."""
    clip = build("other-" + change.replace(".", "-").replace("/", "-"), definition=QUICK)
    content = json.loads(json.dumps({"model": clip.description, "config": {}}))
    content["state_dict"] = dict(clip.towers.clip.state_dict())
    *path, name = (part.replace("/", ".") for part in change.split("."))
    owner = reduce(getitem, path, content)
    owner[name] = value
    if value is None:
        del owner[name]
    checkpoint.save(tmp_path / "a.pt", content)
    with pytest.raises(InputError, match=message) as caught:
        factory.load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    assert "a.pt" in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
